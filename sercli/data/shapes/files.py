"""The embedded world as files: as ImageNet, its robustness sets, COCO and VOC lie on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from PIL import Image

from sercli.data.corruptions.catalogue import CORRUPTIONS, SEVERITIES, corrupt, corruption_generator
from sercli.data.corruptions.sequences import perturb
from sercli.data.masks.objects import ObjectMasks
from sercli.data.masks.writing import VocWriter
from sercli.data.robustness import videos
from sercli.data.robustness.corrupted import JPEG_QUALITY, middle, scaled_side
from sercli.data.robustness.published import PERTURBATIONS
from sercli.data.shapes.detection import ShapesDetection
from sercli.data.shapes.painting import Style
from sercli.data.shapes.settings import SHAPES, Setting
from sercli.data.shapes.world import Rendered, render, require_drawable
from sercli.errors import UserError
from sercli.runs.files import replacing_directory
from sercli.visible import counted

_QUALITY = 92


@dataclass(frozen=True)
class FileSet:
    """One set of image files.

    Attributes:
        folder: Where it lies below the directory; also the name of its pictures' split.
        num_images: How many pictures are drawn, over all classes.
        classes: Those that have pictures in it.
        style: How they are drawn: as training images ("photo"), or as those of -R or -Sketch.
        numbered: Whether class folders are named 0, 1, 2… (as in ImageNet-V2) or by class.
        turned: Whether pictures are turned by 90°, 180° or 270°.
    """

    folder: str
    num_images: int
    classes: tuple[str, ...]
    style: Style = "photo"
    numbered: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Derived:
    """What is made of the first pictures of val: a set like ImageNet-C, and one like ImageNet-P.

    Attributes:
        side: Pixels of each side; they are scored unresized, so it is that which the model takes.
        corrupted: Images in each of the 75 cells of imagenet-c/; 0: there is none.
        perturbed: Videos of each of the 10 perturbations of imagenet-p/; 0: there is none.
    """

    side: int
    corrupted: int = 0
    perturbed: int = 0

    @property
    def num_files(self) -> int:
        grid = len(CORRUPTIONS) * len(SEVERITIES)
        return self.corrupted * grid + self.perturbed * len(PERTURBATIONS)


@dataclass(frozen=True)
class Detection:
    """A set in COCO's format, and its pictures with masks of classes in VOC's layout.

    Val has a quarter as many images as train, at least one.

    Attributes:
        num_train: Images in coco/train2017; 0: there is neither coco/ nor voc/.
        size: Side of the pictures in pixels.
    """

    num_train: int
    size: int

    @property
    def num_images(self) -> dict[str, int]:
        """Images by split."""
        if not self.num_train:
            return {}
        return {"train": self.num_train, "val": max(1, self.num_train // 4)}

    @property
    def num_files(self) -> int:
        """Images of both splits."""
        return sum(self.num_images.values())


@dataclass(frozen=True)
class _World:
    """What all sets are pictures of: a setting, of a seed, at a size."""

    setting: Setting
    seed: int
    size: int

    def render(self, split: str, index: int, style: Style = "photo") -> Rendered:
        return render(self.seed, split, index, self.size, style=style, setting=self.setting)

    def class_of(self, index: int) -> str:
        """The class of a picture, which is that of no other index modulo their number."""
        classes = self.setting.classes
        return classes[index % len(classes)]


def file_sets(num_train: int, num_val: int, *, setting: Setting = SHAPES) -> tuple[FileSet, ...]:
    """The sets of pictures of their own: train, val, and six as large as val."""
    every = setting.classes
    return (
        FileSet("train", num_train, every),
        FileSet("val", num_val, every),
        FileSet("imagenet-r", num_val, setting.some_classes["imagenet-r"], style="rendition"),
        FileSet("imagenet-a", num_val, setting.some_classes["imagenet-a"], turned=True),
        FileSet("sketch", num_val, every, style="sketch"),
        FileSet("imagenet-v2/matched-frequency", num_val, every, numbered=True),
        FileSet("imagenet-v2/threshold-0.7", num_val, every, numbered=True),
        FileSet("imagenet-v2/top-images", num_val, every, numbered=True),
    )


def write_sets(
    directory: Path,
    sets: tuple[FileSet, ...],
    derived: Derived | None = None,
    *,
    detection: Detection | None = None,
    setting: Setting = SHAPES,
    size: int,
    seed: int,
    progress: Callable[[int], object],
) -> None:
    """Write the sets; the directory appears when all of it is there, or not at all.

    Classes take turns, so that their counts differ by one image at most.

    Args:
        directory: Must not exist.
        sets: What to write, with a "val" if anything is derived.
        derived: What to make of val.
        detection: The set to write in COCO's format and in VOC's layout.
        setting: Which world it is; that of `sets`.
        size: Side of the pictures in pixels, 16…4096.
        seed: Another seed, other pictures; 0…2^64-1.
        progress: Called with 1 after each image or video.

    Raises:
        UserError: The directory exists or cannot be written, a set is smaller than the number of
            its classes, a size or `seed` is out of range, `derived` asks for more than val has or
            for a side that is, or for videos without PyAV.
        RunFailed: The disk is full.
    """
    for one in sets:
        _require_every_class(one.num_images, one.classes, one.folder)
    require_drawable(size=size, seed=seed)
    if derived is not None and derived.num_files:
        _require_derivable(derived, next(one for one in sets if one.folder == "val"))
    world = _World(setting, seed, size)
    if detection is not None and detection.num_files:
        require_drawable(size=detection.size, seed=seed)
    with replacing_directory(directory, what="a new data set") as draft:
        for one in sets:
            _write_set(draft, one, world, progress=progress)
        if derived is not None:
            _write_corrupted(draft, derived, world, progress=progress)
            _write_perturbed(draft, derived, world, progress=progress)
        if detection is not None:
            _write_detection(draft, detection, world, progress=progress)


def _require_every_class(number: int, classes: tuple[str, ...], folder: str) -> None:
    if number < len(classes):
        raise UserError(
            f"{counted(number, 'image')} for {folder}",
            f"every class needs an image, and there are {len(classes)} classes",
            "ask for more, or for none of this set (0)" if folder.startswith("each") else "",
        )


def _require_derivable(derived: Derived, val: FileSet) -> None:
    for folder, number in (("imagenet-c", derived.corrupted), ("imagenet-p", derived.perturbed)):
        if number:
            _require_every_class(number, val.classes, f"each part of {folder}")
        if number > val.num_images:
            raise UserError(
                f"{counted(number, 'image')} for each part of {folder}",
                f"they are made of val, which has {val.num_images}",
            )
    require_drawable(size=derived.side, seed=0)
    if derived.perturbed:
        videos.require_av()


def _write_set(
    draft: Path, one: FileSet, world: _World, *, progress: Callable[[int], object]
) -> None:
    folders = {
        name: draft / one.folder / (str(label) if one.numbered else name)
        for label, name in enumerate(world.setting.classes)
        if name in one.classes
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    indices = (index for index in count() if world.class_of(index) in one.classes)
    for index in islice(indices, one.num_images):
        image = Image.fromarray(world.render(one.folder, index, one.style).image)
        if one.turned:
            image = image.transpose(_TURNS[index // len(world.setting.classes) % len(_TURNS)])
        path = folders[world.class_of(index)] / _file_name(one.folder, index, "JPEG")
        # Full colour resolution: at these sizes halving it would blur the outlines away.
        image.save(path, "JPEG", quality=_QUALITY, subsampling=0)
        progress(1)


_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def _file_name(folder: str, index: int, suffix: str) -> str:
    return f"{Path(folder).name}_{index:08d}.{suffix}"


def _write_corrupted(
    draft: Path, derived: Derived, world: _World, *, progress: Callable[[int], object]
) -> None:
    for index in range(derived.corrupted):
        picture = world.render("val", index)
        image = middle(Image.fromarray(picture.image), derived.side)
        name = _file_name("val", index, "JPEG")
        for corruption in CORRUPTIONS:
            for severity in SEVERITIES:
                random = corruption_generator(world.seed, name, corruption, severity)
                folder = draft / "imagenet-c" / corruption / str(severity) / world.class_of(index)
                folder.mkdir(parents=True, exist_ok=True)
                corrupted = corrupt(image, corruption, severity, random)
                corrupted.save(folder / name, "JPEG", quality=JPEG_QUALITY)
                progress(1)


def _write_perturbed(
    draft: Path, derived: Derived, world: _World, *, progress: Callable[[int], object]
) -> None:
    shown = scaled_side(derived.side)
    for index in range(derived.perturbed):
        picture = world.render("val", index)
        image = middle(Image.fromarray(picture.image), shown, resize=shown)
        name = _file_name("val", index, "mp4")
        for perturbation in PERTURBATIONS:
            random = corruption_generator(world.seed, name, perturbation, 1)
            folder = draft / "imagenet-p" / perturbation / world.class_of(index)
            folder.mkdir(parents=True, exist_ok=True)
            frames = perturb(image, perturbation, random, side=derived.side)
            videos.write_video(folder / name, frames)
            progress(1)


def _write_detection(
    draft: Path, detection: Detection, world: _World, *, progress: Callable[[int], object]
) -> None:
    for split, number in detection.num_images.items():
        source = ShapesDetection(
            split,
            image_size=detection.size,
            num_images=number,
            seed=world.seed,
            setting=world.setting,
        )
        content = source.ground_truth(range(number))
        folder = draft / "coco" / f"{split}2017"
        folder.mkdir(parents=True)
        masks = VocWriter(draft / "voc", ObjectMasks(source), split)
        for index, image in enumerate(content["images"]):
            image["file_name"] = f"{image['id']:012d}.jpg"
            path = folder / image["file_name"]
            source.load(index).save(path, "JPEG", quality=_QUALITY, subsampling=0)
            masks.add(index, path)
            progress(1)
        masks.finish()
        annotations = draft / "coco/annotations"
        annotations.mkdir(exist_ok=True)
        (annotations / f"instances_{split}2017.json").write_text(json.dumps(content))

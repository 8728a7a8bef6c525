"""The embedded world as JPEG files, in the layouts of ImageNet and of its robustness sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sercli.data.shapes import Style, render, require_drawable
from sercli.data.shapes_outlines import CLASSES
from sercli.errors import UserError
from sercli.run_dir import replacing_directory

_QUALITY = 92


@dataclass(frozen=True)
class FileSet:
    """One set of files.

    Attributes:
        folder: Where it lies below the directory; also the name of its pictures' split.
        num_images: How many.
        style: How they look.
        numbered: Whether class folders are named 0, 1, 2… (as in ImageNet-V2) or by class.
    """

    folder: str
    num_images: int
    style: Style = "photo"
    numbered: bool = False


def file_sets(num_train: int, num_val: int) -> tuple[FileSet, ...]:
    """The sets that are written: train, val, and five as large as val."""
    return (
        FileSet("train", num_train),
        FileSet("val", num_val),
        FileSet("imagenet-r", num_val, style="rendition"),
        FileSet("sketch", num_val, style="sketch"),
        FileSet("imagenet-v2/matched-frequency", num_val, numbered=True),
        FileSet("imagenet-v2/threshold-0.7", num_val, numbered=True),
        FileSet("imagenet-v2/top-images", num_val, numbered=True),
    )


def write_sets(
    directory: Path,
    sets: tuple[FileSet, ...],
    *,
    size: int,
    seed: int,
    progress: Callable[[int], object],
) -> None:
    """Write the sets; the directory appears when all of it is there, or not at all.

    Classes take turns, so that their counts differ by one image at most.

    Args:
        directory: Must not exist.
        sets: What to write.
        size: Side of the pictures in pixels, 16…4096.
        seed: Of the embedded world, 0…2^64-1.
        progress: Called with 1 after each image.

    Raises:
        UserError: The directory exists or cannot be written, a set is smaller than the number of
            classes, or `size` or `seed` is out of range.
        RunFailed: The disk is full.
    """
    for one in sets:
        if one.num_images < len(CLASSES):
            raise UserError(
                f"{one.num_images} images for {one.folder}",
                f"every class needs an image, and there are {len(CLASSES)} classes",
            )
    require_drawable(size=size, seed=seed)
    with replacing_directory(directory, what="a new data set") as draft:
        for one in sets:
            _write_set(draft, one, size=size, seed=seed, progress=progress)


def _write_set(
    draft: Path, one: FileSet, *, size: int, seed: int, progress: Callable[[int], object]
) -> None:
    stem = Path(one.folder).name
    folders = [
        draft / one.folder / (str(label) if one.numbered else name)
        for label, name in enumerate(CLASSES)
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(one.num_images):
        picture = render(seed, one.folder, index, size, style=one.style)
        path = folders[picture.label] / f"{stem}_{index:08d}.JPEG"
        # Full colour resolution: at these sizes halving it would blur the outlines away.
        Image.fromarray(picture.image).save(path, "JPEG", quality=_QUALITY, subsampling=0)
        progress(1)

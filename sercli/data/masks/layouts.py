"""Where images and masks lie, in the layouts of PASCAL VOC and of ADE20K.

VOC:     DIR/JPEGImages/NAME.jpg, DIR/SegmentationClass/NAME.png and, with a name a line,
         DIR/ImageSets/Segmentation/{train,val}.txt; index 0 is a class, the background.
ADE20K:  DIR/images/{training,validation}/NAME.jpg and, in the same folders of DIR/annotations/,
         NAME.png; index 0 is no class and ignored, the first class has index 1.

In both, 255 is ignored. `classes.txt` in DIR names the classes, one a line; ADE20K's own
`objectInfo150.txt` does as well. Without either they are VOC's 21, or 150 of ADE20K by number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sercli.data.images.listing import is_directory, list_directory, regular_files
from sercli.data.masks.source import MOST_CLASSES
from sercli.errors import UserError
from sercli.runs.reading import MIB, read_bytes

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_ADE_CLASSES = tuple(f"class {number}" for number in range(1, 151))
CLASSES, _ADE_LIST = "classes.txt", "objectInfo150.txt"
VOC_IMAGES, VOC_MASKS, VOC_LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
_ADE_SPLITS = {"train": "training", "val": "validation"}
_LARGEST_LIST = 64 * MIB


@dataclass(frozen=True)
class Pair:
    """An image and its mask: paths below the directory."""

    image: str
    mask: str


@dataclass(frozen=True)
class Layout:
    """One way in which such sets lie on a disk.

    Attributes:
        name: As results and `--layout` have it.
        title: What a person calls it.
        first: Index of the first class; what is below it is ignored.
        says: What a directory has, for messages.
        fits: Whether a directory has it.
        pairs: The images of a split, "train" or "val", and what is wrong with it, a line each.
    """

    name: str
    title: str
    first: int
    says: str
    fits: Callable[[Path], bool]
    pairs: Callable[[Path, str], tuple[list[Pair], list[str]]]

    def classes(self, root: Path) -> tuple[str, ...]:
        """Names of the classes, by index from `first` on.

        Raises:
            UserError: A list of them cannot be read, or has too many or one twice.
        """
        if os.path.lexists(root / CLASSES):
            return _checked([line.strip() for line in _lines(root / CLASSES)], root / CLASSES)
        if not self.first:
            return VOC_CLASSES
        if os.path.lexists(root / _ADE_LIST):
            rows = [line.split("\t") for line in _lines(root / _ADE_LIST)[1:]]
            return _checked([row[-1].strip() for row in rows], root / _ADE_LIST)
        return _ADE_CLASSES


def _checked(names: list[str], file: Path) -> tuple[str, ...]:
    if not 2 <= len(names) <= MOST_CLASSES or "" in names:
        raise UserError(
            f"{file} has {len(names)} names{', one of them empty' if '' in names else ''}",
            f"a list of classes has 2 to {MOST_CLASSES}, one a line, in the order of their indices",
        )
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{file} has {name!r} twice", "each class has a name of its own")
    return tuple(names)


def _lines(file: Path) -> list[str]:
    """The lines of a text file without empty ones at the end."""
    data = read_bytes(file, limit=_LARGEST_LIST)
    try:
        return data.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8", "a list has a name a line") from error


def _is_voc(root: Path) -> bool:
    return os.path.isdir(root / VOC_MASKS) and os.path.isdir(root / VOC_IMAGES)


def _is_ade(root: Path) -> bool:
    return all(os.path.isdir(root / part / "training") for part in ("images", "annotations"))


def _pairs_of_voc(root: Path, split: str) -> tuple[list[Pair], list[str]]:
    file = root / VOC_LISTS / f"{split}.txt"
    try:
        names = [line.split()[0] for line in _lines(file) if line.strip()]
    except UserError as error:
        return [], [str(error)]
    wrong = [name for name in names if "/" in name or name.startswith(".")]
    if wrong:
        return [], [f"{file} lists {wrong[0]!r}, which is no name of an image"]
    if len(set(names)) < len(names):
        return [], [f"{file} lists an image twice"]
    return _matched(root, names, VOC_IMAGES, VOC_MASKS, said_by=str(file))


def _pairs_of_ade(root: Path, split: str) -> tuple[list[Pair], list[str]]:
    images, masks = (f"{part}/{_ADE_SPLITS[split]}" for part in ("images", "annotations"))
    if not is_directory(root / images):
        return [], [f"{root} has no {images}/"]
    files = list_directory(root / images).files
    names = sorted(Path(os.fsdecode(name)).stem for name in files)
    if len(set(names)) < len(names):
        return [], [f"{root / images} has two images of one name"]
    return _matched(root, names, images, masks, said_by="")


def _matched(
    root: Path, names: list[str], images: str, masks: str, *, said_by: str
) -> tuple[list[Pair], list[str]]:
    """An image and a mask for each name, and what is missing."""
    folders = [root / images, root / masks]
    missing = [f"{folder} is missing" for folder in folders if not is_directory(folder)]
    if missing:
        return [], missing
    there = {os.path.splitext(name)[0]: name for name in sorted(_images_in(root / images))}
    drawn = regular_files(root / masks)
    found, problems = [], []
    if not names:
        problems.append(f"{said_by or root / images} lists no image")
    for name in names:
        if name not in there:
            problems.append(f"{root / images} has no image {name}, which {said_by} lists")
        elif f"{name}.png" not in drawn:
            problems.append(f"{root / masks / name}.png is missing, the mask of {there[name]}")
        else:
            found.append(Pair(f"{images}/{there[name]}", f"{masks}/{name}.png"))
    return found, problems


def _images_in(folder: Path) -> list[str]:
    listing = list_directory(folder)
    return [os.fsdecode(name) for name in listing.files if name not in listing.faults]


LAYOUTS = {
    "voc": Layout(
        "voc",
        "a set with masks in PASCAL VOC's layout",
        0,
        "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt",
        _is_voc,
        _pairs_of_voc,
    ),
    "ade20k": Layout(
        "ade20k",
        "a set with masks in ADE20K's layout",
        1,
        "images/{training,validation}/ and annotations/{training,validation}/",
        _is_ade,
        _pairs_of_ade,
    ),
}


def layout_of(root: Path) -> Layout | None:
    """The layout of a directory; None: neither."""
    return next((layout for layout in LAYOUTS.values() if layout.fits(root)), None)


def require_layout(root: Path) -> Layout:
    """The layout of a directory.

    Raises:
        UserError: It is none, or has neither.
    """
    if (layout := layout_of(root)) is not None:
        return layout
    there = is_directory(root)
    what = "has no masks" if there else "is a file" if root.exists() else "does not exist"
    known = ", or ".join(layout.says for layout in LAYOUTS.values())
    raise UserError(
        f"{root} {what}",
        f"images and masks are needed: {known}",
        "or take `shapes`, the embedded world",
    )

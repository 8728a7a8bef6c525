"""ImageNet-C as files, and its corruptions made on the fly, which is another protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

from PIL import Image

from sercli.data.corruptions.catalogue import (
    CATALOGUE,
    CORRUPTIONS,
    SEVERITIES,
    as_jpeg,
    corrupt,
    corruption_generator,
)
from sercli.data.corruptions.pixels import PUBLISHED_SIDE
from sercli.data.images.listing import is_directory
from sercli.data.robustness.folders import (
    ClassFolders,
    Findings,
    absent_parts,
    inspect_folder,
    merged,
    parts,
)
from sercli.data.robustness.imagenet_classes import is_imagenet
from sercli.data.robustness.published import folder_rule, published_rule
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import UserError

_LAYOUT = "the layout is DIR/<corruption>/<1…5>/<class>/*.JPEG"
_THREADS = 16  # to list the 75 cells: on a network drive that is mostly waiting
JPEG_QUALITY = 85  # of ImageNet-C's files


@dataclass(frozen=True)
class CorruptedSet:
    """ImageNet-C: a grid of corruptions and severities, one set of images in each cell.

    Attributes:
        path: Folder that the corruptions' folders lie in.
        corruptions: Those found of the catalogue, in its order: the paper's fifteen first.
        cells: (corruption, severity) → images, labelled by the head's classes.
        partial: Whether something is missing of it.
        notes: What a partial set lacks, a sentence each.
    """

    path: Path
    corruptions: tuple[str, ...]
    cells: Mapping[tuple[str, int], ClassFolders]
    partial: bool
    notes: tuple[str, ...]

    def source(self, corruption: str, severity: int) -> ImageSource:
        """The images of one cell; every one has the set's side, or is an error when read.

        Raises:
            UserError: There is no such cell.
        """
        cell = self.cells.get((corruption, severity))
        if cell is None or corruption not in self.corruptions:
            raise UserError(
                f"{self.path} has no {corruption} of severity {severity}",
                f"there are {', '.join(self.corruptions)}, each of severities 1 to 5",
            )
        return cell


def open_corrupted(
    path: Path, classes: Sequence[str], *, allow_partial: bool = False
) -> CorruptedSet:
    """Open ImageNet-C: `<corruption>/<1…5>/<class>/*.JPEG`.

    Args:
        path: Its folder; the corruptions may lie in folders noise, blur, weather, digital, extra.
        classes: The class order of the head.
        allow_partial: Accept missing cells, classes and images. A corruption that lacks a severity
            is left out.

    Raises:
        UserError: It is missing or not as published: a cell of the 75 is missing, or one of them,
            extra corruptions included, has other classes or another number of images, or a first
            image with another side.
    """
    cells, found = inspect_corrupted(path, classes)
    found.require(
        path, "imagenet-c", published_rule("imagenet-c", classes), allow_partial=allow_partial
    )
    whole = [c for c in CATALOGUE if all((c, s) in cells for s in SEVERITIES)]
    if not whole:
        raise UserError(
            f"{path} has no corruption with all five severities", _LAYOUT, "name its folder"
        )
    return CorruptedSet(path, tuple(whole), cells, bool(found.lacking), found.lacking)


def inspect_corrupted(
    path: Path, classes: Sequence[str]
) -> tuple[dict[tuple[str, int], ClassFolders], Findings]:
    """The cells whose labels can be told, and what is not as published.

    Raises:
        UserError: It is missing.
    """
    folders = parts(path, tuple(CATALOGUE))
    lacking = absent_parts(folders, CORRUPTIONS, "corruption", _LAYOUT)
    places: dict[tuple[str, int], Path] = {}
    for corruption, folder in folders.items():
        there = [s for s in SEVERITIES if is_directory(folder / str(s))]
        if absent := [str(s) for s in SEVERITIES if s not in there]:
            lacking.append(f"{corruption}: no severity {', '.join(absent)}")
        places |= {(corruption, s): folder / str(s) for s in there}
    rule = folder_rule("imagenet-c", classes)
    with ThreadPoolExecutor(_THREADS) as pool:
        inspected = pool.map(lambda place: inspect_folder(place, rule, classes), places.values())
        results = dict(zip(places, inspected, strict=True))
    cells = {cell: source for cell, (source, _) in results.items() if source is not None}
    found = {f"{c}/{s}": findings for (c, s), (_, findings) in results.items()}
    cells, sides = _with_one_side(cells, PUBLISHED_SIDE if is_imagenet(classes) else None)
    in_cells = merged(found, "cell")
    return cells, Findings(in_cells.wrong + sides, (*lacking, *in_cells.lacking))


def _with_one_side(
    cells: Mapping[tuple[str, int], ClassFolders], side: int | None
) -> tuple[dict[tuple[str, int], ClassFolders], tuple[str, ...]]:
    """The cells bound to one side, and those first images of theirs that do not have it.

    Args:
        cells: Images of any side.
        side: What it must be; None: the height of the first image of all.
    """
    bound: dict[tuple[str, int], ClassFolders] = {}
    wrong: list[str] = []
    for place, cell in cells.items():
        try:
            if side is None:
                side = cell.header(0, decode=False).height
            sided = cell.with_side(side)
            sided.header(0, decode=False)
        except UnreadableImage as error:
            wrong.append(str(error))
        else:
            bound[place] = sided
    return bound, tuple(wrong)


# -- On the fly --------------------------------------------------------------------------------


def open_otf(
    val: ImageSource, corruption: str, severity: int, *, seed: int, image_size: int
) -> ImageSource:
    """`val` corrupted when it is read: the protocol imagenet-c-otf, which is not ImageNet-C.

    The shorter side is resized to 256, the middle 224 pixels are cropped (in proportion for
    another `image_size`), the corruption is made and stored as JPEG of quality 85, as ImageNet-C
    was. A picture is a function of the seed, its id in `val`, the corruption and the severity.

    Raises:
        UserError: There is no such corruption or severity.
    """
    return _OnTheFly(val, corruption, severity, seed=seed, image_size=image_size)


@final
class _OnTheFly(ImageSource):
    def __init__(
        self, val: ImageSource, corruption: str, severity: int, *, seed: int, image_size: int
    ) -> None:
        if corruption not in CATALOGUE or severity not in SEVERITIES:
            raise UserError(
                f"corruption {corruption} of severity {severity}",
                f"corruptions are {', '.join(CATALOGUE)}, severities 1 to 5",
            )
        self._val = val
        self._corruption, self._severity = corruption, severity
        self._seed, self._image_size = seed, image_size
        self.name = f"{val.name} with {corruption} of severity {severity}"
        self.split, self.classes, self.labels = val.split, val.classes, val.labels

    def load(self, index: int) -> Image.Image:
        index = self.position(index)
        return corrupted_picture(
            self._val.load(index),
            self._val.identifier(index),
            self._corruption,
            self._severity,
            seed=self._seed,
            side=self._image_size,
        )

    def describe(self, index: int) -> str:
        return self._val.describe(index)

    def identifier(self, index: int) -> str:
        return self._val.identifier(index)


def corrupted_picture(
    image: Image.Image, identifier: str, corruption: str, severity: int, *, seed: int, side: int
) -> Image.Image:
    """One picture as `open_otf` gives it, RGB of `side` pixels."""
    random = corruption_generator(seed, identifier, corruption, severity)
    corrupted = corrupt(middle(image, side), corruption, severity, random)
    return as_jpeg(corrupted, JPEG_QUALITY)


def middle(image: Image.Image, side: int, *, resize: int | None = None) -> Image.Image:
    """The central `side` pixels after a bilinear resize, as ImageNet-C's authors cropped.

    Args:
        image: RGB.
        side: How many pixels are cut out, in each direction.
        resize: What the shorter side is resized to before, in pixels; default: 256 for 224, in
            proportion.
    """
    shorter = scaled_side(side) if resize is None else resize
    width, height = image.size
    scale = shorter / min(width, height)
    size = (max(shorter, int(width * scale)), max(shorter, int(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))


def scaled_side(side: int) -> int:
    """What the shorter side is resized to before `side` pixels are cropped: 256 for 224."""
    return round(side * 256 / PUBLISHED_SIDE)

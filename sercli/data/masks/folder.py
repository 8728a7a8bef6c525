"""Images and masks in files: palette or grey PNGs whose values are indices of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.images.decode import Header, read_header, read_indices, read_rgb, require_indices
from sercli.data.masks.layouts import Layout, require_layout
from sercli.data.masks.source import IGNORED, MaskSource
from sercli.data.source import UnreadableImage
from sercli.errors import UserError


class MaskFolder(MaskSource):
    """A split of a directory in one of `LAYOUTS`.

    Args:
        root: The directory.
        split: "train" or "val".

    Raises:
        UserError: It has no such layout or split, or an image without its mask.
    """

    def __init__(self, root: Path, split: str) -> None:
        layout = require_layout(root)
        pairs, problems = layout.pairs(root, split)
        if problems:
            more = f" (and {len(problems) - 1:,} more like it)" if len(problems) > 1 else ""
            raise UserError(
                f"{problems[0]}{more}",
                f"{layout.title} has {layout.says}",
                "`ser data check` lists all there is",
            )
        self.name, self.split, self.layout = str(root), split, layout.name
        self.classes = layout.classes(root)
        self._root, self._first = root, layout.first
        self._images = [pair.image for pair in pairs]
        self._masks = [pair.mask for pair in pairs]

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        return read_rgb(str(self._root / self._images[index]), called=self.describe(index))

    def mask(self, index: int) -> NDArray[np.uint8]:
        path = str(self._root / self._masks[index])
        return read_mask(path, first=self._first, num_classes=len(self.classes))

    def size(self, index: int) -> tuple[int, int]:
        header = pair_header(
            self.describe(index), str(self._root / self._masks[index]), decode=False
        )
        return header.width, header.height

    def describe(self, index: int) -> str:
        return str(self._root / self._images[index])

    def identifier(self, index: int) -> str:
        return self._images[index]


def read_mask(path: str, *, first: int, num_classes: int) -> NDArray[np.uint8]:
    """The indices of a mask as classes, uint8 [H, W].

    Args:
        path: A PNG of 8 bits: with a palette, whose colours mean nothing, or grey.
        first: Index of the first class; those below it are ignored, as 255 is.
        num_classes: How many there are.

    Raises:
        UnreadableImage: It is no such file, or has another index.
    """
    indices = read_indices(path, called=path)
    found = np.unique(indices)
    beyond = found[(found >= first + num_classes) & (found != IGNORED)]
    if len(beyond):
        raise UnreadableImage(
            path,
            f"it has the index {beyond[0]}, but the {num_classes} classes have {first} to "
            f"{first + num_classes - 1} (and {IGNORED} is ignored); a classes.txt beside the "
            "folders names others",
        )
    every = np.arange(256)
    moved = np.where((every < first) | (every == IGNORED), IGNORED, every - first)
    classes: NDArray[np.uint8] = moved.astype(np.uint8)[indices]
    return classes


def pair_header(image: str, mask: str, *, decode: bool) -> Header:
    """What the file of an image says of its pixels; that of its mask must fit.

    Args:
        image: Path of the image.
        mask: Path of its mask.
        decode: Whether the image's pixels are decoded.

    Raises:
        UnreadableImage: One cannot be read, they are of different sizes, or the mask has colours.
    """
    header = read_header(image, called=image, decode=decode)
    drawn = read_header(mask, called=mask, decode=False)
    require_indices(drawn.mode, called=mask)
    if (header.width, header.height) != (drawn.width, drawn.height):
        raise UnreadableImage(
            mask,
            f"it is {drawn.width} x {drawn.height} pixels, but its image is "
            f"{header.width} x {header.height}",
        )
    return header


@dataclass(frozen=True)
class MaskFiles:
    """Images with their masks, as a check reads them; picklable.

    Attributes:
        name: What messages call the set.
        root: The directory.
        pairs: Path of an image and of its mask below it.
        first: Index of the first class.
        num_classes: How many there are.
    """

    name: str
    root: Path
    pairs: tuple[tuple[str, str], ...]
    first: int
    num_classes: int

    @classmethod
    def of(cls, root: Path, layout: Layout, split: str) -> tuple[MaskFiles, list[str]]:
        """Those of a split, and what is missing, a line each."""
        pairs, problems = layout.pairs(root, split)
        names = tuple((pair.image, pair.mask) for pair in pairs)
        return cls(str(root), root, names, layout.first, len(layout.classes(root))), problems

    def __len__(self) -> int:
        return len(self.pairs)

    def header(self, index: int, *, decode: bool) -> Header:
        """What an image's file says of its pixels, after a look at its mask.

        Raises:
            UnreadableImage: One of them cannot be read, they are of different sizes, or the mask
                is none of these classes.
        """
        image, mask = (str(self.root / name) for name in self.pairs[index])
        header = pair_header(image, mask, decode=decode)
        if decode:
            read_mask(mask, first=self.first, num_classes=self.num_classes)
        return header

"""Writes images with masks in VOC's layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sercli.data.masks.layouts import CLASSES, VOC_IMAGES, VOC_LISTS, VOC_MASKS
from sercli.data.masks.source import MaskSource


class VocWriter:
    """Writes one split below a directory; another split may be there.

    Args:
        root: The directory.
        source: Gives masks and the names of classes.
        split: "train" or "val".
    """

    def __init__(self, root: Path, source: MaskSource, split: str) -> None:
        self.root, self.source, self.split = root, source, split
        self.names: list[str] = []
        for folder in (VOC_IMAGES, VOC_MASKS, VOC_LISTS):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def add(self, index: int, image: Path) -> None:
        """Write the mask of an image, and its file, a JPEG, under a second name where that can be.

        Args:
            index: Of the source.
            image: The file.
        """
        name = f"{self.split}_{image.stem}"
        place = self.root / VOC_IMAGES / f"{name}.jpg"
        try:
            os.link(image, place)
        except OSError:  # a file system without hard links
            shutil.copyfile(image, place)
        mask = Image.fromarray(self.source.mask(index))
        mask.putpalette(palette())
        mask.save(self.root / VOC_MASKS / f"{name}.png")
        self.names.append(name)

    def finish(self) -> None:
        """Write the list of the split's images, and that of the classes."""
        for path, lines in (
            (self.root / VOC_LISTS / f"{self.split}.txt", self.names),
            (self.root / CLASSES, list(self.source.classes)),
        ):
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def palette() -> bytes:
    """VOC's colours, 256 x RGB: the bits of an index take turns among the channels."""
    values = np.arange(256)
    channels = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            place = 3 * bit + channel
            if place < 8:
                channels[:, channel] |= (((values >> place) & 1) << (7 - bit)).astype(np.uint8)
    return channels.tobytes()

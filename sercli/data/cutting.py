"""Crops of a training image, resized where they go: by Pillow, or as fast as there is."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sercli.data.crops import cut
from sercli.data.source import ImageSource

Box = tuple[int, int, int, int]  # left, top, width and height, pixels


class Cutter(abc.ABC):
    """An image that crops are cut from.

    Attributes:
        size: Width and height, pixels.
    """

    size: tuple[int, int]

    @classmethod
    @abc.abstractmethod
    def of(cls, source: ImageSource, index: int) -> Self:
        """Read an image.

        Raises:
            UnreadableImage: As `ImageSource.load` does.
        """

    @abc.abstractmethod
    def cut(self, target: NDArray[np.uint8], box: Box, interpolation: str) -> None:
        """Write the part `box`, resized.

        Args:
            target: uint8 [S, S, 3], contiguous: writing planes would take a third of the time.
            box: Which part.
            interpolation: "bilinear" or "bicubic", both with a filter as wide as the reduction.
        """


@final
class PilCutter(Cutter):
    """The reference, to the last bit."""

    def __init__(self, image: Image.Image) -> None:
        self._image, self.size = image, image.size

    @classmethod
    def of(cls, source: ImageSource, index: int) -> Self:
        return cls(source.load(index))

    def cut(self, target: NDArray[np.uint8], box: Box, interpolation: str) -> None:
        target[...] = np.asarray(cut(self._image, box, len(target), interpolation))


@final
class FastCutter(Cutter):
    """By torch's filters for bytes: Pillow's, in SIMD; levels may differ by one.

    Args:
        pixels: uint8 [H, W, 3].
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = torch.from_numpy(pixels)
        self.size = (pixels.shape[1], pixels.shape[0])

    @classmethod
    def of(cls, source: ImageSource, index: int) -> Self:
        return cls(source.pixels(index))

    def cut(self, target: NDArray[np.uint8], box: Box, interpolation: str) -> None:
        x, y, w, h = box
        part = self._pixels[y : y + h, x : x + w].permute(2, 0, 1)[None]
        out = torch.from_numpy(target).permute(2, 0, 1)[None]
        _FILTERS[interpolation](part, list(target.shape[:2]), False, out=out)


# What `torch.nn.functional.interpolate(…, antialias=True)` calls, but written where it goes.
_FILTERS: dict[str, Any] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


# By `data.decoder`.
CUTTERS: Mapping[str, type[Cutter]] = {"pil": PilCutter, "fast": FastCutter}

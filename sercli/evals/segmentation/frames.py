"""From pixels to tokens and back: how an image of any size is cut into square windows.

An image is resized until its shorter side is S pixels (its longer one at most 4 S: what is longer
still is squeezed), and cut into windows of S x S pixels along the longer side, two thirds of S
apart, the last one flush with the end. Nothing is padded. Each window gives a map of g x g logits;
it is upsampled to S x S pixels, windows are averaged where they overlap, and that is resized to the
mask's own size, bilinearly both times. All of that is linear in each direction, so that it is one
matrix for rows and one for columns: logits = rows [H, g] @ maps [g, n g] @ columns [W, n g]', for n
windows side by side; in an image that stands upright they lie below each other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST = 4  # sides of a window
POINTS = 4  # a patch and direction, at which the loss is taken
STRIDE = 2 / 3  # sides of a window, as DINOv2's 341 of 512 pixels


@dataclass(frozen=True)
class Frame:
    """How an image lies before the encoder.

    Attributes:
        width, height: Of the image, in pixels, before it is resized.
        side: S, of a window.
    """

    width: int
    height: int
    side: int

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height after resizing; the shorter is S."""
        shorter = min(self.width, self.height)

        def scaled(length: int) -> int:
            if length == shorter:
                return self.side
            return min(max(self.side, round(length * self.side / shorter)), LONGEST * self.side)

        return scaled(self.width), scaled(self.height)

    @property
    def upright(self) -> bool:
        """Whether windows lie below each other."""
        width, height = self.resized
        return height > width

    @property
    def starts(self) -> tuple[int, ...]:
        """Where windows begin along the longer side, in pixels after resizing."""
        last = max(self.resized) - self.side
        stride = max(1, int(self.side * STRIDE))
        return tuple(min(number * stride, last) for number in range(-(-last // stride) + 1))

    def corner(self, window: int) -> tuple[int, int]:
        """Left and top of a window, in pixels after resizing."""
        start = self.starts[window]
        return (0, start) if self.upright else (start, 0)

    def cut(self, image: Image.Image, window: int) -> NDArray[np.uint8]:
        """The pixels of a window, uint8 [3, S, S]; bicubic, with antialiasing."""
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.BICUBIC)
        left, top = self.corner(window)
        box = (left, top, left + self.side, top + self.side)
        return np.asarray(image.crop(box)).transpose(2, 0, 1)

    def targets(self, mask: NDArray[np.uint8], window: int, points: int) -> NDArray[np.uint8]:
        """The mask's values at the middles of points x points squares of a window."""
        left, top = self.corner(window)
        middles = (np.arange(points) + 0.5) * (self.side / points)
        width, height = self.resized
        rows = ((top + middles) * (self.height / height)).astype(np.int64)
        columns = ((left + middles) * (self.width / width)).astype(np.int64)
        picked: NDArray[np.uint8] = mask[
            np.minimum(rows, self.height - 1)[:, None], np.minimum(columns, self.width - 1)
        ]
        return picked

    def matrices(self, grid: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What takes the windows' maps, joined along the longer side, to the mask's pixels.

        Args:
            grid: g, tokens along a side of a window.

        Returns:
            For rows, float32 [H, g], and for columns, [W, n g]; upright, [H, n g] and [W, g].
        """
        return _matrices(self, grid)


@functools.lru_cache(maxsize=64)
def _matrices(frame: Frame, grid: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    lengths = (frame.width, frame.height)
    short, long = lengths if frame.upright else lengths[::-1]
    stretched, side = max(frame.resized), frame.side
    to_window, to_mask = upsampling(side, grid), upsampling(long, stretched)
    covered = np.zeros(stretched)
    for start in frame.starts:
        covered[start : start + side] += 1
    along = [
        (to_mask[:, start : start + side] / covered[start : start + side]) @ to_window
        for start in frame.starts
    ]
    across = (upsampling(short, side) @ to_window).astype(np.float32)
    joined = np.concatenate(along, axis=1).astype(np.float32)
    return (joined, across) if frame.upright else (across, joined)


def upsampling(length: int, of: int) -> NDArray[np.float64]:
    """Bilinear interpolation of `of` values at `length` places, as a matrix [length, of].

    As torch's `interpolate` with align_corners=False: place i lies at (i + 1/2) of / length - 1/2,
    and values at the ends go on beyond them.
    """
    place = np.clip((np.arange(length) + 0.5) * (of / length) - 0.5, 0, of - 1)
    below = np.minimum(place.astype(np.int64), max(0, of - 2))
    share = place - below
    matrix = np.zeros((length, of))
    matrix[np.arange(length), below] = 1 - share
    matrix[np.arange(length), np.minimum(below + 1, of - 1)] += share
    return matrix

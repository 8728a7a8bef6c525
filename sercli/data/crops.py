"""Where crops are cut from an image."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from sercli.data.loading import (
    RESAMPLING,
)


def cut(
    image: Image.Image, box: tuple[int, int, int, int], size: int, interpolation: str
) -> Image.Image:
    """The part (left, top, width, height) of an image, in pixels, resized to size × size."""
    x, y, w, h = box
    return image.crop((x, y, x + w, y + h)).resize((size, size), RESAMPLING[interpolation])


def random_crop(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    draws: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random-resized crop (left, top, width, height) in pixels, as torchvision draws it.

    Args:
        width, height: What there is to crop from, in pixels.
        area: Range of the share of the image's area.
        aspect: Range of width / height, log-uniform.
        draws: Source of randomness.
    """
    log_low, log_high = (math.log(a) for a in aspect)
    for _ in range(10):
        target = width * height * draws.uniform(*area)
        ratio = math.exp(draws.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h
    low, high = aspect
    ratio = min(max(width / height, low), high)
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


_UNIT = 1 << 16


def shared_crop(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    draws: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A crop drawn on a unit square: images of any sizes get the same shares of their sides."""
    box = random_crop(_UNIT, _UNIT, area=area, aspect=aspect, draws=draws)
    x, y, w, h = (round(b * s / _UNIT) for b, s in zip(box, (width, height) * 2, strict=True))
    x, y = min(x, width - 1), min(y, height - 1)
    return x, y, min(max(1, w), width - x), min(max(1, h), height - y)


def central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side

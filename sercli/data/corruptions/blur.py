"""The blurs of ImageNet-C. Each makes levels [S, S, 3] of its task."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions import pixels
from sercli.data.corruptions.pixels import Levels, Task


def gaussian_blur(task: Task) -> Levels:
    sigma = task.pick(1, 2, 3, 4, 6)
    return pixels.gaussian_blur(task.levels, sigma * task.scale)


def defocus_blur(task: Task) -> Levels:
    """A disc for each point, as a lens that is out of focus makes it."""
    radius, softness = task.pick((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    kernel = _disc(radius * task.scale, softness, taps=3 if radius <= 8 else 5)
    return pixels.convolve(task.levels, kernel)


@lru_cache(maxsize=16)
def _disc(radius: float, softness: float, *, taps: int) -> NDArray[np.float64]:
    """A disc of sum 1, its edge blurred by a Gaussian of `softness` pixels cut to `taps`."""
    # Room for radius 8 at least, as published: a larger kernel's rim is cut, a smaller one's not.
    reach = max(8, int(np.ceil(radius)))
    steps = np.arange(-reach, reach + 1)
    disc = (np.add.outer(steps**2, steps**2) <= radius**2).astype(np.float64)
    disc /= disc.sum()
    edge = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / softness**2)
    edge /= edge.sum()
    padded = np.pad(disc, taps // 2, mode="reflect")
    soft = np.zeros_like(disc)
    for i, j in product(range(taps), repeat=2):
        soft += edge[i] * edge[j] * padded[i : i + len(disc), j : j + len(disc)]
    soft.setflags(write=False)
    return soft


def glass_blur(task: Task) -> Levels:
    """Pixels take the place of near ones, between two Gaussian blurs.

    The published program means to swap pixels, but its assignment copies one over the other and
    loses the second. The published files are what it made, so this copies too.
    """
    sigma, reach, rounds = task.pick((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    reach = max(1, round(reach * task.scale))
    levels = pixels.gaussian_blur(task.levels, sigma * task.scale)
    side = len(levels)
    lines = np.arange(side - reach, reach, -1)
    targets = (lines[:, None] * side + lines).ravel()
    taken_from = list(range(side * side))
    for _ in range(rounds):
        moves = task.random.integers(-reach, reach, (2, targets.size))
        origins = targets + moves[0] * side + moves[1]
        # One after another, as a later copy may take what an earlier one has left.
        for target, origin in zip(targets.tolist(), origins.tolist(), strict=True):
            taken_from[target] = taken_from[origin]
    shuffled = np.floor(levels).reshape(-1, 3)[taken_from].reshape(levels.shape)
    return pixels.gaussian_blur(shuffled, sigma * task.scale)


def motion_blur(task: Task) -> Levels:
    radius, sigma = task.pick((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    return pixels.motion_blur(
        task.levels,
        radius=max(1, round(radius * task.scale)),
        sigma=sigma * task.scale,
        degrees=task.random.uniform(-45, 45),
    )


def zoom_blur(task: Task) -> Levels:
    """The mean of the picture and of enlargements of its middle."""
    most, step = task.pick((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    levels = task.levels
    total = levels.copy()
    factors = np.arange(1, most, step)  # its rounding decides how many: part of the definition
    for factor in factors.tolist():
        total += pixels.clipped_zoom(levels, factor)
    return total / np.float32(len(factors) + 1)

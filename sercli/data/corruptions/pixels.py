"""What the corruptions share: their task, and blurs, resampling and noise in NumPy.

The operations add in a fixed order and call no BLAS, whose sums depend on its number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.float32]  # [H, W] or [H, W, 3], in 0…255 unless said otherwise

PUBLISHED_SIDE = 224

_T = TypeVar("_T")


@dataclass(frozen=True)
class Task:
    """A picture to corrupt.

    Attributes:
        image: RGB and square.
        severity: 1…5.
        random: All randomness.
    """

    image: Image.Image
    severity: int
    random: np.random.Generator

    @property
    def side(self) -> int:
        return self.image.width

    @property
    def scale(self) -> float:
        """What lengths are multiplied by: they are given for pictures of 224 pixels."""
        return self.side / PUBLISHED_SIDE

    @property
    def levels(self) -> Levels:
        """[S, S, 3] in 0…255, a copy."""
        return np.array(self.image, np.float32)

    def pick(self, *strengths: _T) -> _T:
        """The strength of this severity, of five."""
        return strengths[self.severity - 1]


def gaussian_blur(levels: Levels, sigma: float) -> Levels:
    """Blur with a Gaussian of `sigma` pixels, cut at 4 sigma; the border is continued."""
    radius = int(4 * sigma + 0.5)
    weights = _gaussian(radius, sigma)
    for axis in (0, 1):
        padded = _pad(levels, radius, "edge", axes=(axis,))
        size = levels.shape[axis]
        blurred = weights[radius] * _slice(padded, axis, radius, size)
        for k in range(1, radius + 1):
            pair = _slice(padded, axis, radius - k, size) + _slice(padded, axis, radius + k, size)
            pair *= weights[radius + k]
            blurred += pair
        levels = blurred
    return levels


def smooth_field(field: Levels, sigma: float) -> Levels:
    """Blur [S, S] with a Gaussian cut at 3 sigma, which may be wider than the field.

    The border is mirrored (…b a | a b…), so that the field has period 2S: a product of spectra.
    """
    side = len(field)
    radius = int(3 * sigma + 0.5)
    kernel = np.zeros(2 * side)
    np.add.at(kernel, np.arange(-radius, radius + 1) % (2 * side), _gaussian(radius, sigma))
    spectrum = np.fft.fft(kernel).real  # the kernel is even
    mirrored = np.pad(field, ((0, side), (0, side)), mode="symmetric")
    product = np.fft.rfft2(mirrored) * spectrum[:, None] * spectrum[: side + 1]
    return np.fft.irfft2(product, s=mirrored.shape)[:side, :side].astype(np.float32)


def convolve(levels: Levels, kernel: NDArray[np.float64]) -> Levels:
    """Correlate each channel with a square kernel of odd side; the border is mirrored (…b | a b…).

    By spectra: the time does not depend on the kernel.
    """
    half = len(kernel) // 2
    padded = _pad(levels, half, "reflect", axes=(0, 1))
    height, width = levels.shape[:2]
    # Valid positions need no room for the wrap-around; multiples of 32 transform fast.
    period = [-(-length // 32) * 32 for length in padded.shape[:2]]
    picture = np.fft.rfft2(padded, s=period, axes=(0, 1))
    filter_ = np.conj(np.fft.rfft2(kernel, s=period))
    if levels.ndim == 3:
        filter_ = filter_[..., None]
    found = np.fft.irfft2(picture * filter_, s=period, axes=(0, 1))
    return found[:height, :width].astype(np.float32)


def box_blur(levels: Levels) -> Levels:
    """Mean of 3 × 3; the border is mirrored (…b | a b…)."""
    # The sum is divided once, so that the mean of equal whole numbers is that number.
    return correlate_3x3(levels, np.ones((3, 3))) / np.float32(9)


def correlate_3x3(levels: Levels, kernel: NDArray[np.float64]) -> Levels:
    """Correlate [H, W] with a 3 × 3 kernel; the border is mirrored (…b | a b…)."""
    padded = _pad(levels, 1, "reflect", axes=(0, 1))
    height, width = levels.shape
    total = np.zeros((height, width), np.float32)
    for (i, j), weight in np.ndenumerate(kernel):
        total += np.float32(weight) * padded[i : i + height, j : j + width]
    return total


def motion_blur(levels: Levels, *, radius: int, sigma: float, degrees: float) -> Levels:
    """Trail each pixel along a line, as ImageMagick 6.9's MotionBlur does.

    Args:
        levels: [H, W] or [H, W, 3], whole numbers.
        radius: The trail has 2·radius + 1 pixels; it leads to one side.
        sigma: How fast the trail fades: of the half Gaussian that weighs it, in pixels.
        degrees: The line's direction.

    Returns:
        Whole numbers: ImageMagick rounds to 16 bits (257 a level), and its files of 8 bits have the
        level that this lies in.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.deg2rad(degrees)
    rows = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
    columns = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
    reach = steps[-1]
    padded = _pad(levels, int(reach), "edge", axes=(0, 1))
    height, width = levels.shape[:2]
    total = np.zeros_like(levels, np.float32)
    for row, column, weight in zip(rows + reach, columns + reach, weights, strict=True):
        total += np.float32(weight) * padded[row : row + height, column : column + width]
    stored: Levels = np.floor(total + np.float32(0.5 / 257))
    return stored


def clipped_zoom(levels: Levels, factor: float) -> Levels:
    """The middle of a square picture, enlarged `factor` ≥ 1 times bilinearly to its full side."""
    side = len(levels)
    inner = int(np.ceil(side / factor))
    start = (side - inner) // 2
    enlarged = round(inner * factor)
    first = (enlarged - side) // 2
    position = (first + np.arange(side)) * ((inner - 1) / max(1, enlarged - 1))
    low = np.minimum(position.astype(int), inner - 1)
    high = np.minimum(low + 1, inner - 1)
    share = (position - low).astype(np.float32)
    for axis in (0, 1):
        near = levels.take(start + low, axis)
        far = levels.take(start + high, axis)
        far -= near
        far *= share.reshape([-1 if k == axis else 1 for k in range(levels.ndim)])
        near += far
        levels = near
    return levels


def sample(
    levels: Levels,
    rows: NDArray[np.floating],
    columns: NDArray[np.floating],
    *,
    border: Literal["reflect", "symmetric"],
) -> Levels:
    """Read [H, W, 3] bilinearly at positions [H', W'], in pixels.

    Outside, the picture is mirrored: without repeating the border pixel ("reflect"), or with.
    """
    height, width, channels = levels.shape
    flat = levels.reshape(-1, channels)
    row, column = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - row).astype(np.float32), (columns - column).astype(np.float32)
    total = np.zeros((*rows.shape, channels), np.float32)
    for i, row_share in ((0, 1 - down), (1, down)):
        start = _mirrored(row + i, height, border) * width
        for j, column_share in ((0, 1 - right), (1, right)):
            part = flat[start + _mirrored(column + j, width, border)]
            part *= (row_share * column_share)[..., None]
            total += part
    return total


def plasma(side: int, decay: float, random: np.random.Generator) -> Levels:
    """A cloudy field [side, side] in 0…1 by the diamond-square algorithm, periodic.

    Args:
        side: A power of two.
        decay: What the amplitude's root is divided by at each halving of the scale.
        random: Where the noise comes from.
    """
    heights = np.zeros((side, side))
    reach, step = 100.0, side
    while step >= 2:
        half = step // 2

        def noise(like: NDArray[np.float64], reach: float = reach) -> NDArray[np.float64]:
            return reach * random.uniform(-reach, reach, like.shape)

        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)  # pairs that lie one above the other
        columns = corners + np.roll(corners, -1, axis=1)
        centres = (rows + np.roll(rows, -1, axis=1)) / 4 + noise(corners)
        heights[half::step, half::step] = centres
        across = (columns + centres + np.roll(centres, 1, axis=0)) / 4 + noise(corners)
        down = (rows + centres + np.roll(centres, 1, axis=1)) / 4 + noise(corners)
        heights[::step, half::step] = across
        heights[half::step, ::step] = down
        reach, step = reach / decay, half
    heights -= heights.min()
    field: Levels = (heights / heights.max()).astype(np.float32)
    return field


def power_noise(side: int, exponent: float, random: np.random.Generator) -> Levels:
    """Noise [side, side] with amplitudes |f|^-exponent, of mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((side, side))) * frequency**-exponent
    field = np.fft.irfft2(spectrum, s=(side, side))
    noise: Levels = (field / field.std()).astype(np.float32)
    return noise


def canny_edges(levels: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    """Edges of [H, W] by Canny's detector, as OpenCV's `Canny` with 3 × 3 kernels decides.

    Args:
        levels: The picture; its border is continued.
        low, high: Slopes, |∂x| + |∂y| by Sobel's kernels. Crests of the slope above `high` are
            edges, and those above `low` that lead to one.
    """
    whole = np.pad(levels.astype(np.int64), 1, mode="edge")
    up, down, left, right = whole[:-2], whole[2:], whole[:, :-2], whole[:, 2:]
    across, along = right - left, down - up
    x = across[:-2] + 2 * across[1:-1] + across[2:]
    y = along[:, :-2] + 2 * along[:, 1:-1] + along[:, 2:]
    slope = np.pad(np.abs(x) + np.abs(y), 1)  # none outside
    centre = slope[1:-1, 1:-1]

    def at(row: int, column: int) -> NDArray[np.int64]:
        height, width = centre.shape
        return slope[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    # Of the four directions, the one nearest to the slope's: a crest is above both neighbours
    # there (of two equal ones the first is). OpenCV's tan 22.5°, in 2¹⁵ths.
    tangent = int(0.4142135623730950488 * (1 << 15) + 0.5)
    flat, steep = np.abs(x) * tangent, np.abs(y) << 15
    level, upright = steep < flat, steep > flat + (np.abs(x) << 16)
    falling = (x ^ y) < 0
    crest = np.select(
        [level, upright, falling],
        [
            (centre > at(0, -1)) & (centre >= at(0, 1)),
            (centre > at(-1, 0)) & (centre >= at(1, 0)),
            (centre > at(-1, 1)) & (centre > at(1, -1)),
        ],
        (centre > at(-1, -1)) & (centre > at(1, 1)),
    )
    possible = crest & (centre > low)
    edges = possible & (centre > high)
    while True:
        near = np.pad(edges, 1)
        near = near[:-2] | near[1:-1] | near[2:]
        grown = (near[:, :-2] | near[:, 1:-1] | near[:, 2:]) & possible
        if (grown == edges).all():
            return edges
        edges = grown


def distance_to(mask: NDArray[np.bool_], at_most: int) -> Levels:
    """Distance [H, W] in pixels to the nearest pixel of `mask`, cut at `at_most`.

    Along king's and knight's moves of lengths 1, 1.4 and 2.1969 (Borgefors, 1986), in 2⁻¹⁶ths of a
    pixel, as OpenCV's `distanceTransform` with a 5 × 5 mask measures (OpenCV 5 in float32).
    """
    one, diagonal, knight = (round(length * (1 << 16)) for length in (1, 1.4, 2.1969))
    height, width = mask.shape
    far = at_most << 16
    distance = np.pad(np.where(mask, 0, far), 2, constant_values=far)
    steps = one * np.arange(width + 4)
    for turned in (distance, distance[::-1, ::-1]):  # down and right, up and left
        for row in range(2, height + 2):
            two, last, here = turned[row - 2], turned[row - 1], turned[row, 2:-2]
            for moves, cost in (
                ((last[2:-2],), one),
                ((last[1:-3], last[3:-1]), diagonal),
                ((two[1:-3], two[3:-1], last[:-4], last[4:]), knight),
            ):
                for move in moves:
                    np.minimum(here, move + cost, out=here)
            # Runs along the row: d[j] = min over i ≤ j of d[i] + j − i.
            whole = turned[row]
            whole[:] = np.minimum.accumulate(whole - steps) + steps
            whole[:2] = whole[-2:] = far
    found: Levels = (distance[2:-2, 2:-2] / np.float64(1 << 16)).astype(np.float32)
    return found


def equalised(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Histogram equalisation of [H, W]; the darkest level present becomes 0."""
    counts = np.bincount(levels.ravel(), minlength=256)
    counts[np.flatnonzero(counts)[0]] = 0
    if not counts.any():
        return levels
    table = np.rint(np.cumsum(counts) * (255 / counts.sum())).astype(np.uint8)
    spread: NDArray[np.uint8] = table[levels]
    return spread


def _gaussian(radius: int, sigma: float) -> NDArray[np.float32]:
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    shares: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return shares


def _pad(
    levels: Levels, by: int, mode: Literal["edge", "reflect"], *, axes: Sequence[int]
) -> Levels:
    return np.pad(levels, [(by, by) if k in axes else (0, 0) for k in range(levels.ndim)], mode)


def _slice(levels: Levels, axis: int, start: int, size: int) -> Levels:
    return levels[start : start + size] if axis == 0 else levels[:, start : start + size]


def _mirrored(index: NDArray[np.int_], size: int, border: str) -> NDArray[np.int_]:
    """Indices of a mirrored axis back into 0…size-1."""
    if border == "reflect":
        index = np.abs(index) % max(1, 2 * (size - 1))
        return np.minimum(index, 2 * (size - 1) - index)
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)

"""The classes of the embedded world, as signed distances, and the textures their objects wear.

Coordinates are the object's own: u to the right, v up, the outline within the unit circle. A
signed distance is negative inside; its slope is 1 near the outline, so that a clipped ramp a pixel
wide draws a smooth edge. All ten remain distinct under any turn, mirroring and mild stretching.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # float32 throughout: no float64 scalar may enter a formula


def _circle(u: Field, v: Field, radius: float) -> Field:
    return np.hypot(u, v) - radius


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _arrow(u: Field, v: Field) -> Field:
    # The head's edges run from the tip (0.95, 0) to (0, ±0.7); their unit normal is (0.593, 0.805).
    edge = 0.593 * (u - 0.95) + 0.805 * np.abs(v)
    return np.minimum(np.maximum(-u, edge), _box(u + 0.45, v, 0.5, 0.22))


def _crescent(u: Field, v: Field) -> Field:
    return np.maximum(_circle(u, v, 0.95), -_circle(u - 0.5, v, 0.72))


def _cross(u: Field, v: Field) -> Field:
    return np.minimum(_box(u, v, 0.95, 0.28), _box(u, v, 0.28, 0.95))


def _disc(u: Field, v: Field) -> Field:
    return _circle(u, v, 0.85)


def _dumbbell(u: Field, v: Field) -> Field:
    ends = _circle(np.abs(u) - 0.56, v, 0.4)
    return np.minimum(ends, _box(u, v, 0.56, 0.15))


def _heart(u: Field, v: Field) -> Field:
    # A square on its corner with a disc on each upper edge, moved down to the circle's middle.
    v = v + 0.08
    a, b = (v + u) * math.sqrt(0.5), (v - u) * math.sqrt(0.5)
    half = 0.54
    lobes = np.minimum(_circle(a - half, b, 0.54), _circle(a, b - half, 0.54))
    return np.minimum(_box(a, b, 0.54, 0.54), lobes)


def _ring(u: Field, v: Field) -> Field:
    ring: Field = np.abs(_circle(u, v, 0.7)) - 0.22
    return ring


def _square(u: Field, v: Field) -> Field:
    return _box(u, v, 0.72, 0.72)


def _star(u: Field, v: Field) -> Field:
    # Fold the plane to half a point of the star: a straight edge from the tip at angle 0 to the
    # notch at angle 36°.
    angle = np.abs(np.mod(np.arctan2(v, u), 0.4 * math.pi) - 0.2 * math.pi)
    angle = 0.2 * math.pi - angle
    radius = np.hypot(u, v)
    notch = 0.42
    along, across = notch * math.cos(0.2 * math.pi) - 1, notch * math.sin(0.2 * math.pi)
    length = math.hypot(along, across)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    edge: Field = (across * (x - 1) - along * y) / length
    return edge


def _triangle(u: Field, v: Field) -> Field:
    slanted = math.sqrt(0.75) * np.abs(u) + 0.5 * v
    return np.maximum(slanted, -v) - 0.5


OUTLINES: dict[str, Callable[[Field, Field], Field]] = {
    "arrow": _arrow,
    "crescent": _crescent,
    "cross": _cross,
    "disc": _disc,
    "dumbbell": _dumbbell,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
# Sorted, as folders are: written as files, the world has the labels that it has in memory.
CLASSES = tuple(sorted(OUTLINES))
# As the published sets have them: fewer classes than the world, and not the same ones.
R_CLASSES = ("arrow", "cross", "disc", "heart", "ring", "star")
A_CLASSES = ("crescent", "dumbbell", "heart", "star", "triangle")


def _ramp(wave: Field) -> Field:
    """A wave in -1…1 to a two-tone pattern in 0…1 with soft edges."""
    pattern: Field = np.clip(2.5 * wave + 0.5, 0, 1)
    return pattern


def _plain(p: Field, _q: Field) -> Field:
    return np.zeros_like(p)


def _gradient(p: Field, _q: Field) -> Field:
    pattern: Field = np.clip(0.5 + 0.09 * p, 0, 1)
    return pattern


def _stripes(p: Field, _q: Field) -> Field:
    return _ramp(np.sin(p))


def _fine_stripes(p: Field, _q: Field) -> Field:
    return _ramp(np.sin(2.5 * p))


def _zigzag(p: Field, q: Field) -> Field:
    return _ramp(np.sin(p + 1.2 * np.abs(np.mod(q, 3.0) - 1.5)))


def _rings(p: Field, q: Field) -> Field:
    return _ramp(np.sin(1.2 * np.hypot(p, q)))


def _checks(p: Field, q: Field) -> Field:
    return _ramp(np.sin(p * 0.8) * np.sin(q * 0.8))


def _fine_checks(p: Field, q: Field) -> Field:
    return _ramp(np.sin(2 * p) * np.sin(2 * q))


def _dots(p: Field, q: Field) -> Field:
    return _ramp((np.cos(p) + np.cos(q)) * 0.5 - 0.35)


def _fine_dots(p: Field, q: Field) -> Field:
    return _ramp((np.cos(2.2 * p) + np.cos(2.2 * q)) * 0.5 - 0.35)


Texture = Callable[[Field, Field], Field]

# What each class wears. A texture takes the object's coordinates in radians of the pattern's wave
# and gives the share of the second colour, in 0…1. It is seen in every crop of the object, so that
# instance discrimination finds the classes within minutes; outlines alone take it far longer.
TEXTURES: dict[str, Texture] = {
    "arrow": _plain,
    "crescent": _gradient,
    "cross": _stripes,
    "disc": _checks,
    "dumbbell": _dots,
    "heart": _fine_stripes,
    "ring": _fine_checks,
    "square": _rings,
    "star": _zigzag,
    "triangle": _fine_dots,
}


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x, y, width, height) in pixels of what is True in a mask [H, W]; zeros where nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return (0, 0, 0, 0)
    x, y = int(columns[0]), int(rows[0])
    return (x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)

"""What is in a picture of the embedded world: numbers, of no size.

An object is drawn from one row of numbers, `Draws`, whatever its class and whatever the setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TILT = 2 * np.pi * 0.06  # radians: objects, and the patterns they wear, stand nearly upright
ASPECT = 1.25  # at most this much wider than high, or the reverse
OCTAVES = ((4, 0.35), (9, 0.15))  # the background: knots a side, and weight
# An object's radius in half sides of the picture: its outline spans about this share of the side.
_RADIUS = (0.70, 0.92)
_WAVE = (6.0, 10.0)  # radians of a texture's wave per object radius: 2 to 3 periods across


@dataclass(frozen=True)
class Thing:
    """An object: `to_object` [2, 2] takes offsets from `center` (half sides) to its (u, v).

    Attributes:
        name: Its outline and the texture it wears.
        label: Its class, as an index into the setting's objects.
        center: [2], in half sides from the middle, to the right and down.
        to_object: [2, 2].
        radius: In half sides; the outline lies within `ASPECT` ** 0.5 of it.
        to_wave: [2, 2], from (u, v) to radians of the texture's wave.
        phase: [2].
        colours: [2, 3], in 0…1.
    """

    name: str
    label: int
    center: NDArray[np.float64]
    to_object: NDArray[np.float64]
    radius: float
    to_wave: NDArray[np.float64]
    phase: NDArray[np.float64]
    colours: NDArray[np.float64]


@dataclass(frozen=True)
class Ground:
    """What lies behind the objects, and the light on all.

    Attributes:
        background: [2, 3], two greys in 0…1.
        knots: An octave each, [k, k] in -1…1.
        light: [2], gain per half side to the right and down.
    """

    background: NDArray[np.float64]
    knots: tuple[NDArray[np.float64], ...]
    light: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A picture before it has pixels.

    Attributes:
        label: Its class, as an index into the setting's classes.
        things: At least one; later ones lie in front of earlier ones.
        ground: What is around them.
    """

    label: int
    things: list[Thing]
    ground: Ground


def draw_ground(random: np.random.Generator) -> Ground:
    """Draw what is around the objects."""
    background = _greys(random.random(2))
    knots = tuple(random.uniform(-1, 1, (k, k)) for k, _ in OCTAVES)
    angle, strength = random.random(2) * (2 * np.pi, 0.35)
    return Ground(background, knots, strength * np.array([np.cos(angle), np.sin(angle)]))


def _greys(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """The background's two greys [2, 3] in 0…1, a dark and a light one."""
    levels = np.array([0.35, 0.65]) + 0.12 * (draws - 0.5)
    return np.repeat(levels[:, None], 3, axis=1)


class Draws(NamedTuple):
    """What an object's pose and dress are made of; in 0…1, if nothing else is said.

    A fixed number of draws whatever the class: nothing but its look can tell of it.

    Attributes:
        size, shrink: How large it is.
        turn, aspect, mirror: How it stands.
        twist, wave: How its texture lies, and how fine that is.
        hue, swap: Its colours, and which is the first of them.
        place: [2] in -1…1, where it is within its room.
        phase: [2] in -π…π, where its texture begins.
    """

    size: float
    shrink: float
    turn: float
    aspect: float
    twist: float
    wave: float
    mirror: float
    hue: float
    swap: float
    place: NDArray[np.float64]
    phase: NDArray[np.float64]


def draw_dress(random: np.random.Generator) -> Draws:
    """Draw an object's numbers."""
    size, shrink, turned, aspect, twist, wave, mirror, hue, swap = random.random(9).tolist()
    place, phase = random.uniform(-1, 1, 2), random.uniform(-np.pi, np.pi, 2)
    return Draws(size, shrink, turned, aspect, twist, wave, mirror, hue, swap, place, phase)


def scatter(
    random: np.random.Generator,
    names: tuple[str, ...],
    objects: int,
    *,
    first: int,
    hues: tuple[float, ...] | None = None,
) -> list[Thing]:
    """Draw objects all over the picture, each in a cell of its own.

    Args:
        random: What they are drawn from.
        names: The classes of objects.
        objects: How many; several are smaller, of any class, and overlap a little.
        first: The first one's class.
        hues: That of each class, in 0…1; None: any of four.
    """
    cells = int(np.ceil(np.sqrt(objects)))
    places = random.permutation(cells * cells)[:objects].tolist()
    labels = [first, *random.integers(len(names), size=objects - 1).tolist()]
    things = []
    for label, place in zip(labels, places, strict=True):
        draws = draw_dress(random)
        hue = np.floor(4 * draws.hue) / 4 if hues is None else hues[label]
        draws = draws._replace(hue=float(hue))
        center, radius = _in_cell(draws, (place % cells, place // cells), cells)
        things.append(thing(names[label], label, draws, center=center, radius=radius))
    return things


def _in_cell(draws: Draws, cell: tuple[int, int], cells: int) -> tuple[NDArray[np.float64], float]:
    """Centre and radius of an object in one cell of a `cells` x `cells` division."""
    radius = (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * draws.size) / cells
    stray = 0.0
    if cells > 1:  # a detection set has objects of many sizes, and some that hide a part of others
        radius *= 0.5 + 0.5 * draws.shrink
        stray = 0.3 / cells
    reach = min(1 / cells, radius * 1.1)
    center = (2 * np.array(cell) + 1) / cells - 1 + draws.place * (1 / cells - reach + stray)
    return np.clip(center, reach - 1, 1 - reach), radius  # inside the picture, if not its cell


def thing(
    name: str, label: int, draws: Draws, *, center: NDArray[np.float64], radius: float
) -> Thing:
    """An object of numbers drawn for it, where it is, as large as it is."""
    stretch = ASPECT ** (draws.aspect - 0.5)  # u by this, v by its inverse: the area stays
    flip = np.array([-1.0 if draws.mirror < 0.5 else 1.0, -1.0])  # rows run down, v runs up
    stretched = np.array([stretch, 1 / stretch])
    upright = turn(TILT * (2 * draws.turn - 1))
    return Thing(
        name=name,
        label=label,
        center=center,
        to_object=np.diag(1 / (stretched * radius)) @ upright @ np.diag(flip),
        radius=radius,
        to_wave=(_WAVE[0] + (_WAVE[1] - _WAVE[0]) * draws.wave)
        * turn(TILT * (2 * draws.twist - 1)),
        phase=draws.phase,
        colours=_two_tones(draws.hue, dark_first=draws.swap < 0.5),
    )


def turn(angle: float) -> NDArray[np.float64]:
    """The matrix [2, 2] that turns by an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@lru_cache(maxsize=32)
def _two_tones(hue: float, *, dark_first: bool) -> NDArray[np.float64]:
    """A light and a dark tone [2, 3] in 0…1 of a hue."""
    ramp = np.clip(np.abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    light, dark = 0.95 * (1 - 0.55 * (1 - ramp)), 0.35 * (1 - 0.7 * (1 - ramp))
    tones = np.stack([dark, light] if dark_first else [light, dark])
    tones.setflags(write=False)
    return tones

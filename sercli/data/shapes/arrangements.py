"""The setting `shapes:scenes`: two sorts of objects a picture, and how they lie to each other.

Eight objects stand around the middle, four of each of two sorts. A picture's class is *what* they
are, a pair of sorts, and *where* they are, one of six arrangements; every pair comes with every
arrangement equally often, and each picture has four and four. So who sees nothing but which objects
there are, wherever they lie, is right one time in six at best, and who sees nothing but how they
lie one time in ten.

No quarter turn and no mirroring makes one arrangement another, so that an encoder that is to be
invariant to them is not asked for what it must forget. Colours, texture, pose, ground and light say
nothing of how objects lie.
"""

from __future__ import annotations

import itertools

import numpy as np

from sercli.data.shapes.scene import Ground, Scene, draw_dress, draw_ground, scatter, thing, turn

# Each has an outline, a texture and a hue of its own.
SORTS = ("cross", "disc", "ring", "square", "star")
HUES = tuple(sort / len(SORTS) for sort in range(len(SORTS)))
# Where the first sort of a pair lies, by the alphabet; the second lies at the other four places.
ARRANGEMENTS = {
    "arch": ("NW", "NE", "E", "W"),
    "corners": ("NE", "SE", "SW", "NW"),
    "edges": ("N", "E", "S", "W"),
    "hook": ("NE", "E", "SE", "S"),
    "stairs": ("NW", "N", "E", "SE"),
    "tee": ("N", "SE", "S", "SW"),
}
# The eight places, in units of the distance of N from the middle: to the right, and down.
PLACES = {
    "N": (0, -1),
    "NE": (1, -1),
    "E": (1, 0),
    "SE": (1, 1),
    "S": (0, 1),
    "SW": (-1, 1),
    "W": (-1, 0),
    "NW": (-1, -1),
}

_DISTANCE = (0.58, 0.66)  # of N from the middle, half sides
_RADIUS = (0.33, 0.39)  # of an object, half sides
_SHIFT = 0.04  # of the middle, half sides at most
_STRAY = 0.03  # of an object from its place, half sides at most
_TILT = 2 * np.pi * 0.024  # of the whole, radians at most: arrangements stand nearly upright
_CONTRAST = 0.5  # of the ground and its light: what lies behind must not tell pictures apart


def _classes() -> dict[str, tuple[tuple[int, int], str]]:
    """Class → the pair of sorts and the arrangement, sorted by name as folders are."""
    pairs = list(itertools.combinations(range(len(SORTS)), 2))
    named = {
        f"{SORTS[first]}-{SORTS[second]}-{where}": ((first, second), where)
        for first, second in pairs
        for where in ARRANGEMENTS
    }
    return dict(sorted(named.items()))


_MEANING = _classes()
CLASSES = tuple(_MEANING)
# As the published sets have them: fewer classes than there are, and not the same ones.
R_CLASSES = tuple(name for name, (pair, _) in _MEANING.items() if SORTS.index("star") not in pair)
A_CLASSES = tuple(name for name, (_, where) in _MEANING.items() if where not in ("hook", "stairs"))


def draw_arranged(random: np.random.Generator, index: int) -> Scene:
    """Draw the scene of a picture, whose class is `index` modulo the number of classes."""
    label = index % len(CLASSES)
    pair, where = _MEANING[CLASSES[label]]
    ground = draw_ground(random)
    distance, tilt, mirror = random.random(3).tolist()
    middle = _SHIFT * random.uniform(-1, 1, 2)
    frame = turn(_TILT * (2 * tilt - 1)) * (_DISTANCE[0] + (_DISTANCE[1] - _DISTANCE[0]) * distance)
    if mirror < 0.5:
        frame = frame @ np.diag([-1.0, 1.0])
    things = []
    for name, place in PLACES.items():
        draws = draw_dress(random)
        center = middle + frame @ np.array(place) + _STRAY * draws.place
        radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * draws.size
        sort = pair[name not in ARRANGEMENTS[where]]
        dressed = draws._replace(hue=HUES[sort])
        things.append(thing(SORTS[sort], sort, dressed, center=center, radius=radius))
    return Scene(label, things, _dimmed(ground))


def draw_scattered(random: np.random.Generator, index: int, objects: int) -> Scene:
    """Draw a scene of so many objects of any sort, wherever they lie: for detection."""
    ground = _dimmed(draw_ground(random))
    first = index % len(SORTS)
    return Scene(first, scatter(random, SORTS, objects, first=first, hues=HUES), ground)


def _dimmed(ground: Ground) -> Ground:
    levels = 0.5 + _CONTRAST * (ground.background - 0.5)
    return Ground(levels, ground.knots, _CONTRAST * ground.light)

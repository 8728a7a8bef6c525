"""How a scene of the embedded world looks: pixels, in three styles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sercli.data.shapes.outlines import OUTLINES, TEXTURES, Field, box_around
from sercli.data.shapes.scene import ASPECT, OCTAVES, Ground, Scene, Thing

Style = Literal["photo", "rendition", "sketch"]

_WOBBLE = {"photo": 0.0, "rendition": 0.05, "sketch": 0.03}  # of an object's radius: a hand's line
_REACH = 1.15 * ASPECT**0.5  # of an object's radius: no outline is seen beyond, even a wobbly one


@dataclass(frozen=True)
class RenderedObject:
    """One object of a picture.

    Attributes:
        label: Index into the setting's objects.
        box: x, y, width, height in pixels: the smallest box around `mask`.
        mask: bool [H, W], the pixels at which the object is seen.
    """

    label: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


class Painting:
    """A scene in pixels.

    Args:
        scene: What is painted.
        size: Side in pixels.
        style: How.
    """

    def __init__(self, scene: Scene, size: int, *, style: Style) -> None:
        self._scene, self._size, self._style = scene, size, style
        self._seen = [_look(thing, size, wobble=_WOBBLE[style]) for thing in scene.things]

    def image(self) -> NDArray[np.uint8]:
        """The picture, [H, W, 3]."""
        painter = _PAINTERS[self._style]
        levels = np.clip(painter(self._scene, self._seen, self._size), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))

    def objects(self) -> tuple[RenderedObject, ...]:
        """Classes, boxes and masks; what lies in front hides what lies behind."""
        hidden = np.zeros((self._size, self._size), np.bool_)
        found: list[RenderedObject] = []
        for thing, look in zip(reversed(self._scene.things), reversed(self._seen), strict=True):
            inside = np.zeros_like(hidden)
            inside[look.window] = look.cover > 0.5
            mask = inside & ~hidden
            hidden |= inside
            found.append(RenderedObject(thing.label, box_around(mask), mask))
        return tuple(reversed(found))


@dataclass(frozen=True)
class _Look:
    """An object in pixels of the window that it is seen in.

    Attributes:
        window: The window's rows and columns.
        cover: [h, w] in 0…1, the object's share of each pixel.
        outline: [h, w], signed distance to the outline in pixels, negative inside.
        pattern: [h, w] in 0…1, the share of its second colour.
    """

    window: tuple[slice, slice]
    cover: Field
    outline: Field
    pattern: Field


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Field, Field]:
    """Pixel centres in half sides, -1…1: x [1, W] to the right and y [H, 1] down."""
    steps = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    steps.setflags(write=False)
    return steps[None, :], steps[:, None]


@lru_cache(maxsize=32)
def _spline(size: int, knots: int) -> Field:
    """[size, knots] weights that blend values at evenly spaced knots without a kink."""
    position = np.linspace(0, knots - 1, size)
    near = np.minimum(position.astype(int), knots - 2)
    share = position - near
    share = share * share * (3 - 2 * share)
    weights = np.zeros((size, knots), np.float32)
    weights[np.arange(size), near] = 1 - share
    weights[np.arange(size), near + 1] = share
    weights.setflags(write=False)
    return weights


def _affine(matrix: NDArray[np.float64], offset: NDArray[np.float64], x: Field, y: Field) -> Field:
    """[2, H, W]: the two rows of matrix @ (x, y) + offset."""
    rows = matrix.astype(np.float32)
    shift = offset.astype(np.float32)
    return np.stack([rows[k, 0] * x + (rows[k, 1] * y + shift[k]) for k in range(2)])


def _window(thing: Thing, size: int) -> tuple[slice, slice]:
    """Rows and columns beyond which nothing of an object is seen, its drawn line included."""
    # The tip of a star is seen this much further off than its edges: 1 / sin of half its angle.
    reach = thing.radius * _REACH * size / 2 + 2.9 * max(1.0, 0.02 * size)
    (left, right), (top, bottom) = (
        (max(0, math.floor(middle - reach)), min(size, math.ceil(middle + reach)))
        for middle in ((thing.center + 1) * (size / 2)).tolist()
    )
    return slice(top, max(top, bottom)), slice(left, max(left, right))


def _look(thing: Thing, size: int, *, wobble: float) -> _Look:
    window = _window(thing, size)
    x, y = _grid(size)
    x, y = x[:, window[1]], y[window[0]]
    u, v = _affine(thing.to_object, -thing.to_object @ thing.center, x, y)
    p, q = _affine(thing.to_wave, thing.phase, u, v)
    if wobble:
        u, v = u + wobble * np.sin(p * 0.5), v + wobble * np.sin(q * 0.7)
    outline = OUTLINES[thing.name](u, v) * (thing.radius * size / 2)
    cover = np.clip(0.5 - outline, 0, 1)
    return _Look(window, cover, outline, TEXTURES[thing.name](p, q))


def _blend(colours: NDArray[np.float64], share: Field) -> Field:
    """[3, H, W] levels in 0…255: the first colour, and `share` of the second."""
    first, second = (255 * colours).astype(np.float32)[:, :, None, None]
    levels: Field = first + (second - first) * share
    return levels


def _noise(ground: Ground, size: int) -> Field:
    """[H, W] in 0…1, smooth and of low frequency."""
    total = np.zeros((size, size), np.float32)
    for (knots, weight), values in zip(OCTAVES, ground.knots, strict=True):
        basis = _spline(size, knots)
        total += basis @ (weight * values).astype(np.float32) @ basis.T
    noise: Field = np.clip(0.5 + 0.9 * total, 0, 1)
    return noise


def _lay(picture: Field, look: _Look, levels: Field | float, cover: Field) -> None:
    """Put `levels` over an object's window of `picture` in place, each pixel by its cover."""
    part = picture[:, *look.window]
    part += cover * (levels - part)


def _paint_photo(scene: Scene, seen: list[_Look], size: int) -> Field:
    picture = _blend(scene.ground.background, _noise(scene.ground, size))
    for thing, look in zip(scene.things, seen, strict=True):
        _lay(picture, look, _blend(thing.colours, look.pattern), look.cover)
    x, y = _grid(size)
    gain_x, gain_y = scene.ground.light.tolist()
    picture *= 1 + gain_x * x + gain_y * y
    return picture


def _paint_rendition(scene: Scene, seen: list[_Look], size: int) -> Field:
    """Few flat, saturated colours and a dark line around each object."""
    flat = np.round(_noise(scene.ground, size) * 3) / 3
    picture = _blend(scene.ground.background, flat)
    line = max(1.0, 0.02 * size)
    for thing, look in zip(scene.things, seen, strict=True):
        levels = _blend(_vivid(thing.colours), np.round(look.pattern * 2) / 2)
        _lay(picture, look, levels, look.cover)
        _lay(picture, look, 20.0, np.clip(line - np.abs(look.outline), 0, 1))
    return picture


def _vivid(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same hues, with the weakest channel at 0 and the strongest at its level or 0.8."""
    low, high = colours.min(axis=1, keepdims=True), colours.max(axis=1, keepdims=True)
    vivid: NDArray[np.float64] = (colours - low) / (high - low) * np.maximum(high, 0.8)
    return vivid


def _paint_sketch(scene: Scene, seen: list[_Look], size: int) -> Field:
    """Dark grey outlines on white, the texture as a faint shade."""
    picture = np.full((1, size, size), 255, np.float32)
    line = max(0.8, 0.012 * size)
    for thing, look in zip(scene.things, seen, strict=True):
        ink = 25 + 60 * float(thing.colours[0, 0])
        _lay(picture, look, 255 - 60 * look.pattern, look.cover)
        _lay(picture, look, ink, np.clip(line - np.abs(look.outline), 0, 1))
    return np.broadcast_to(picture, (3, size, size))


_PAINTERS: dict[Style, Callable[[Scene, list[_Look], int], Field]] = {
    "photo": _paint_photo,
    "rendition": _paint_rendition,
    "sketch": _paint_sketch,
}

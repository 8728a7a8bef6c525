"""The embedded world: one large textured object on a textured background, rendered with NumPy.

A picture is a function of (seed, split, index) alone, at any size: the same scene at 64 or at 224
pixels, in any order, in any process. Outline and texture tell the class; colour, background,
light and pose are drawn without regard to it. It is a demonstration and a test bed, made so that
instance discrimination learns its classes within minutes, and no benchmark.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.shapes.outlines import CLASSES, OUTLINES, TEXTURES, Field, box_around
from sercli.data.source import ImageSource
from sercli.errors import UserError

Style = Literal["photo", "rendition", "sketch"]

NAME = "shapes"  # what `--data` and recipes call it
NUM_IMAGES = {"train": 4096, "val": 1024}
_VERSION = 1  # another one draws other pictures from the same seed
_SIZES = (16, 4096)  # sides in pixels that can be rendered

# An object's radius in half sides of the picture: its outline spans about this share of the side.
_RADIUS = (0.70, 0.92)
_TILT = 2 * np.pi * 0.06  # radians: objects, and the patterns they wear, stand nearly upright
_ASPECT = 1.25  # at most this much wider than high, or the reverse
_WAVE = (6.0, 10.0)  # radians of a texture's wave per object radius: 2 to 3 periods across
_OCTAVES = ((4, 0.35), (9, 0.15))  # the background: knots a side, and weight


@dataclass(frozen=True)
class RenderedObject:
    """One object of a picture.

    Attributes:
        label: Index into `CLASSES`.
        box: x, y, width, height in pixels: the smallest box around `mask`.
        mask: bool [H, W], the pixels at which the object is seen.
    """

    label: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Rendered:
    """A picture and what is in it.

    Attributes:
        image: uint8 [H, W, 3].
        objects: At least one; later ones lie in front of earlier ones.
    """

    image: NDArray[np.uint8]
    objects: tuple[RenderedObject, ...]

    @property
    def label(self) -> int:
        """The first object's class."""
        return self.objects[0].label

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The first object's box."""
        return self.objects[0].box

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The first object's mask."""
        return self.objects[0].mask


class ShapesSource(ImageSource):
    """A split of the embedded world, rendered when read.

    Args:
        split: Its name; pictures of different splits have nothing in common.
        image_size: Side in pixels, 16…4096.
        num_images: At least one.
        seed: In 0…2^64-1.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(self, split: str, *, image_size: int, num_images: int, seed: int = 0) -> None:
        require_drawable(size=image_size, seed=seed)
        _require_within("number of images", num_images, 1, 2**32)
        self.name = NAME
        self.split = split
        self.classes = CLASSES
        self.labels = np.arange(num_images, dtype=np.int64) % len(CLASSES)
        self._image_size, self._seed = image_size, seed

    def load(self, index: int) -> Image.Image:
        index = self.position(index)
        return Image.fromarray(render(self._seed, self.split, index, self._image_size).image)

    def made_of(self) -> dict[str, object]:
        return {"seed": self._seed, "image_size": self._image_size, "world": _VERSION}

    def describe(self, index: int) -> str:
        return f"{NAME}/{self.identifier(index)}"

    def identifier(self, index: int) -> str:
        return f"{self.split}/{self.position(index)}"


def render(
    seed: int, split: str, index: int, size: int, *, objects: int = 1, style: Style = "photo"
) -> Rendered:
    """Render one picture.

    Args:
        seed: In 0…2^64-1.
        split: Any name; each names its own pictures.
        index: In 0…2^32-1. The first object's class is `index` modulo the number of classes.
        size: Side in pixels, 16…4096.
        objects: How many; several are smaller, of any class, and overlap a little.
        style: "photo"; "rendition", like a painting in few flat colours with dark outlines; or
            "sketch", dark grey lines on white. The scene is the same in every style.

    Returns:
        The picture with its objects' classes, boxes and masks.

    Raises:
        UserError: `size` or `seed` is out of range.
        ValueError: Another argument is.
    """
    require_drawable(size=size, seed=seed)
    if not 0 <= index < 2**32 or objects < 1:
        raise ValueError(f"index {index} is not in 0…2^32-1 or objects {objects} is not positive")
    if style not in get_args(Style):
        raise ValueError(f"style {style!r} is none of {get_args(Style)}")
    scene = _draw_scene(_generator(seed, split, index), index, objects)
    seen = [_look(thing, size, wobble=_WOBBLE[style]) for thing in scene.things]
    paint = {"photo": _paint_photo, "rendition": _paint_rendition, "sketch": _paint_sketch}[style]
    levels = np.clip(paint(scene, seen, size), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(levels.transpose(1, 2, 0))
    return Rendered(image, _objects(scene, seen))


def require_drawable(*, size: int, seed: int) -> None:
    """Refuse what cannot be rendered.

    Raises:
        UserError: `size` or `seed` is out of range.
    """
    _require_within("image size", size, *_SIZES)
    _require_within("seed", seed, 0, 2**64 - 1)


def _require_within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{what} {value} for the embedded world", f"it must be in {least}…{most}")


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Counter-based randomness: a key a picture, so that no picture depends on another."""
    key = np.array([seed, zlib.crc32(split.encode()) << 32 | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


# -- what is in a picture: numbers, of no size -------------------------------------------------


@dataclass(frozen=True)
class _Thing:
    """An object: `to_object` [2, 2] takes offsets from `center` (half sides) to its (u, v)."""

    label: int
    center: NDArray[np.float64]
    to_object: NDArray[np.float64]
    radius: float
    to_wave: NDArray[np.float64]  # [2, 2], from (u, v) to radians of the texture's wave
    phase: NDArray[np.float64]  # [2]
    colours: NDArray[np.float64]  # [2, 3], in 0…1


@dataclass(frozen=True)
class _Scene:
    things: list[_Thing]
    background: NDArray[np.float64]  # [2, 3], two greys in 0…1
    knots: tuple[NDArray[np.float64], ...]  # an octave each, [k, k] in -1…1
    light: NDArray[np.float64]  # [2], gain per half side to the right and down


def _draw_scene(random: np.random.Generator, index: int, objects: int) -> _Scene:
    background = _greys(random.random(2))
    knots = tuple(random.uniform(-1, 1, (k, k)) for k, _ in _OCTAVES)
    angle, strength = random.random(2) * (2 * np.pi, 0.35)
    cells = int(np.ceil(np.sqrt(objects)))
    places = random.permutation(cells * cells)[:objects].tolist()
    labels = [index % len(CLASSES), *random.integers(len(CLASSES), size=objects - 1).tolist()]
    things = [
        _draw_thing(random, label, (place % cells, place // cells), cells)
        for label, place in zip(labels, places, strict=True)
    ]
    return _Scene(things, background, knots, strength * np.array([np.cos(angle), np.sin(angle)]))


def _draw_thing(
    random: np.random.Generator,
    label: int,
    cell: tuple[int, int],
    cells: int,
) -> _Thing:
    """Draw an object's pose and dress; it lies in one cell of a `cells` x `cells` division."""
    # A fixed number of draws whatever the class: nothing but its look can tell of it.
    size, shrink, turn, aspect, twist, wave, mirror, hue, swap = random.random(9).tolist()
    place, phase = random.uniform(-1, 1, 2), random.uniform(-np.pi, np.pi, 2)

    radius = (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * size) / cells
    stray = 0.0
    if cells > 1:  # a detection set has objects of many sizes, and some that hide a part of others
        radius *= 0.5 + 0.5 * shrink
        stray = 0.3 / cells
    stretch = _ASPECT ** (aspect - 0.5)  # u by this, v by its inverse: the area stays
    reach = min(1 / cells, radius * 1.1)
    center = (2 * np.array(cell) + 1) / cells - 1 + place * (1 / cells - reach + stray)
    center = np.clip(center, reach - 1, 1 - reach)  # inside the picture, if not inside its cell
    flip = np.array([-1.0 if mirror < 0.5 else 1.0, -1.0])  # rows run down, v runs up
    stretched = np.array([stretch, 1 / stretch])
    to_object = np.diag(1 / (stretched * radius)) @ _turn(_TILT * (2 * turn - 1)) @ np.diag(flip)

    return _Thing(
        label=label,
        center=center,
        to_object=to_object,
        radius=radius,
        to_wave=(_WAVE[0] + (_WAVE[1] - _WAVE[0]) * wave) * _turn(_TILT * (2 * twist - 1)),
        phase=phase,
        colours=_two_tones(hue, dark_first=swap < 0.5),
    )


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _greys(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """The background's two greys [2, 3] in 0…1, a dark and a light one."""
    levels = np.array([0.35, 0.65]) + 0.12 * (draws - 0.5)
    return np.repeat(levels[:, None], 3, axis=1)


def _two_tones(hue: float, *, dark_first: bool) -> NDArray[np.float64]:
    """A light and a dark tone [2, 3] in 0…1 of one of four hues.

    So few colours, and none behind: telling pictures apart by colour does not get far, and the
    textures and outlines, which tell the class, have to be learnt.
    """
    ramp = np.clip(np.abs((6 * np.floor(4 * hue) / 4 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    light, dark = 0.95 * (1 - 0.55 * (1 - ramp)), 0.35 * (1 - 0.7 * (1 - ramp))
    return np.stack([dark, light] if dark_first else [light, dark])


# -- how it looks: pixels ----------------------------------------------------------------------

_WOBBLE = {"photo": 0.0, "rendition": 0.05, "sketch": 0.03}  # of an object's radius: a hand's line


@dataclass(frozen=True)
class _Look:
    """An object in pixels.

    Attributes:
        cover: [H, W] in 0…1, the object's share of each pixel.
        outline: [H, W], signed distance to the outline in pixels, negative inside.
        pattern: [H, W] in 0…1, the share of its second colour.
    """

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


def _look(thing: _Thing, size: int, *, wobble: float) -> _Look:
    u, v = _affine(thing.to_object, -thing.to_object @ thing.center, *_grid(size))
    p, q = _affine(thing.to_wave, thing.phase, u, v)
    if wobble:
        u, v = u + wobble * np.sin(p * 0.5), v + wobble * np.sin(q * 0.7)
    outline = OUTLINES[CLASSES[thing.label]](u, v) * (thing.radius * size / 2)
    cover = np.clip(0.5 - outline, 0, 1)
    return _Look(cover, outline, TEXTURES[CLASSES[thing.label]](p, q))


def _blend(colours: NDArray[np.float64], share: Field) -> Field:
    """[3, H, W] levels in 0…255: the first colour, and `share` of the second."""
    first, second = (255 * colours).astype(np.float32)[:, :, None, None]
    levels: Field = first + (second - first) * share
    return levels


def _noise(scene: _Scene, size: int) -> Field:
    """[H, W] in 0…1, smooth and of low frequency."""
    total = np.zeros((size, size), np.float32)
    for (knots, weight), values in zip(_OCTAVES, scene.knots, strict=True):
        basis = _spline(size, knots)
        total += basis @ (weight * values).astype(np.float32) @ basis.T
    noise: Field = np.clip(0.5 + 0.9 * total, 0, 1)
    return noise


def _lay(picture: Field, levels: Field | float, cover: Field) -> None:
    """Put `levels` over `picture` in place, each pixel by its cover."""
    picture += cover * (levels - picture)


def _paint_photo(scene: _Scene, seen: list[_Look], size: int) -> Field:
    picture = _blend(scene.background, _noise(scene, size))
    for thing, look in zip(scene.things, seen, strict=True):
        _lay(picture, _blend(thing.colours, look.pattern), look.cover)
    x, y = _grid(size)
    gain_x, gain_y = scene.light.tolist()
    picture *= 1 + gain_x * x + gain_y * y
    return picture


def _paint_rendition(scene: _Scene, seen: list[_Look], size: int) -> Field:
    """Few flat, saturated colours and a dark line around each object."""
    flat = np.round(_noise(scene, size) * 3) / 3
    picture = _blend(scene.background, flat)
    line = max(1.0, 0.02 * size)
    for thing, look in zip(scene.things, seen, strict=True):
        _lay(picture, _blend(_vivid(thing.colours), np.round(look.pattern * 2) / 2), look.cover)
        _lay(picture, 20.0, np.clip(line - np.abs(look.outline), 0, 1))
    return picture


def _vivid(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same hues, with the weakest channel at 0 and the strongest at its level or 0.8."""
    low, high = colours.min(axis=1, keepdims=True), colours.max(axis=1, keepdims=True)
    vivid: NDArray[np.float64] = (colours - low) / (high - low) * np.maximum(high, 0.8)
    return vivid


def _paint_sketch(scene: _Scene, seen: list[_Look], size: int) -> Field:
    """Dark grey outlines on white, the texture as a faint shade."""
    picture = np.full((1, size, size), 255, np.float32)
    line = max(0.8, 0.012 * size)
    for thing, look in zip(scene.things, seen, strict=True):
        ink = 25 + 60 * float(thing.colours[0, 0])
        _lay(picture, 255 - 60 * look.pattern, look.cover)
        _lay(picture, ink, np.clip(line - np.abs(look.outline), 0, 1))
    return np.broadcast_to(picture, (3, size, size))


def _objects(scene: _Scene, seen: list[_Look]) -> tuple[RenderedObject, ...]:
    """Classes, boxes and masks; what lies in front hides what lies behind."""
    hidden = np.zeros(seen[0].cover.shape, np.bool_)
    found: list[RenderedObject] = []
    for thing, look in zip(reversed(scene.things), reversed(seen), strict=True):
        inside = look.cover > 0.5
        mask = inside & ~hidden
        hidden |= inside
        found.append(RenderedObject(thing.label, box_around(mask), mask))
    return tuple(reversed(found))

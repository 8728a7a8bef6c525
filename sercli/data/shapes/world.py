"""The embedded world: pictures of objects on a textured background, rendered with NumPy.

A picture is a function of (setting, seed, split, index) alone, at any size: the same scene at 64 or
at 224 pixels, in any order, in any process. What a setting's pictures show stands in `settings`;
what they are made of in `scene`, and how they look in `painting`. It is a demonstration and a test
bed, and no benchmark.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.shapes.painting import Painting, RenderedObject, Style
from sercli.data.shapes.scene import Scene
from sercli.data.shapes.settings import SHAPES, Setting
from sercli.data.source import ImageSource
from sercli.errors import UserError

_SIZES = (16, 4096)  # sides in pixels that can be rendered


@dataclass(frozen=True)
class Rendered:
    """A picture and what is in it.

    Attributes:
        image: uint8 [H, W, 3].
        label: Its class, as an index into the setting's classes; where several objects were asked
            for, the first one's, into the setting's objects.
        objects: At least one; later ones lie in front of earlier ones.
    """

    image: NDArray[np.uint8]
    label: int
    objects: tuple[RenderedObject, ...]

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
        setting: Which world it is.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        split: str,
        *,
        image_size: int,
        num_images: int,
        seed: int = 0,
        setting: Setting = SHAPES,
    ) -> None:
        require_drawable(size=image_size, seed=seed)
        _require_within("number of images", num_images, 1, 2**32)
        self.name = setting.path
        self.split = split
        self.classes = setting.classes
        self.labels = np.arange(num_images, dtype=np.int64) % len(setting.classes)
        self._image_size, self._seed, self._setting = image_size, seed, setting

    def load(self, index: int) -> Image.Image:
        index = self.position(index)
        size, setting = self._image_size, self._setting
        # Boxes and masks are left out: an epoch asks for thousands of pictures, and none of them.
        _, painting = _compose(self._seed, self.split, index, size, 1, "photo", setting)
        return Image.fromarray(painting.image())

    def made_of(self) -> dict[str, object]:
        return {"seed": self._seed, "image_size": self._image_size, "world": self._setting.version}

    def describe(self, index: int) -> str:
        return f"{self.name}/{self.identifier(index)}"

    def identifier(self, index: int) -> str:
        return f"{self.split}/{self.position(index)}"


def render(
    seed: int,
    split: str,
    index: int,
    size: int,
    *,
    objects: int = 1,
    style: Style = "photo",
    setting: Setting = SHAPES,
) -> Rendered:
    """Render one picture.

    Args:
        seed: In 0…2^64-1.
        split: Any name; each names its own pictures.
        index: In 0…2^32-1. The class is `index` modulo the number of classes.
        size: Side in pixels, 16…4096.
        objects: 1: as the setting's pictures are; more: so many, of any class, which are smaller,
            lie all over the picture and overlap a little.
        style: "photo"; "rendition", like a painting in few flat colours with dark outlines; or
            "sketch", dark grey lines on white. The scene is the same in every style.
        setting: Which world it is.

    Returns:
        The picture with its objects' classes, boxes and masks.

    Raises:
        UserError: `size` or `seed` is out of range.
        ValueError: Another argument is.
    """
    scene, painting = _compose(seed, split, index, size, objects, style, setting)
    return Rendered(painting.image(), scene.label, painting.objects())


def _compose(
    seed: int, split: str, index: int, size: int, objects: int, style: Style, setting: Setting
) -> tuple[Scene, Painting]:
    """See `render`: the scene, and what paints it."""
    require_drawable(size=size, seed=seed)
    if not 0 <= index < 2**32 or objects < 1:
        raise ValueError(f"index {index} is not in 0…2^32-1 or objects {objects} is not positive")
    if style not in get_args(Style):
        raise ValueError(f"style {style!r} is none of {get_args(Style)}")
    scene = setting.draw(_generator(seed, split, index), index, objects)
    return scene, Painting(scene, size, style=style)


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

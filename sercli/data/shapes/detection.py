"""The embedded world as a detection set: several objects a picture, with boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.coco.source import Annotation, Category, DetectionSource
from sercli.data.shapes.settings import SHAPES, Setting
from sercli.data.shapes.world import Rendered, render, require_drawable
from sercli.errors import UserError

_LEAST_PIXELS = 16  # of an object that is seen at all


def category_id(label: int) -> int:
    """The raw id of a class: with gaps, as COCO's ids have them."""
    return 1 + label + label // 3


def categories_of(setting: Setting) -> tuple[Category, ...]:
    """The categories of a setting's objects."""
    return tuple(Category(category_id(label), name) for label, name in enumerate(setting.objects))


class ShapesDetection(DetectionSource):
    """A split of the embedded detection set, rendered when read.

    Args:
        split: "train" or "val".
        image_size: Side in pixels, 16…4096.
        num_images: At least one; default: the setting's, 1024 in train, 256 in val.
        seed: Another seed, other pictures; 0…2^64-1.
        setting: Which world it is.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        split: str,
        *,
        image_size: int,
        num_images: int | None = None,
        seed: int = 0,
        setting: Setting = SHAPES,
    ) -> None:
        require_drawable(size=image_size, seed=seed)
        number = setting.num_detected[split] if num_images is None else num_images
        if number < 1:
            raise UserError(f"{number} images of the embedded detection set", "at least 1")
        self.name = setting.path
        self.split = split
        self.categories = categories_of(setting)
        self.image_ids = np.arange(1, number + 1, dtype=np.int64)
        self.sizes = np.full((number, 2), image_size, np.int64)
        self._size, self._seed, self._setting = image_size, seed, setting
        groups, first = [], 1
        for index in range(number):
            group = annotations_of(self.render(index), image_id=index + 1, first_id=first)
            first += len(group)
            groups.append(group)
        self._pack(groups)

    def render(self, index: int) -> Rendered:
        """The picture and its objects, of which there are as many as the setting has."""
        least, most = self._setting.num_objects
        return render(
            self._seed,
            f"coco-{self.split}",
            index,
            self._size,
            objects=least + index % (most + 1 - least),
            setting=self._setting,
        )

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.render(index).image)

    def describe(self, index: int) -> str:
        return f"{self.name}/coco-{self.split}/{index}"


def annotations_of(picture: Rendered, *, image_id: int, first_id: int) -> list[Annotation]:
    """The objects of a picture that are seen, as COCO writes them; masks as run lengths."""
    seen = [thing for thing in picture.objects if thing.mask.sum() >= _LEAST_PIXELS]
    return [
        {
            "id": first_id + position,
            "image_id": image_id,
            "category_id": category_id(thing.label),
            "bbox": list(thing.box),
            "area": int(thing.mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(thing.mask.shape), "counts": run_lengths(thing.mask)},
        }
        for position, thing in enumerate(seen)
    ]


def run_lengths(mask: NDArray[np.bool_]) -> Sequence[int]:
    """COCO's uncompressed run lengths of a mask [H, W]: column by column, zeros first."""
    flat: NDArray[Any] = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return runs

"""What a detection set is to the rest of `ser`."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.source import UnreadableImage
from sercli.errors import UserError

Annotation = dict[str, Any]


@dataclass(frozen=True)
class Category:
    """A kind of object.

    Attributes:
        id: Raw, as in the file.
        name: What a person calls it.
    """

    id: int
    name: str


class DetectionSource(abc.ABC):
    """Images with the objects in them, read one at a time. Picklable.

    Attributes:
        name: What the user called the set: its path, or the name of a rendered one.
        split: "train" or "val".
        categories: By raw id; a label is an index into them.
        image_ids: int64 [N].
        sizes: int64 [N, 2], width and height in pixels.
    """

    name: str
    split: str
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    _packed: NDArray[np.uint8]
    _ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_ids)

    @abc.abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image as RGB, fully decoded, of the size that the annotations say.

        Raises:
            UnreadableImage: It cannot be decoded or has another size.
        """

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Where the image is, for messages."""

    def annotations(self, index: int) -> list[Annotation]:
        """The objects of an image as in COCO's JSON: id, image_id, category_id (raw), bbox, area,
        iscrowd, segmentation (polygons or run lengths)."""
        found: list[Annotation] = json.loads(self._bytes(index))
        return found

    def _bytes(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return self._packed[start : int(self._ends[index])].tobytes()

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of which images these are and of their annotations, in hex; no file is read."""
        digest = hashlib.sha256()
        for index in indices:
            digest.update(self.describe(index).encode(errors="surrogateescape"))
            digest.update(self._bytes(index))
        return digest.hexdigest()

    def _pack(self, groups: Iterable[Sequence[Annotation]]) -> None:
        # One buffer instead of millions of objects: loader processes then share it.
        lines = [json.dumps(group, separators=(",", ":")).encode() for group in groups]
        self._packed = np.frombuffer(b"".join(lines), np.uint8)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def ground_truth(self, indices: Iterable[int]) -> dict[str, Any]:
        """What pycocotools takes: the images named, their annotations, all categories."""
        indices = list(indices)
        return {
            "info": {},
            "images": [
                {
                    "id": int(self.image_ids[index]),
                    "width": int(self.sizes[index, 0]),
                    "height": int(self.sizes[index, 1]),
                }
                for index in indices
            ],
            "annotations": [item for index in indices for item in self.annotations(index)],
            "categories": [{"id": one.id, "name": one.name} for one in self.categories],
        }

    def labels_by_id(self) -> dict[int, int]:
        """Raw category id → label."""
        return {category.id: label for label, category in enumerate(self.categories)}


def is_object(annotation: Annotation, width: int, height: int) -> bool:
    """Whether a detector can be trained on it: no crowd, and a box with an area in its image.

    Args:
        annotation: One that no rule is broken by.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """
    x1, y1, x2, y2 = clipped(annotation["bbox"], width, height)
    return not annotation.get("iscrowd", 0) and x2 > x1 and y2 > y1


def clipped(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """x, y, width, height of a box → its corners x1, y1, x2, y2 inside its image, in pixels."""
    x, y, w, h = box
    return max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)


def require_size(
    path: Path, size: tuple[int, int], said: NDArray[np.int64], *, said_by: Path
) -> None:
    """An image must have the width and height, in pixels, that the annotations say.

    Raises:
        UnreadableImage: It has others.
    """
    width, height = said.tolist()
    if size != (width, height):
        raise UnreadableImage(
            str(path),
            f"it is {size[0]} × {size[1]} pixels, but {said_by.name} says {width} × {height}",
        )


def require_same_categories(train: DetectionSource, val: DetectionSource) -> None:
    """What is trained on and what is scored must have the same categories.

    Raises:
        UserError: They differ; the line names some.
    """
    if difference := category_difference(train.categories, val.categories):
        raise UserError(f"{train.name}: {difference}", "both must list the same ids and names")


def category_difference(train: Iterable[Category], val: Iterable[Category]) -> str:
    """How the categories of train and val differ, naming some; "" if they do not."""
    ours, theirs = set(train), set(val)
    if ours == theirs:
        return ""

    def some(categories: set[Category]) -> str:
        ordered = sorted(categories, key=lambda one: one.id)
        listed = ", ".join(f"{one.id} {one.name}" for one in ordered[:3])
        return f"{listed}{', …' if len(ordered) > 3 else ''}" or "none"

    return (
        f"the categories of train and val differ (only train: {some(ours - theirs)}; "
        f"only val: {some(theirs - ours)})"
    )

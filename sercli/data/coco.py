"""Detection sets in COCO's format: which files, what is in them, and what must hold.

A set is a directory with `annotations/instances_<split>.json` and the images of each split in
`<split>/` or `images/<split>/`, as COCO is unpacked (`train2017`, `val2017`). Category ids in the
file are *raw* (COCO's 80 lie in 1…90); a *label* is the position of a category among the sorted
raw ids. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import abc
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.decode import read_rgb
from sercli.data.source import UnreadableImage
from sercli.errors import UserError, from_os_error

Annotation = dict[str, Any]

_PREFIX = "instances_"
_ANNOTATIONS = "annotations"


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
        name: The path of the set as the user gave it, or "shapes".
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
            digest.update(self.describe(index).encode())
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


class CocoFolder(DetectionSource):
    """A split of a set in COCO's format.

    Args:
        root: The directory.
        split: "train" or "val".
        name: The path in messages; default: `root`.

    Raises:
        UserError: A file is missing, or its content breaks one of the rules of `faults`.
    """

    def __init__(self, root: Path, split: str, *, name: str | None = None) -> None:
        place = find_split(root, split)
        if place is None:
            raise UserError(
                f"{root} has no {_ANNOTATIONS}/{_PREFIX}{split}*.json",
                "a COCO directory holds annotations/instances_train2017.json, train2017/ and the "
                "same of val2017",
                "check the path, or write a small one with `ser data shapes DIR` (DIR/coco)",
            )
        self.name = name or str(root)
        self.split = split
        self.file, self.folder = place.file, place.images()
        content = read_annotations(self.file)
        for fault in faults(content):
            raise UserError(f"{self.file}: {fault}", remedy="`ser data check` lists all there is")
        categories = sorted(content["categories"], key=lambda item: int(item["id"]))
        self.categories = tuple(Category(int(one["id"]), str(one["name"])) for one in categories)
        images = sorted(content["images"], key=lambda item: int(item["id"]))
        if not images:
            raise UserError(f"{self.file} lists no images")
        self.image_ids = np.array([image["id"] for image in images], np.int64)
        self.sizes = np.array([(image["width"], image["height"]) for image in images], np.int64)
        self._names = np.array([image["file_name"] for image in images])
        self._require_files()
        groups: dict[int, list[Annotation]] = {int(number): [] for number in self.image_ids}
        for annotation in content["annotations"]:
            groups[annotation["image_id"]].append(_plain(annotation))
        self._pack(groups.values())

    def _require_files(self) -> None:
        # One listing instead of a look at every file. Names may hold folders; those are looked at.
        there = set(os.listdir(self.folder))
        missing = [
            name
            for name in self._names.tolist()
            if name not in there and not ("/" in name and (self.folder / name).is_file())
        ]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing):,} of the {len(self._names):,} images that "
                f"{self.file.name} lists, such as {missing[0]}",
                "every image must be there",
            )

    def path(self, index: int) -> Path:
        """The image file."""
        return self.folder / str(self._names[index])

    def describe(self, index: int) -> str:
        return str(self.path(index))

    def load(self, index: int) -> Image.Image:
        path = self.path(index)
        image = read_rgb(str(path), called=str(path))
        require_size(path, image.size, self.sizes[index], said_by=self.file)
        return image


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


# -- Where things are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitPlace:
    """Where a split of a COCO directory lies.

    Attributes:
        root: The directory.
        file: The annotations.
    """

    root: Path
    file: Path

    def images(self) -> Path:
        """The directory of the images.

        Raises:
            UserError: There is none.
        """
        folder = self.file.stem.removeprefix(_PREFIX)
        for place in (self.root / folder, self.root / "images" / folder):
            if place.is_dir():
                return place
        raise UserError(
            f"{self.root} has neither {folder}/ nor images/{folder}/",
            f"the images of {self.file.name} must be there",
        )


def find_split(root: Path, split: str) -> SplitPlace | None:
    """Where a split is: `instances_<split>2017.json`, or else the only `instances_<split>*.json`.

    Raises:
        UserError: `root` is no directory, or there are several and none is of 2017.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"{root} {what}",
            "a directory in COCO's format is needed",
            "check the path, or write a small one with `ser data shapes DIR` (DIR/coco)",
        )
    found = sorted((root / _ANNOTATIONS).glob(f"{_PREFIX}{split}*.json"))
    usual = [file for file in found if file.stem == f"{_PREFIX}{split}2017"]
    if len(found) > 1 and not usual:
        raise UserError(
            f"{root / _ANNOTATIONS} has {', '.join(file.name for file in found)}",
            f"one of them must be {_PREFIX}{split}2017.json, or there must be just one",
        )
    found = usual or found
    return SplitPlace(root, found[0]) if found else None


def is_coco(root: Path) -> bool:
    """Whether a directory looks like a set in COCO's format."""
    return any((root / _ANNOTATIONS).glob(f"{_PREFIX}*.json"))


def read_annotations(file: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        UserError: It cannot be read, is no JSON, or lacks one of the three lists.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})", "it may be truncated") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{file} has no list {key!r}",
                "an annotation file of COCO holds images, annotations and categories",
                "instances_*.json is needed, not captions or keypoints or results",
            )
    return content


# -- What must hold -------------------------------------------------------------------------------


def faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Everything that makes a number wrong or a reader fail, one line each.

    Every image, annotation and category has its own whole number as id; an annotation's is
    positive (pycocotools takes a match with annotation 0 for no match); it names an image and a
    category that exist, and has a box of no negative extent, an area, and a segmentation that a
    mask can be made of. Where iscrowd is missing it is 0.
    """
    categories: set[int] = set()
    for one in content["categories"]:
        yield from _bad_id(one, "category", categories)
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            yield f"category {_shown(one)} has no name"
    if not categories:
        yield "it has no categories"
    images: set[int] = set()
    sizes: dict[int, list[int]] = {}
    for one in content["images"]:
        yield from _bad_id(one, "image", images)
        sides = [one.get("width"), one.get("height")] if isinstance(one, dict) else []
        if not all(isinstance(side, int) and side > 0 for side in sides):
            yield f"image {_shown(one)} has no width and height in pixels"
        elif not isinstance(one.get("file_name"), str) or not one["file_name"]:
            yield f"image {_shown(one)} has no file_name"
        else:
            sizes[one.get("id")] = [one["height"], one["width"]]
    annotations: set[int] = set()
    for one in content["annotations"]:
        yield from _bad_id(one, "annotation", annotations, least=1)
        if not isinstance(one, dict):
            continue
        size = None
        if _is_number(one.get("image_id")) and one["image_id"] in images:
            size = sizes.get(one["image_id"])
        else:
            yield f"annotation {_shown(one)} names image {one.get('image_id')}, which is not listed"
        if not _is_number(one.get("category_id")) or one["category_id"] not in categories:
            yield (
                f"annotation {_shown(one)} has category {one.get('category_id')}, which is not "
                "listed"
            )
        if not is_box(one.get("bbox")):
            yield f"annotation {_shown(one)} has no bbox of x, y, width ≥ 0 and height ≥ 0"
        if not _is_outline(one.get("segmentation"), size):
            yield (
                f"annotation {_shown(one)} has no segmentation of polygons of 3 points or more, "
                "or of run lengths of its image's size"
            )
        if not _is_number(one.get("area")):
            yield f"annotation {_shown(one)} has no area"
        if one.get("iscrowd", 0) not in (0, 1):
            yield f"annotation {_shown(one)} has an iscrowd of neither 0 nor 1"


def _bad_id(one: Any, what: str, seen: set[int], *, least: int = 0) -> Iterator[str]:
    number = one.get("id") if isinstance(one, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        rule = "a positive whole number is needed" if least else "a whole number is needed"
        why = ": pycocotools counts a match with 0 as none" if least and number == 0 else ""
        yield f"{what} id {number!r}; {rule}{why}"
    elif number in seen:
        yield f"{what} id {number} is there twice"
    else:
        seen.add(number)


def _shown(one: Any) -> str:
    return repr(one.get("id")) if isinstance(one, dict) else repr(one)


def _polygons(segmentation: Sequence[Any]) -> list[Any]:
    """Those with three points or more: pycocotools takes four numbers for a box."""
    return [
        points
        for points in segmentation
        if isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
    ]


def _is_outline(segmentation: Any, size: list[int] | None) -> bool:
    """Whether a mask can be made of it; a broken polygon may stand beside a sound one."""
    if isinstance(segmentation, dict):
        fits = size is None or segmentation.get("size") == size
        return fits and bool(segmentation.get("counts"))
    return isinstance(segmentation, list) and bool(_polygons(segmentation))


def _plain(annotation: Annotation) -> Annotation:
    """An annotation without faults as readers take it: sound polygons only, and iscrowd."""
    outline = annotation["segmentation"]
    if isinstance(outline, list):
        outline = _polygons(outline)
    return {**annotation, "segmentation": outline, "iscrowd": annotation.get("iscrowd", 0)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_box(box: Any) -> bool:
    """Whether it is x, y, width and height, of no negative extent."""
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0
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

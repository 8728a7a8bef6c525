"""Detection sets in COCO's format: which files, what is in them, and what must hold.

A set is a directory with `annotations/instances_<split>.json` and the images of each split in
`<split>/` or `images/<split>/`, as COCO is unpacked (`train2017`, `val2017`). Category ids in the
file are *raw* (COCO's 80 lie in 1…90); a *label* is the position of a category among the sorted
raw ids. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sercli.data.coco.rules import _polygons, faults
from sercli.data.coco.source import Annotation, Category, DetectionSource, require_size
from sercli.data.images.decode import read_rgb
from sercli.data.images.listing import regular_files
from sercli.errors import UserError, from_os_error

_PREFIX = "instances_"
_ANNOTATIONS = "annotations"


class CocoFolder(DetectionSource):
    """A split of a set in COCO's format.

    Args:
        root: The directory that holds annotations and images of both splits.
        split: "train" or "val".
        name: The path in messages; default: `root`.

    Raises:
        UserError: A file is missing, or its content breaks one of the rules of `faults`.
    """

    def __init__(self, root: Path, split: str, *, name: str | None = None) -> None:
        place = require_split(root, split)
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
        there = regular_files(self.folder)
        missing = [
            name
            for name in self._names.tolist()
            if name not in there and not ("/" in name and (self.folder / name).is_file())
        ]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing):,} of the {len(self._names):,} images that "
                f"{self.file.name} lists, such as {missing[0]}",
                "every image must be there, as a regular file",
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


# -- Where things are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitPlace:
    """Where a split of a COCO directory lies.

    Attributes:
        root: The set's directory, with its annotations/ and the folders of images.
        file: The JSON file of the split's annotations.
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


def require_split(root: Path, split: str) -> SplitPlace:
    """Where a split is.

    Raises:
        UserError: `root` is no directory, or has no such split or several.
    """
    place = find_split(root, split)
    if place is None:
        raise UserError(
            f"{root} has no {_ANNOTATIONS}/{_PREFIX}{split}*.json",
            "a COCO directory holds annotations/instances_train2017.json, train2017/ and the "
            "same of val2017",
            "check the path, or write a small one with `ser data shapes DIR` (DIR/coco)",
        )
    return place


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


def _plain(annotation: Annotation) -> Annotation:
    """An annotation without faults as readers take it: sound polygons only, and iscrowd."""
    outline = annotation["segmentation"]
    if isinstance(outline, list):
        outline = _polygons(outline)
    return {**annotation, "segmentation": outline, "iscrowd": annotation.get("iscrowd", 0)}

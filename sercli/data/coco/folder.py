"""Detection sets in COCO's format: which files, what is in them, and what must hold.

A set is a directory with `annotations/instances_<split>.json` and the images of each split in
`<split>/` or `images/<split>/`, as COCO is unpacked (`train2017`, `val2017`). Category ids in the
file are *raw* (COCO's 80 lie in 1…90); a *label* is the position of a category among the sorted
raw ids. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sercli.data.coco.masks import sound_polygons
from sercli.data.coco.rules import ListedImage, read_listing
from sercli.data.coco.source import Annotation, DetectionSource, require_size
from sercli.data.images.decode import read_rgb
from sercli.data.images.listing import is_directory, regular_files
from sercli.errors import UserError, from_os_error
from sercli.runs.reading import NotRegular, open_regular

_PREFIX = "instances_"
_ANNOTATIONS = "annotations"


class CocoFolder(DetectionSource):
    """A split of a set in COCO's format.

    Args:
        root: The directory that holds annotations and images of both splits.
        split: "train" or "val".
        name: The path in messages; default: `root`.

    Raises:
        UserError: A file is missing, or its content breaks one of the rules of `read_listing`.
    """

    def __init__(self, root: Path, split: str, *, name: str | None = None) -> None:
        place = require_split(root, split)
        self.name = name or str(root)
        self.split = split
        self.file, self.folder = place.file, place.images()
        listing = read_listing(read_annotations(self.file), self._refuse, split=split)
        self.categories = tuple(listing.categories.values())
        images = [*listing.images.values()]
        self.image_ids = np.array([image.id for image in images], np.int64)
        self.sizes = np.array([image.size for image in images], np.int64)
        self._require_files(images)
        # One buffer: an array of text would take each name for as long as the longest.
        names = [image.file_name.encode() for image in images]
        self._names = b"".join(names)
        self._name_ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        groups: dict[int, list[Annotation]] = {image.id: [] for image in images}
        for annotation in listing.annotations:
            groups[annotation["image_id"]].append(_plain(annotation))
        self._pack(groups.values())

    def _refuse(self, fault: str) -> None:
        raise UserError(f"{self.file}: {fault}", remedy="`ser data check` lists all there is")

    def _require_files(self, images: Sequence[ListedImage]) -> None:
        # One listing instead of a look at every file. Names may hold folders; those are looked at.
        there = regular_files(self.folder)
        missing = [
            image.file_name
            for image in images
            if image.file_name not in there
            and not ("/" in image.file_name and (self.folder / image.file_name).is_file())
        ]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing):,} of the {len(images):,} images that "
                f"{self.file.name} lists, such as {missing[0]}",
                "every image must be there, as a regular file",
            )

    def path(self, index: int) -> Path:
        """The image file."""
        start = int(self._name_ends[index - 1]) if index else 0
        return self.folder / self._names[start : int(self._name_ends[index])].decode()

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
            if is_directory(place):
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
        UserError: `root` is no directory, its annotations/ cannot be listed, or there are several
            and none is of 2017.
    """
    if not is_directory(root):
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"{root} {what}",
            "a directory in COCO's format is needed",
            "check the path, or write a small one with `ser data shapes DIR` (DIR/coco)",
        )
    try:
        names = os.listdir(root / _ANNOTATIONS)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise from_os_error(error, f"cannot list {root / _ANNOTATIONS}") from error
    found = [root / _ANNOTATIONS / name for name in sorted(names) if _holds(name, split)]
    usual = [file for file in found if file.stem == f"{_PREFIX}{split}2017"]
    if len(found) > 1 and not usual:
        raise UserError(
            f"{root / _ANNOTATIONS} has {', '.join(file.name for file in found)}",
            f"one of them must be {_PREFIX}{split}2017.json, or there must be just one",
        )
    found = usual or found
    return SplitPlace(root, found[0]) if found else None


def is_coco(root: Path) -> bool:
    """Whether a directory looks like a set in COCO's format; one that may not be listed does.

    So does one with COCO's folders of images alone: they would be taken for classes.
    """
    if all(os.path.isdir(root / f"{split}2017") for split in ("train", "val")):
        return True
    try:
        return any(_holds(name, "") for name in os.listdir(root / _ANNOTATIONS))
    except PermissionError:
        return os.path.isdir(root / _ANNOTATIONS)
    except (OSError, ValueError):  # it is not there, or no path at all
        return False


def _holds(name: str, split: str) -> bool:
    """Whether a file of annotations/ is one of a split; "": of any."""
    return name.startswith(f"{_PREFIX}{split}") and name.endswith(".json")


def read_annotations(file: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        UserError: It cannot be read, is no JSON, or lacks one of the three lists.
    """
    read = _read_json(file)
    content: dict[str, Any] = read if isinstance(read, dict) else {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{file} has no list {key!r}",
                "an annotation file of COCO holds images, annotations and categories",
                "instances_*.json is needed, not captions or keypoints or results",
            )
    return content


def _read_json(file: Path) -> Any:
    try:
        with open_regular(file) as opened:
            return json.loads(opened.read())
    except NotRegular as error:
        raise UserError(f"cannot read {file}: {error}") from error
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    except RecursionError as error:
        raise UserError(
            f"{file} is nested too deeply to be read", "lists within lists of COCO are five deep"
        ) from error
    except ValueError as error:
        reason = str(error).split(";")[0]  # what follows is advice for programmers
        raise UserError(f"{file} is not valid JSON ({reason})", "it may be truncated") from error


_READ = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}


def _plain(annotation: Annotation) -> Annotation:
    """An annotation without faults as readers take it: sound polygons only, and iscrowd.

    What else the file says of it was not looked at, and goes no further.
    """
    outline = annotation["segmentation"]
    if isinstance(outline, list):
        outline = sound_polygons(outline)
    else:
        outline = {key: value for key, value in outline.items() if key in ("size", "counts")}
    known = {key: value for key, value in annotation.items() if key in _READ}
    return {**known, "segmentation": outline, "iscrowd": int(annotation.get("iscrowd", 0))}

"""Is a set in COCO's format fit for use? Its annotations, its images, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.coco.folder import SplitPlace, find_split, read_annotations
from sercli.data.coco.rules import faults, is_box
from sercli.data.coco.source import Annotation, Category, category_difference, require_size
from sercli.data.images.check import CheckReport, Fact, Reading, SplitReport, read_files
from sercli.data.images.decode import Header, read_header
from sercli.data.images.folder import require_directory
from sercli.errors import UserError

_OVERHANG = 1.0  # pixels: boxes of COCO reach over the border by fractions of one
_NOTES = {
    "images without annotations": "kept in evaluation, left out in training",
    "boxes without width or height": "COCO's own train2017 has a few",
}


@dataclass(frozen=True)
class CocoFiles:
    """The image files that an annotation file lists; picklable.

    Attributes:
        name: What messages call the set.
        folder: Where the files are.
        said_by: The annotation file that lists them, for messages.
        names: File names.
        sizes: int64 [N, 2], width and height in pixels as the annotations say.
    """

    name: str
    folder: Path
    said_by: Path
    names: tuple[str, ...]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def header(self, index: int, *, decode: bool) -> Header:
        """What a file says of its pixels.

        Raises:
            UnreadableImage: It cannot be read or has another size than the annotations say.
        """
        path = self.folder / self.names[index]
        header = read_header(str(path), called=str(path), decode=decode)
        require_size(path, (header.width, header.height), self.sizes[index], said_by=self.said_by)
        return header


def check_coco(root: Path, reading: Reading) -> CheckReport:
    """Check the annotations of a set in COCO's format, and read every image they list.

    Args:
        root: The directory that holds its annotations and images, in one of COCO's layouts.
        reading: How its files are read.

    Returns:
        What was found. Entries of an annotation file that break a rule are problems; those that
        cannot be understood are left out of what is counted and read.

    Raises:
        UserError: `root` is missing or a file.
        RunFailed: A reading process was killed.
    """
    require_directory(root)
    reports: list[SplitReport] = []
    problems: list[str] = []
    categories: list[set[Category]] = []
    for split in ("train", "val"):
        try:
            place, content = _read(root, split)
        except UserError as error:
            problems.append(str(error))
            continue
        listed = _Listed.of(content)
        categories.append(listed.categories)
        problems += [f"{place.file}: {line}" for line in (*faults(content), *listed.misfits())]
        problems += [f"{place.file}{line}" for line in listed.shortages(split)]
        files, missing = _files(root, place, listed)
        problems += missing
        report = read_files(files, listed.facts(), reading, name=split)
        reports.append(replace(report, num_images=len(listed.images)))
        problems.extend(report.problems)
    if len(categories) == 2 and (difference := category_difference(*categories)):
        problems.append(difference)
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as="a set in COCO's format",
        rule="annotations and images must be whole and agree",
        notes=tuple(_notes(reports)),
    )


def _files(root: Path, place: SplitPlace, listed: _Listed) -> tuple[CocoFiles, list[str]]:
    """The image files of a split (none without their directory), and what to say of that."""
    names = tuple(image["file_name"] for image in listed.images.values())
    try:
        return CocoFiles(str(root), place.images(), place.file, names, listed.sizes()), []
    except UserError as error:
        return CocoFiles(str(root), root, place.file, (), listed.sizes()), [str(error)]


def _read(root: Path, split: str) -> tuple[SplitPlace, dict[str, Any]]:
    place = find_split(root, split)
    if place is None:
        raise UserError(f"{root} has no annotations/instances_{split}*.json")
    return place, read_annotations(place.file)


def _notes(reports: list[SplitReport]) -> Iterator[str]:
    for name, meaning in _NOTES.items():
        there = [
            f"{report.split} {number:,}"
            for report in reports
            if isinstance(number := report.facts[name], int) and number
        ]
        if there:
            yield f"{name} ({', '.join(there)}): {meaning}"


@dataclass(frozen=True)
class _Listed:
    """What can be understood of an annotation file.

    Attributes:
        images: By id; each has a name, a width and a height.
        annotations: Each has a box, and an image and a category that are there.
        categories: All that have an id and a name.
    """

    images: Mapping[int, Mapping[str, Any]]
    annotations: tuple[Annotation, ...]
    categories: set[Category]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> _Listed:
        categories = {
            Category(one["id"], one["name"])
            for one in content["categories"]
            if _has(one, id=int, name=str)
        }
        images = {
            one["id"]: one
            for one in content["images"]
            if _has(one, id=int, file_name=str, width=int, height=int)
            and min(one["width"], one["height"]) > 0
        }
        ids = {category.id for category in categories}
        annotations = (
            one
            for one in content["annotations"]
            if _has(one, image_id=int, category_id=int)
            and one["image_id"] in images
            and one["category_id"] in ids
            and is_box(one.get("bbox"))
        )
        return cls(images, tuple(annotations), categories)

    def sizes(self) -> NDArray[np.int64]:
        """Width and height in pixels, int64 [N, 2]."""
        sides = [(one["width"], one["height"]) for one in self.images.values()]
        return np.array(sides, np.int64).reshape(-1, 2)

    def facts(self) -> dict[str, Fact]:
        """What to count, as `SplitReport` has it."""
        filled = {one["image_id"] for one in self.annotations}
        counts = dict.fromkeys(sorted({category.id for category in self.categories}), 0)
        for one in self.annotations:
            counts[one["category_id"]] += 1
        return {
            "categories": len(counts),
            "annotations": len(self.annotations),
            "annotations per category": np.array([*counts.values()], np.int64),
            "crowd annotations": sum(one.get("iscrowd") == 1 for one in self.annotations),
            "images without annotations": len(self.images) - len(filled),
            "boxes without width or height": sum(not all(o["bbox"][2:]) for o in self.annotations),
        }

    def shortages(self, split: str) -> Iterator[str]:
        """What there is none of, as said after the file's name."""
        if not self.images:
            yield " lists no images"
        elif all(one.get("iscrowd") == 1 for one in self.annotations):
            aim = "train on" if split == "train" else "find"
            yield f": no annotation is an object to {aim}, crowds are none"

    def misfits(self) -> Iterator[str]:
        """Annotations that do not fit their image, a line each."""
        for one in self.annotations:
            image = self.images[one["image_id"]]
            width, height = image["width"], image["height"]
            x, y, wide, high = one["bbox"]
            beyond = max(-x, -y, x + wide - width, y + high - height)
            called = f"annotation {one.get('id')!r}"
            if beyond > _OVERHANG:
                yield (
                    f"{called} has the box {one['bbox']}, which reaches {beyond:g} px outside "
                    f"image {image['id']} of {width} × {height}"
                )


def _has(one: Any, **kinds: type) -> bool:
    return isinstance(one, dict) and all(
        isinstance(one.get(name), kind) for name, kind in kinds.items()
    )

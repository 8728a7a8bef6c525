"""Is a set in COCO's format fit for use? Its annotations, its images, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.coco.folder import SplitPlace, find_split, read_annotations
from sercli.data.coco.rules import Listing, read_listing
from sercli.data.coco.source import Category, category_difference, require_size
from sercli.data.images.check import CheckReport, Fact, Reading, SplitReport, read_files
from sercli.data.images.decode import Header, read_header
from sercli.data.images.folder import require_directory
from sercli.errors import UserError

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
        What was found. Entries of an annotation file that break a rule are problems, and left out
        of what is counted and read.

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
            place = _find(root, split)
            content = read_annotations(place.file)
        except UserError as error:
            problems.append(str(error))
            continue
        faults: list[str] = []
        listing = read_listing(content, faults.append, split=split)
        problems += [f"{place.file}: {fault}" for fault in faults]
        categories.append({*listing.categories.values()})
        files, missing = _files(root, place, listing)
        problems += missing
        report = read_files(files, _facts(listing), reading, name=split)
        reports.append(replace(report, num_images=len(listing.images)))
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


def _files(root: Path, place: SplitPlace, listing: Listing) -> tuple[CocoFiles, list[str]]:
    """The image files of a split (none without their directory), and what to say of that."""
    images = [*listing.images.values()]
    sizes = np.array([image.size for image in images], np.int64).reshape(-1, 2)
    names = tuple(image.file_name for image in images)
    try:
        return CocoFiles(str(root), place.images(), place.file, names, sizes), []
    except UserError as error:
        return CocoFiles(str(root), root, place.file, (), sizes), [str(error)]


def _find(root: Path, split: str) -> SplitPlace:
    place = find_split(root, split)
    if place is None:
        raise UserError(f"{root} has no annotations/instances_{split}*.json")
    return place


def _facts(listing: Listing) -> dict[str, Fact]:
    """What to count, as `SplitReport` has it."""
    filled = {one["image_id"] for one in listing.annotations}
    counts = dict.fromkeys(listing.categories, 0)
    for one in listing.annotations:
        counts[one["category_id"]] += 1
    return {
        "categories": len(counts),
        "annotations": len(listing.annotations),
        "annotations per category": np.array([*counts.values()], np.int64),
        "crowd annotations": sum(one.get("iscrowd") == 1 for one in listing.annotations),
        "images without annotations": len(listing.images) - len(filled),
        "boxes without width or height": sum(not all(o["bbox"][2:]) for o in listing.annotations),
    }


def _notes(reports: list[SplitReport]) -> Iterator[str]:
    for name, meaning in _NOTES.items():
        there = [
            f"{report.split} {number:,}"
            for report in reports
            if isinstance(number := report.facts[name], int) and number
        ]
        if there:
            yield f"{name} ({', '.join(there)}): {meaning}"

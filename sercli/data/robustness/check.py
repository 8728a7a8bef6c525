"""Is a robustness set what was published? Tells which set a directory is, and reads all of it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions.catalogue import CATALOGUE
from sercli.data.images.check import (
    CheckReport,
    Readable,
    Reading,
    SplitReport,
    class_facts,
    passed_over_notes,
    read_files,
)
from sercli.data.images.decode import Header
from sercli.data.images.folder import class_names, require_directory, split_folder
from sercli.data.robustness.corrupted import inspect_corrupted
from sercli.data.robustness.folders import parts
from sercli.data.robustness.imagenet_classes import (
    imagenet_a_classes,
    imagenet_classes,
    imagenet_r_classes,
)
from sercli.data.robustness.perturbed import PerturbedSet, inspect_perturbed
from sercli.data.robustness.published import KINDS, PERTURBATIONS
from sercli.data.robustness.sets import find_v2, inspect_set, is_numbered, v2_variant
from sercli.data.robustness.videos import require_av
from sercli.errors import UserError

LAYOUTS = (*KINDS, "imagenet-v2", "imagenet-c", "imagenet-p")

_RULE = "a robustness set must be what was published"
_WNID = re.compile(r"n\d{8}")
# Folder names that tell a set.
_NAMES = {
    "imagenet-r": "imagenet-r",
    "imagenet-a": "imagenet-a",
    "imagenet-sketch": "imagenet-sketch",
    "sketch": "imagenet-sketch",
}


def recognise(root: Path) -> str | None:
    """Which of `LAYOUTS` a directory has; None: that of an ordinary data set.

    Told by its folders' names: corruptions or perturbations with folders in them, numbered class
    folders, a name such as imagenet-r, or the classes of ImageNet-R or -A.

    Raises:
        UserError: It is missing or a file.
    """
    require_directory(root)
    names = class_names(root)
    if grid := _recognise_grid(root):
        return grid
    if {"train", "val"} & {*names}:
        return None
    if _is_v2(root) or any(_is_v2(root / name) for name in names):
        return "imagenet-v2"
    told = _NAMES.get(os.path.basename(os.path.abspath(root)).lower().replace("_", "-"))
    if told and (_has_wnids(names) or _nearby_classes(root)):
        return told
    if {*names} == {*imagenet_r_classes()}:
        return "imagenet-r"
    return "imagenet-a" if {*names} == {*imagenet_a_classes()} else None


def _recognise_grid(root: Path) -> str | None:
    """Severities in folders of corruptions make ImageNet-C; other folders, ImageNet-P."""
    known = dict.fromkeys((*CATALOGUE, *PERTURBATIONS))
    inside = [class_names(folder) for folder in parts(root, tuple(known)).values()]
    filled = [names for names in inside if names]
    if not filled:
        return None
    severities = sum(bool({"1", "2", "3", "4", "5"} & {*names}) for names in filled)
    return "imagenet-c" if 2 * severities >= len(filled) else "imagenet-p"


def _is_v2(folder: Path) -> bool:
    """Numbered class folders, and a name that tells a set of V2, or as many as all three have."""
    return is_numbered(folder) and (
        v2_variant(folder) is not None or len(class_names(folder)) >= len(imagenet_classes())
    )


def _has_wnids(names: Sequence[str]) -> bool:
    return 2 * sum(bool(_WNID.fullmatch(name)) for name in names) > len(names)


def check_set(
    root: Path, layout: str, reading: Reading, *, classes_of: Path | None = None
) -> CheckReport:
    """Measure a robustness set against what was published, then read every file of it.

    Args:
        root: Folder of the set as its archive unpacks.
        layout: Which set it should be, one of `LAYOUTS`.
        reading: How its files are read.
        classes_of: A data set whose class folders are the classes; by default ImageNet's 1000 are,
            unless the set has other class folders and lies beside a train/ or val/.

    Returns:
        What was found. Files whose labels could not be told are not read.

    Raises:
        UserError: `root` or `classes_of` is missing, or videos are to be read without PyAV.
        ValueError: `layout` is unknown.
        RunFailed: A reading process was killed.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is none of {LAYOUTS}")
    require_directory(root)
    classes, whose = _classes(root, layout, classes_of)
    taken_as = f"{layout}, with {whose}"
    try:
        kinds = _kinds(root, layout)
    except UserError as error:
        return CheckReport((), (str(error),), taken_as, _RULE)
    reports: list[SplitReport] = []
    problems: list[str] = []
    passed = Counter[str]()
    for kind, path in kinds.items():
        source, lines = _inspected(kind, path, classes)
        problems += [f"{path}: {line}" for line in lines]
        if source is None or not len(source):
            continue
        there, labels = np.unique(source.labels, return_inverse=True)  # 200 of 1000 in -R and -A
        passed += source.passed_over
        facts = class_facts(labels, num_classes=len(there))
        report = read_files(source, facts, reading, name=kind.removeprefix("imagenet-v2-"))
        reports.append(report)
        problems.extend(report.problems)
    return CheckReport(
        tuple(reports), tuple(problems), taken_as, _RULE, notes=passed_over_notes(passed)
    )


def _inspected(
    kind: str, path: Path, classes: Sequence[str]
) -> tuple[_Labelled | None, tuple[str, ...]]:
    """The files of a set (None if their labels cannot be told), and what is not as published."""
    if kind == "imagenet-c":
        cells, found = inspect_corrupted(path, classes)
        return _Joined(str(path), tuple(cells.values())), found.all
    if kind == "imagenet-p":
        perturbed, found = inspect_perturbed(path, classes)
        if perturbed.perturbations:
            require_av()
        each = tuple(_Videos(perturbed, name) for name in perturbed.perturbations)
        return _Joined(str(path), each), found.all
    source, found = inspect_set(kind, path, classes)
    return source, found.all


def _kinds(root: Path, layout: str) -> dict[str, Path]:
    """The sets to look at: one, or those of ImageNet-V2 that are there."""
    if not layout.startswith("imagenet-v2"):
        return {layout: root}
    found = {f"imagenet-v2-{variant}": path for variant, path in find_v2(root).items()}
    if layout == "imagenet-v2":
        return found
    if layout not in found:
        raise UserError(f"{root} holds {', '.join(found)}", f"{layout} is asked for")
    return {layout: found[layout]}


def _classes(root: Path, layout: str, classes_of: Path | None) -> tuple[tuple[str, ...], str]:
    """The classes to measure against, and whose they are."""
    if classes_of is not None:
        folder = split_folder(classes_of, "train") or split_folder(classes_of, "val")
        assert folder is not None  # a directory without train/ is its own train
        return class_names(folder), f"the classes of {folder}"
    if not _has_wnids(_some_class_folders(root, layout)) and (near := _nearby_classes(root)):
        return class_names(near), f"the classes of {near}"
    return imagenet_classes(), "ImageNet's 1000 classes"


def _some_class_folders(root: Path, layout: str) -> tuple[str, ...]:
    """The class folders of the set, or of its first cell."""
    if layout not in ("imagenet-c", "imagenet-p"):
        return class_names(root)
    parted = parts(root, (*CATALOGUE, *PERTURBATIONS)).values()
    inside = chain.from_iterable(
        [class_names(one / severity) for severity in class_names(one)]
        if layout == "imagenet-c"
        else [class_names(one)]
        for one in parted
    )
    return next((names for names in inside if names), ())


def _nearby_classes(root: Path) -> Path | None:
    """The train/ or val/ beside a folder, or one level higher."""
    above = Path(os.path.abspath(root)).parents[:2]
    folders = (folder / split for folder in above for split in ("train", "val"))
    return next((one for one in folders if os.path.isdir(one) and class_names(one)), None)


class _Labelled(Readable, Protocol):
    """Files of known classes."""

    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def passed_over(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class _Joined:
    """Several sources read as one, so that one set of processes reads them all."""

    name: str
    sources: tuple[_Labelled, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *(one.labels for one in self.sources)])

    @property
    def passed_over(self) -> Mapping[str, int]:
        return sum((Counter(one.passed_over) for one in self.sources), Counter[str]())

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def header(self, index: int, *, decode: bool) -> Header:
        for source in self.sources:
            if index < len(source):
                return source.header(index, decode=decode)
            index -= len(source)
        raise IndexError(index)


@dataclass(frozen=True)
class _Videos:
    """The videos of one perturbation."""

    perturbed: PerturbedSet
    name: str

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.perturbed.labels(self.name)

    @property
    def passed_over(self) -> Mapping[str, int]:
        return {}

    def __len__(self) -> int:
        return self.perturbed.num_videos(self.name)

    def header(self, index: int, *, decode: bool) -> Header:
        if decode:
            number, height, width = self.perturbed.frames(self.name, index).shape[:3]
        else:
            number, width, height = self.perturbed.header(self.name, index)
        return Header(width, height, f"{number} frames")

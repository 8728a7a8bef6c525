"""Is a set of archives fit for use? What is in them is read where it lies; nothing is unpacked."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sercli.data.archives.finding import ArchiveSet, find_archives, missing_from_series
from sercli.data.archives.made import checksum_faults
from sercli.data.archives.members import ArchivedImages, Members, called_as
from sercli.data.archives.opening import has_split_of_archives, list_split
from sercli.data.images.check import (
    CheckReport,
    Fact,
    Reading,
    SplitReport,
    class_facts,
    passed_over_notes,
    read_files,
)
from sercli.data.images.folder import class_differences, some
from sercli.errors import UserError
from sercli.visible import counted


def check_archives(path: str, reading: Reading) -> CheckReport:
    """Check archives and read every image in them.

    Args:
        path: As `find_archives` takes it.
        reading: How images are read.

    Raises:
        UserError: Archives are missing, or one changes while it is read.
        RunFailed: A reading process was killed.
    """
    named = find_archives(path)
    problems = missing_from_series(list(named.archives))
    if reading.decode:
        problems += checksum_faults([archive.path for archive in named.archives])
    passed = Counter(named.passed_over)
    if left_out := named.left_out():
        passed["archives of test"] += len(left_out)
    lists: dict[str, Members] = {}
    reports: list[SplitReport] = []
    numbers: list[str] = []
    for split in ("train", "val"):
        try:
            members = list_split(named, split)
        except UserError as error:
            problems += {str(error)} - {*problems}  # one archive may hold both splits
            continue
        passed += Counter(members.passed_over)
        problems += [fault for fault in members.faults if fault not in problems]
        if split == "train" and not len(members):
            only_val = not has_split_of_archives(path, "train")
            problems.append(f"{path} {'has no train images' if only_val else 'holds no image'}")
        if not len(members):
            continue
        lists[split] = members
        source = ArchivedImages(members, name=path, split=split)
        report = read_files(source, _facts(members), reading, name=split)
        reports.append(report)
        numbers += _numbers_left_out(members, split)
        problems += [*report.problems, *_empty_classes(members, split)]
    if len(lists) > 1 and all(one.classes for one in lists.values()):  # else nothing to compare
        train, val = (lists[split] for split in ("train", "val"))
        problems += class_differences(train.classes, called_as(train, val).classes)
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as=_taken_as(named, lists),
        notes=(*named.remarks(), *numbers, *passed_over_notes(passed)),
    )


def _taken_as(named: ArchiveSet, lists: dict[str, Members]) -> str:
    """E.g. "64 archives; train: class folders"."""
    forms = dict.fromkeys(members.form for members in lists.values())
    told = [f"{split}: {members.form}" for split, members in lists.items()]
    how = next(iter(forms)) if len(forms) == 1 else ", ".join(told)
    return f"{counted(len(named.archives), 'archive')} of {how}" if how else "archives"


def _facts(members: Members) -> dict[str, Fact]:
    used = len(np.unique(members.archive))
    facts: dict[str, Fact] = {"archives": used}
    if members.classes:
        return facts | class_facts(members.labels, num_classes=len(members.classes))
    return facts | {"classes": 0, "images per class": np.zeros(0, np.int64)}


def _empty_classes(members: Members, split: str) -> list[str]:
    """A line where classes are named and have no image."""
    counts = np.bincount(members.labels, minlength=len(members.classes))
    empty = [name for name, count in zip(members.classes, counts, strict=False) if not count]
    if not empty:
        return []
    return [f"{split} has no image of {counted(len(empty), 'class')} ({some(empty)})"]


def _numbers_left_out(members: Members, split: str) -> list[str]:
    """A note where classes have numbers for names, and not all from 0 on: some may be wrong."""
    if not members.classes or not all(one.isascii() and one.isdigit() for one in members.classes):
        return []
    greatest, number = int(members.classes[-1]), len(members.classes)
    if greatest < number:
        return []
    return [
        f"labels of {split} are {number:,} of the numbers 0…{greatest:,}; where these are not "
        f"meant, name the classes in a classes.txt beside the archives"
    ]

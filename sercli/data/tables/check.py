"""Is a set of tables fit for use? What is there, and all that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.made import checksum_faults
from sercli.data.archives.members import ArchivedImages, Members, called_as
from sercli.data.images.check import (
    CheckReport,
    Reading,
    SplitReport,
    class_facts,
    passed_over_notes,
    read_files,
)
from sercli.data.images.decode import Header
from sercli.data.images.folder import counted, some
from sercli.data.tables.columns import require_pyarrow
from sercli.data.tables.opening import Form, differences
from sercli.data.tables.rows import empty_classes
from sercli.visible import counted as several


@dataclass(frozen=True)
class _InRows:
    """A set in the order in which its images lie, so that each page is decoded once."""

    images: ArchivedImages
    order: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.order)

    def header(self, index: int, *, decode: bool) -> Header:
        return self.images.header(int(self.order[index]), decode=decode)


def check_tables(form: Form, path: str, reading: Reading) -> CheckReport:
    """Check a set of tables and read every image of it.

    Args:
        form: `PARQUET` or `ARROW`.
        path: As the user gave it.
        reading: How images are read.

    Returns:
        What was found. Problems do not raise, except those below.

    Raises:
        UserError: pyarrow is missing, or it holds two sets.
        RunFailed: A reading process was killed.
    """
    require_pyarrow(path, form.title)
    tables = form.find(path)
    problems = [*tables.faults, *tables.lacking]
    notes = [*passed_over_notes(tables.left_out)]
    reports: list[SplitReport] = []
    found: dict[str, Members] = {}
    if "train" not in tables.files:
        problems.append(f"{path} has no files of train")
    for split in tables.files:
        found[split] = members = form.read(tables.files[split], split)
        problems += members.faults
        if reading.decode:
            problems += checksum_faults(tables.files[split])
        if not len(members):
            continue
        images = form.images(members, name=path, split=split, said=())
        notes += passed_over_notes(members.passed_over)
        order = np.lexsort((members.offset, members.archive))
        facts = {}
        if members.classes:
            facts = class_facts(members.labels, num_classes=len(members.classes))
        else:
            notes.append(f"the images of {split} have no labels")
        report = read_files(_InRows(images, order), facts, reading, name=split)
        reports.append(report)
        problems += report.problems
        if empty := empty_classes(members):
            notes.append(f"{split} has no image of {counted(empty, 'class')} ({some(empty)})")
        if members.name(0).startswith(f"{split}/00".encode()):
            notes.append(
                f"images of {split} are called by their rows: their paths are missing, or do not "
                "tell them apart"
            )
        notes += images.remarks()
    if len(found) > 1 and not problems:
        problems += differences(found["train"], called_as(found["train"], found["val"]))
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as=f"{form.title}, {several(sum(map(len, tables.files.values())), 'file')}",
        rule="every file must be whole, of the same columns, and every image readable",
        notes=tuple(notes),
    )

"""From labels and names of the rows of tables to a list of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.members import Found, Members
from sercli.data.tables.columns import Columns
from sercli.errors import UserError
from sercli.runs.reading import shown

if TYPE_CHECKING:
    import pyarrow as pa

LABELS_ARE = "labels are whole numbers or text"
# What to do about rows that are paths.
EMBED = (
    'embed the images: `ds.with_format("arrow").map(embed_table_storage, batched=True)` of '
    "datasets.table; or give a list of the paths"
)


@dataclass(frozen=True)
class FileRows:
    """The rows of one file.

    Attributes:
        number: Which file of the set it is.
        paths: [N], what each row's image is called; None: nothing, or its file has no names.
        told: [N], each row's label, as text; none: there are no labels.
        offset: int64 [N], where an image's bytes begin, or which row it is.
        size: int64 [N], bytes; 0: they are found by the row.
    """

    number: int
    paths: Sequence[str | None]
    told: Sequence[str]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)


Add = Callable[["Rows", str, int, list[int]], None]


def scan(
    files: Sequence[str], stamps: NDArray[np.int64], *, form: str, split: str, add: Add
) -> dict[str, Members]:
    """List the images of some tables; a file that cannot be used is a fault.

    Args:
        files: Absolute paths.
        stamps: int64 [F, 5], of each, from before.
        form: What they are, in words.
        split: "train" or "val".
        add: Adds the rows of a file, given its number and its stamp; its columns may not agree.
            Raises `UserError`: It cannot be used.
    """
    found = Rows(files, form)
    for number, file in enumerate(files):
        try:
            add(found, file, number, stamps[number].tolist())
        except UserError as error:
            found.faults.append(str(error))
    return {split: found.members(stamps, split=split)}


class Rows:
    """Collects the rows of a set's files, and what is wrong with them.

    Args:
        files: Absolute paths.
        form: What they are, in words.
    """

    def __init__(self, files: Sequence[str], form: str) -> None:
        self.files, self.form = files, form
        self.faults: list[str] = []
        self.passed_over: Counter[str] = Counter()
        self.columns: Columns | None = None
        self._rows: list[FileRows] = []

    def agree(self, columns: Columns, file: str) -> bool:
        """Whether a file has the columns that the files before have; a fault otherwise."""
        if columns.unread:
            self.passed_over[f"columns {columns.unread} ({LABELS_ARE})"] += 1
        if self.columns is None:
            self.columns = columns
        known = self.columns
        if (columns.said(), columns.names) == (known.said(), known.names):
            return True
        differ = "" if columns.said() != known.said() else ", with other names"
        self.faults.append(
            f"{file} has {columns.said()}{differ}; the files before it have {known.said()}"
        )
        return False

    def labels(self, values: pa.ChunkedArray | None, columns: Columns, file: str) -> list[str]:
        """Labels as text; those that cannot be are a fault, a line for a file."""
        if values is None:
            return []
        labels = values.to_pylist()
        highest = None if columns.names is None else len(columns.names)
        wrong = [
            index
            for index, label in enumerate(labels)
            if label is None
            or (not columns.as_text and (label < 0 or (highest is not None and label >= highest)))
        ]
        if wrong:
            rule = f"0…{highest - 1}" if highest else "0 and above"
            which = f"row {wrong[0]:,} has {shown(labels[wrong[0]])}"
            where = "a name" if columns.as_text else f"one of {rule}"
            self.faults.append(
                f"{file}: {len(wrong):,} of {len(labels):,} labels are not {where} ({which})"
            )
            bad = set(wrong)
            labels = ["0" if i in bad else label for i, label in enumerate(labels)]
        return list(map(str, labels))

    def add(self, rows: FileRows) -> None:
        """The rows of the next file."""
        self._rows.append(rows)

    def members(self, stamps: NDArray[np.int64], *, split: str) -> Members:
        """All images, in order.

        An image is called by its class and its path, as in class folders, if that tells all apart;
        otherwise by its file's number and its row.

        Args:
            stamps: int64 [F, 5], of the files.
            split: "train" or "val".
        """
        classes = None if self.columns is None else self.columns.names
        paths = [path for one in self._rows for path in one.paths]
        told = [label for one in self._rows for label in one.told]
        shown_as = told if classes is None else [classes[int(label)] for label in told]
        names = _by_path(paths, shown_as)
        if names is None or len(set(names)) < len(names):
            names = [
                f"{split}/{one.number:05}-{row:09}".encode()
                for one in self._rows
                for row in range(len(one))
            ]
        found = Found(self.form, by_folder=self.columns is not None and self.columns.as_text)
        found.faults = list(self.faults)
        found.passed_over = self.passed_over
        position = 0
        for one in self._rows:
            for offset, size in zip(one.offset.tolist(), one.size.tolist(), strict=True):
                label = told[position] if told else None
                found.add(names[position], label, archive=one.number, offset=offset, size=size)
                position += 1
        if not len(found) and not found.faults:
            found.faults.append("its tables have no rows")
        return found.members(self.files, stamps, classes=classes)


def _by_path(paths: Sequence[str | None], classes: Sequence[str]) -> list[bytes] | None:
    """Names of images by their paths; None where one has none."""
    if any(not path for path in paths):
        return None
    whole = [str(path) for path in paths]
    if classes:
        pairs = zip(whole, classes, strict=True)
        whole = [path if "/" in path else f"{name}/{path}" for path, name in pairs]
    return [name.encode("utf-8", "surrogatepass") for name in whole]


def empty_classes(members: Members) -> tuple[str, ...]:
    """Classes of which there is no image."""
    counts = Counter(members.labels.tolist())
    return tuple(name for label, name in enumerate(members.classes) if not counts[label])

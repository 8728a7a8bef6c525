"""From a list to the images of a split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.images.files import StoredImages
from sercli.data.images.listing import printable
from sercli.data.lists.finding import find_lists
from sercli.data.lists.table import Table, read_table
from sercli.data.lists.text import read_rows
from sercli.errors import UserError
from sercli.runs.reading import open_regular

_BEGINNING = 1 << 16  # bytes of a list, which tell whether it has labels


class ListedImages(StoredImages):
    """The images of a list.

    Args:
        table: Which there are.
        name: What the user called the set.
        split: "train" or "val".
        classes: Of the set: those of train; None: those of the list.
        labels: int64 [N], indices into `classes`; None: those of the list.
    """

    def __init__(
        self,
        table: Table,
        *,
        name: str,
        split: str,
        classes: tuple[str, ...] | None = None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self.table = table
        self.name, self.split = name, split
        self.classes = table.classes if classes is None else classes
        self.labels = table.labels if labels is None else labels

    def where(self, index: int) -> str:
        return os.fsdecode(os.path.join(self.table.root, self._relative(index)))

    def file_size(self, index: int) -> int | None:
        try:
            return os.stat(self.where(index)).st_size
        except OSError:
            return None

    def describe(self, index: int) -> str:
        return printable(os.path.join(self.table.root, self._relative(index)))

    def identifier(self, index: int) -> str:
        """The path below the deepest directory that holds all images of the list."""
        return printable(self._relative(index))

    def listed(self) -> Iterator[bytes | memoryview]:
        told = self.table
        yield b"\0".join(told.directories)
        for column in (told.directory, told.names, told.offsets):
            yield column.tobytes()

    def _relative(self, index: int) -> bytes:
        return self.table.relative(self.position(index))


def open_lists(path: str, split: str) -> ListedImages:
    """Open one split of a set of lists.

    Raises:
        UserError: There is no such split, a line is wrong or its file is missing, or val has a
            label that train lacks, or labels where train has none.
    """
    files = find_lists(path).files
    if split not in files:
        raise UserError(
            f"{path} has no list of {split}",
            f"the {split} images are needed here",
            f"name a directory that holds {split}.csv",
        )
    table = sound_table(files[split])
    if split == "train":
        return ListedImages(table, name=path, split=split)
    train = sound_table(files["train"])
    if faults := strange_labels(train, table):
        raise refusal(files[split], faults)
    return ListedImages(
        table, name=path, split=split, classes=train.classes, labels=labels_in(train, table)
    )


def sound_table(file: str) -> Table:
    """The table of a list without anything wrong.

    Raises:
        UserError: Something is.
    """
    table = read_table(file)
    if table.faults:
        raise refusal(file, table.faults)
    return table


def refusal(file: str, faults: Mapping[int, str]) -> UserError:
    """What is wrong with the first of some lines, and how many there are."""
    line, why = next(iter(faults.items()))
    more = f" (and {len(faults) - 1:,} more such)" if len(faults) > 1 else ""
    return UserError(
        f"{file}, line {line}: {why}{more}",
        "a line is the path of an image, absolute or relative to the list, and its label if it "
        "has one",
        "`ser data check` lists all there is",
    )


def strange_labels(train: Table, val: Table) -> dict[int, str]:
    """Line of val → what is wrong with its label beside the labels of train."""
    if bool(train.classes) != bool(val.classes):
        having, lacking = ("train", "val") if train.classes else ("val", "train")
        return {int(val.lines.min()): f"{having} has labels and {lacking} has none"}
    known = {*train.classes}
    strange = [number for number, name in enumerate(val.classes) if name not in known]
    places = np.flatnonzero(np.isin(val.labels, strange)).tolist()
    lines = {int(val.lines[place]): val.classes[val.labels[place]] for place in places}
    return {line: f"train has no label {lines[line]}" for line in sorted(lines)}


def labels_in(train: Table, val: Table) -> NDArray[np.int64]:
    """int64 [N], the labels of val, none of which is strange, as indices into classes of train."""
    if not val.classes:
        return val.labels
    places = {name: place for place, name in enumerate(train.classes)}
    return np.array([places.get(name, -1) for name in val.classes], np.int64)[val.labels]


def has_labels(path: str) -> bool:
    """Whether the list of train has labels, by its beginning.

    Raises:
        UserError: It cannot be read.
    """
    file = find_lists(path).files["train"]
    try:
        with open_regular(Path(file)) as opened:
            beginning = opened.read(_BEGINNING)
    except OSError:
        return True  # who opens it says why
    if len(beginning) == _BEGINNING:
        beginning = beginning.rpartition(b"\n")[0]
    rows = read_rows(beginning, called=file)
    return bool(rows.told) or not rows.paths

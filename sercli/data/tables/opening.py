"""One split of a set of tables: opened, or refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sercli.data.archives.members import ArchivedImages, Members, called_as
from sercli.data.images.check import passed_over_notes
from sercli.data.images.folder import class_differences
from sercli.data.tables.arrow import find_arrow, read_arrow
from sercli.data.tables.columns import require_pyarrow
from sercli.data.tables.finding import Tables, find_tables
from sercli.data.tables.parquet import ParquetImages, read_parquet
from sercli.errors import UserError


class _Images(Protocol):
    def __call__(
        self, members: Members, *, name: str, split: str, said: Sequence[str]
    ) -> ArchivedImages: ...


@dataclass(frozen=True)
class Form:
    """A form of tables.

    Attributes:
        title: What a person calls such a set, with its article.
        find: A path to the files of each split.
        read: Files to the list of their images.
        images: The set of a list.
    """

    title: str
    find: Callable[[str], Tables]
    read: Callable[[Sequence[str], str], Members]
    images: _Images


PARQUET = Form(
    "a set in parquet files",
    lambda path: find_tables(path, "parquet"),
    read_parquet,
    ParquetImages,
)
ARROW = Form("a set in Arrow files", find_arrow, read_arrow, ArchivedImages)


def open_tables(form: Form, path: str, split: str) -> ArchivedImages:
    """Open one split of a set of tables.

    Args:
        form: `PARQUET` or `ARROW`.
        path: As the user gave it.
        split: "train" or "val".

    Raises:
        UserError: pyarrow or the split is missing; a file is missing, damaged or of other columns;
            a label is out of range; or train and val have other classes.
    """
    require_pyarrow(path, form.title)
    tables = form.find(path)
    _refuse(path, tables.faults)
    if split not in tables.files:
        there = " and ".join(tables.files) or "no"
        raise UserError(
            f"{path} has no files of {split} (there are: {there})",
            "files and folders are told by the words train and val or validation in their names",
        )
    members = form.read(tables.files[split], split)
    _refuse(path, members.faults)
    if split == "val" and "train" in tables.files:
        train = form.read(tables.files["train"], "train")
        members = called_as(train, members)
        _refuse(path, differences(train, members))
    said = [*tables.lacking, *tables.silent, *passed_over_notes(members.passed_over)]
    return form.images(members, name=path, split=split, said=[f"{path}: {one}" for one in said])


def have_labels(form: Form, path: str) -> bool:
    """Whether the images of train have labels, by their list; what has faults, who opens it says.

    Raises:
        UserError: pyarrow is missing, a file cannot be looked at, or a column is called as labels
            are and of another type.
    """
    require_pyarrow(path, form.title)
    if not (files := form.find(path).files.get("train")):
        return True
    members = form.read(files, "train")
    if not members.classes and (unread := passed_over_notes(members.passed_over)):
        raise UserError(f"{path} has no labels; {unread[0]}", remedy="cast the column")
    return bool(members.classes or members.faults)


def differences(train: Members, val: Members) -> list[str]:
    """What keeps the labels of train and val from meaning the same, a line each."""
    if not train.classes or not val.classes:
        return []  # without labels there is nothing to compare
    found = class_differences(train.classes, val.classes)
    if not found and train.classes != val.classes:
        found = ["train and val have the same classes in another order"]
    return found


def _refuse(path: str, faults: Sequence[str]) -> None:
    if faults:
        more = f" (and {len(faults) - 1:,} more such)" if len(faults) > 1 else ""
        said = faults[0] if path in faults[0] else f"{path}: {faults[0]}"
        raise UserError(f"{said}{more}", remedy="`ser data check` lists all that is wrong")

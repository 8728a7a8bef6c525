"""What a list of images says: `path[,label]` a line, as CSV, as TSV, or as text.

The first line that says something tells the form: whether there is a header, what parts columns,
and whether there are labels. Empty lines and lines that begin with # say nothing.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sercli.data.images.listing import SUFFIXES
from sercli.errors import UserError
from sercli.runs.reading import shown

PATHS = ("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path")
LABELS = ("label", "labels", "class", "class_name", "target")
_FORM = "a line is path[,label], or a header names path, image or filename, and label or class"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_IMAGE = rf"\.(?:{'|'.join(SUFFIXES)})"
_NAMES_IMAGE = re.compile(rf"{_IMAGE}\b", re.IGNORECASE)
_PATH_ALONE = re.compile(rf".*{_IMAGE}", re.IGNORECASE)
_WITH_LABEL = re.compile(rf".*{_IMAGE}\s*[,;\t]\s*\S+", re.IGNORECASE)
_THEN_LABEL = re.compile(rf"(.*?{_IMAGE})\s+(\S.*)", re.IGNORECASE)
_QUOTED = re.compile(r'("(?:[^"]|"")+")\s+([^\s,;].*)')

_Cells = Callable[[str], list[str]]


@dataclass
class Rows:
    """The lines of a list, column by column.

    Attributes:
        paths: As they stand, bytes of a file system.
        told: What each label is called; none: the list has no labels.
        lines: Which line each stands in, from 1.
        faults: Line → what is wrong with it.
    """

    paths: list[bytes] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("i"))
    faults: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Form:
    """How the lines of a list are read.

    Attributes:
        cells: A line's columns.
        number: How many there must be.
        path: Which of them is the path.
        label: Which of them is the label; None: there are none.
        header: Whether the first line names them.
    """

    cells: _Cells
    number: int
    path: int
    label: int | None
    header: bool


def read_rows(content: bytes, *, called: str) -> Rows:
    """Read a list, or the beginning of one.

    Args:
        content: UTF-8, with or without a mark; names of other bytes stay as they are.
        called: The file, for messages.

    Raises:
        UserError: It is no text, says nothing, or its first line has no path.
    """
    if b"\0" in content:
        raise UserError(f"{called} is no text in UTF-8", _FORM, "save it as UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    lines = _lines(text)
    number, first = next(lines, (0, ""))
    if not number:
        raise UserError(f"{called} lists no image", _FORM)
    try:
        form = _form_of(first)
    except csv.Error as error:
        raise UserError(
            f"{called}, line {number}: its quotes do not match ({error})", _FORM
        ) from error
    if isinstance(form, str):
        raise UserError(f"{called}, line {number}: {form}", _FORM)
    rows = Rows()
    if not form.header:
        _take(rows, form, number, first)
    for number, line in lines:
        _take(rows, form, number, line)
    if not rows.paths and not rows.faults:
        raise UserError(f"{called} lists no image", _FORM)
    return rows


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbers and text of the lines that say something."""
    for number, line in enumerate(text.split("\n"), start=1):
        told = line.strip()
        if told and told[0] != "#":
            yield number, told


def _take(rows: Rows, form: _Form, number: int, line: str) -> None:
    try:
        cells = form.cells(line)
    except csv.Error as error:
        rows.faults[number] = f"its quotes do not match ({error})"
        return
    if len(cells) != form.number:
        lacks = form.label is not None and form.number == 2 and len(cells) == 1
        rows.faults[number] = (
            f"{shown(cells[0])} has no label" if lacks else
            f"it has {len(cells)} columns, the first line {form.number}"
        )  # fmt: skip
        return
    path = cells[form.path]
    label = None if form.label is None else cells[form.label].strip()
    if not path:
        rows.faults[number] = "it has no path"
    elif label == "":
        rows.faults[number] = f"{shown(path)} has no label"
    elif form.number == 1 and _WITH_LABEL.fullmatch(path) and not _PATH_ALONE.fullmatch(path):
        rows.faults[number] = f"{shown(path)} has a label, and the first line has none"
    elif _URL.match(path):
        rows.faults[number] = f"{shown(path)} is a URL, and images must be files"
    else:
        rows.paths.append(path.encode("utf-8", "surrogateescape"))
        rows.lines.append(number)
        if label is not None:
            rows.told.append(label)


# -- The form -------------------------------------------------------------------------------------


def _form_of(line: str) -> _Form | str:
    """How a list is read whose first line is this, or what is wrong with it."""
    columns = (_parted_by("\t"), _parted_by(","), _parted_by(";"), str.split)
    for cells in () if _NAMES_IMAGE.search(line) else columns:
        names = [cell.strip().lower() for cell in cells(line)]
        if not {*PATHS, *LABELS} & {*names}:
            continue
        path = next((names.index(name) for name in PATHS if name in names), None)
        label = next((names.index(name) for name in LABELS if name in names), None)
        if path is None:
            return f"the header names no column of paths ({', '.join(map(shown, names))})"
        if cells is str.split:
            cells = _with_label_after if label is not None else _alone
        return _Form(cells, len(names), path, label, header=True)
    cells = _cells_of(line)
    number = len(cells(line))
    if number > 2:
        return f"it has {number} columns and no header"
    return _Form(cells, number, 0, 1 if number == 2 else None, header=False)


def _cells_of(line: str) -> _Cells:
    """What parts the columns of a line without a header: a name may have commas and spaces."""
    if "\t" in line:
        return _parted_by("\t")
    if _PATH_ALONE.fullmatch(line.strip('"')):
        return _alone
    if _QUOTED.fullmatch(line):
        return _with_label_after
    for delimiter in (",", ";"):
        if delimiter in line:
            return _parted_by(delimiter)
    return _with_label_after if _THEN_LABEL.fullmatch(line) else _alone


def _parted_by(delimiter: str) -> _Cells:
    def cells(line: str) -> list[str]:
        if '"' not in line:
            return [cell.strip() for cell in line.split(delimiter)]
        # Within quotes everything is part of the name.
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))

    return cells


def _alone(line: str) -> list[str]:
    if '"' not in line:
        return [line]
    return next(csv.reader([line], delimiter="\0", strict=True))


def _with_label_after(line: str) -> list[str]:
    """`path label`, as Caffe's lists are."""
    if found := _QUOTED.fullmatch(line) or _THEN_LABEL.fullmatch(line):
        return [*_alone(found[1]), *_alone(found[2])]
    return line.rsplit(None, 1)

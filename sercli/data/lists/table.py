"""Which images a list names, where each is, of which class: read once, then kept.

What is kept holds while the list, and each directory that it leads to, has the times, the size and
the identity that it had: so files that are gone are missed when the set is opened, not when they
are read. What is wrong with a line is a fault, and a list with faults is not kept.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.class_names import CLASSES, file_of_names, read_names
from sercli.data.images import kept
from sercli.data.images.listing import Stamp, printable
from sercli.data.images.order import first_twice, is_index, numbered, ordered
from sercli.data.lists.text import Rows, read_rows
from sercli.errors import UserError, from_os_error
from sercli.runs.reading import MIB, read_bytes, shown, what_is

_MAGIC = b"ser's list of listed images, 3\n"
_NUM_ARRAYS = 8
LARGEST = 1024 * MIB  # of a list: ten million lines
_NONE = [0] * len(fields(Stamp))
_FEW = 64  # files of a directory that are looked at one by one


@dataclass(frozen=True)
class Table:
    """The images of a list, about 40 bytes an image.

    Attributes:
        root: Absolute path of the deepest directory that holds all of them.
        classes: What labels are called, sorted; none: the list has no labels.
        directories: Those the images lie in, relative to `root`.
        stamps: int64 [2 + D, 5], of the list, of what names its classes (zeros where nothing does),
            and of each directory, from before it was looked at.
        directory: int32 [N], each image's; images in the order of `images.order`.
        labels: int64 [N]; zeros where there are no classes.
        lines: int32 [N], which line of the list each stands in.
        names: uint8, the file names one after another.
        offsets: int64 [N+1], where each name starts in `names`.
        faults: Line → what is wrong with it; these images are left out.
    """

    root: bytes
    classes: tuple[str, ...]
    directories: tuple[bytes, ...]
    stamps: NDArray[np.int64]
    directory: NDArray[np.int32]
    labels: NDArray[np.int64]
    lines: NDArray[np.int32]
    names: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    faults: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.directory)

    def relative(self, index: int) -> bytes:
        """The path of an image below `root`."""
        name = self.names[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return os.path.join(self.directories[self.directory[index]], name)


def read_table(file: str) -> Table:
    """The images that a list names, from what is kept where it still holds, or read anew.

    Args:
        file: The list.

    Raises:
        UserError: It cannot be read, or is no list.
    """
    path = os.path.abspath(file)
    place = kept.place_of(os.fsencode(path), kind="lists")
    content = None if place is None else kept.stored(place)
    found = None if content is None else unpack(content)
    if found is not None and _is_current(found, path):
        return found
    started = time.time_ns()
    found = make_table(path, called=file)
    if place is not None and not found.faults and kept.are_settled(found.stamps, started):
        kept.store(place, pack(found))
    return found


def make_table(path: str, *, called: str) -> Table:
    """Read a list without looking at what is kept.

    Args:
        path: The list, absolute.
        called: As the user did.

    Raises:
        UserError: It cannot be read, or is no list.
    """
    names = file_of_names([os.path.dirname(path)])
    told_by = [_stamp(path), _stamp(names) if names else _NONE]
    rows = read_rows(read_bytes(Path(path), limit=LARGEST), called=called)
    beside = os.path.dirname(os.fsencode(path)) + b"/"
    files = [os.path.normpath(one if one[:1] == b"/" else beside + one) for one in rows.paths]
    places = [os.path.split(file) for file in files]
    directories = sorted({directory for directory, _ in places})
    stamps, missing = _look(directories, places)
    faults = {**rows.faults, **{rows.lines[index]: why for index, why in missing.items()}}
    there = np.array([index for index in range(len(files)) if index not in missing], np.int64)
    root = os.path.commonpath(directories) if directories else b"/"
    below = len(root.rstrip(b"/")) + 1
    below_root = [files[index][below:] for index in there.tolist()]
    classes, labels, order = _in_order(rows, there, below_root, faults, names)
    chosen = there[order].tolist()
    numbers = {directory: number for number, directory in enumerate(directories)}
    joined, offsets = kept.join([places[index][1] for index in chosen])
    return Table(
        root=root,
        classes=classes,
        directories=tuple(directory[below:] for directory in directories),
        stamps=np.array([*told_by, *stamps], np.int64).reshape(-1, len(fields(Stamp))),
        directory=np.array([numbers[places[index][0]] for index in chosen], np.int32),
        labels=labels[order],
        lines=np.array(rows.lines, np.int32)[chosen],
        names=joined,
        offsets=offsets,
        faults=dict(sorted(faults.items())),
    )


def _in_order(
    rows: Rows,
    there: NDArray[np.int64],
    names: Sequence[bytes],
    faults: dict[int, str],
    classes_by: str | None,
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
    """Classes, labels, and where each image comes; one that stands twice is a fault, and left out.

    Args:
        rows: Of the list.
        there: int64 [N], which of them have a file.
        names: [N], of these, below the root.
        faults: Takes what is found.
        classes_by: The file that names the classes of labels that are numbers; None: there is none.

    Raises:
        UserError: That file cannot be read.
    """
    classes: tuple[str, ...] = ()
    labels = np.zeros(len(there), np.int64)
    if rows.told:
        told = [rows.told[index] for index in there.tolist()]
        tops = (printable(name.partition(b"/")[0]) for name in names)
        folders = all(map(str.__eq__, told, tops))
        classes, labels = numbered(told, folders=folders)
        if classes_by is not None and not folders and any(map(is_index, classes)):
            named = read_names(classes_by)
            places = np.array([_place(one, len(named)) for one in classes], np.int64)
            for place in np.flatnonzero(places[labels] < 0).tolist():
                line = rows.lines[int(there[place])]
                faults[line] = (
                    f"the label {shown(told[place])} is none of the numbers 0…{len(named) - 1} "
                    f"that {CLASSES} beside the list names"
                )
            classes, labels = tuple(named), np.maximum(places[labels], 0)
    order = ordered(names, labels)
    if first_twice(names, order) is None:
        return classes, labels, order
    first: dict[bytes, int] = {}
    once = []
    for place, name in enumerate(names):
        line = rows.lines[int(there[place])]
        if (before := first.setdefault(name, line)) == line:
            once.append(place)
        else:
            faults[line] = f"{printable(name)} stands in line {before} already"
    left = np.isin(order, np.array(once, np.int64))
    return classes, labels, order[left]


def _place(told: str, number: int) -> int:
    """Which of so many classes a label tells; -1: none."""
    return int(told) if is_index(told) and len(told) < 10 and int(told) < number else -1


# -- What is there --------------------------------------------------------------------------------


def _stamp(path: str | bytes) -> list[int]:
    try:
        return Stamp.of(os.stat(path)).row()
    except OSError as error:
        raise from_os_error(error, f"cannot look at {printable(os.fsencode(path))}") from error


def _look(
    directories: Sequence[bytes], places: Sequence[tuple[bytes, bytes]]
) -> tuple[list[list[int]], dict[int, str]]:
    """Stamps of directories, and of each image that cannot be read, why."""
    of: dict[bytes, list[int]] = {directory: [] for directory in directories}
    for index, (directory, _) in enumerate(places):
        of[directory].append(index)
    stamps: list[list[int]] = []
    missing: dict[int, str] = {}
    for directory, indices in of.items():
        try:
            stamps.append(Stamp.of(os.stat(directory or b"/")).row())
            known = _regular_in(directory) if len(indices) > _FEW else frozenset()
        except OSError:
            stamps.append(_NONE)
            known = frozenset()
        for index in indices:
            name = places[index][1]
            if name not in known and (why := _why_not(os.path.join(directory, name))):
                missing[index] = why
    return stamps, missing


def _regular_in(directory: bytes) -> set[bytes]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def _why_not(file: bytes) -> str:
    """Why a file cannot be an image; "": it is a regular one, or a link to such."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return f"{printable(file)} does not exist"
    except OSError as error:
        return f"{printable(file)} cannot be looked at ({error.strerror})"
    except ValueError:
        return f"{printable(file)} is no path"
    return "" if stat.S_ISREG(mode) else f"{printable(file)} is {what_is(mode)}"


# -- As bytes -------------------------------------------------------------------------------------


def pack(table: Table) -> bytes:
    """A table as it is kept."""
    facts = {"root": table.root.hex(), "classes": table.classes}
    directories, ends = kept.join(table.directories)
    arrays = [
        directories,
        ends.astype("<i8"),
        table.stamps.astype("<i8"),
        table.directory.astype("<i4"),
        table.labels.astype("<i4"),
        table.lines.astype("<i4"),
        table.names,
        table.offsets.astype("<i8"),
    ]
    return kept.pack(_MAGIC, facts, arrays)


def unpack(content: bytes) -> Table | None:
    """What `pack` made; None: it is anything else."""
    try:
        told, parts = kept.unpack(_MAGIC, content, _NUM_ARRAYS)
        directories, ends, stamps, directory, labels, lines, names, offsets = parts
        table = Table(
            root=bytes.fromhex(told["root"]),
            classes=tuple(str(name) for name in told["classes"]),
            directories=kept.split(
                np.frombuffer(directories, np.uint8), np.frombuffer(ends, "<i8").astype(np.int64)
            ),
            stamps=np.frombuffer(stamps, "<i8").astype(np.int64).reshape(-1, len(fields(Stamp))),
            directory=np.frombuffer(directory, "<i4").astype(np.int32),
            labels=np.frombuffer(labels, "<i4").astype(np.int64),
            lines=np.frombuffer(lines, "<i4").astype(np.int32),
            names=np.frombuffer(names, np.uint8),
            offsets=np.frombuffer(offsets, "<i8").astype(np.int64),
        )
    except kept.NOT_OURS:
        return None  # of another version, or made by hand
    return table if _is_whole(table) else None


def _is_whole(table: Table) -> bool:
    """Whether all indices lie in their ranges."""
    number, num_directories = len(table), len(table.directories)
    return bool(
        number
        and len(table.stamps) == 2 + num_directories
        and len(table.labels) == len(table.lines) == number
        and table.directory.min() >= 0
        and table.directory.max() < num_directories
        and table.labels.min() >= 0
        and table.labels.max() < max(1, len(table.classes))
        and kept.are_names(table.names, table.offsets, number)
        and ord("/") not in table.names
    )


def _is_current(table: Table, path: str) -> bool:
    told, names, *directories = table.stamps.tolist()
    files = [os.fsencode(path), *(os.path.join(table.root, one) for one in table.directories)]
    try:
        beside = file_of_names([os.path.dirname(path)])
        return (_stamp(beside) if beside else _NONE) == names and all(
            Stamp.of(os.stat(file)).row() == stamp
            for file, stamp in zip(files, [told, *directories], strict=True)
        )
    except (OSError, UserError, ValueError):
        return False

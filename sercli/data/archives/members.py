"""Which images there are in a set of archives, where in which, of which class: listed once, kept.

The list is kept (`images.kept`) while every archive has the times, the size and the identity that
it had before it was listed, as lists of folders are. What cannot be read is a fault, and a list
with faults is not kept, as they may be mended.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from sercli.data.images import kept
from sercli.data.images.files import StoredImages
from sercli.data.images.listing import Stamp, printable
from sercli.data.images.order import first_twice, numbered, ordered
from sercli.data.images.stored import Span
from sercli.errors import from_os_error

_MAGIC = b"ser's list of archived images, 1\n"
_NUM_ARRAYS = 7
_SETTLED_NS = 2_000_000_000  # as `manifest` has it: a change within a tick of FAT's clock


@dataclass(frozen=True)
class Members:
    """The images in some archives, about 60 bytes an image.

    Attributes:
        files: The archives, absolute paths.
        classes: Names; none: the images have no labels.
        stamps: int64 [F, 5], each archive's `Stamp`, from just before it was read.
        archive: int32 [N], which each image is in; images in the order of `images.order`.
        offset: int64 [N], where its bytes begin.
        size: int64 [N], how many they are.
        labels: int64 [N]; zeros where there are no classes.
        names: uint8, the names one after another.
        starts: int64 [N+1], where each name starts in `names`.
        passed_over: What is no image, by what it is, and how many of each.
        faults: What cannot be used, a line each.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    stamps: NDArray[np.int64]
    archive: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: NDArray[np.uint8]
    starts: NDArray[np.int64]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.archive)

    def name(self, index: int) -> bytes:
        """What an image is called within the set."""
        return self.names[self.starts[index] : self.starts[index + 1]].tobytes()

    def span(self, index: int) -> Span:
        """Where its bytes are."""
        number = int(self.archive[index])
        mtime_ns, _, length, *_ = self.stamps[number].tolist()
        place = int(self.offset[index]), int(self.size[index])
        return Span(self.files[number], *place, length=length, mtime_ns=mtime_ns)


class Found:
    """Collects what archives hold, column by column: a million images are some 150 MB.

    Attributes:
        passed_over: As `Members` has it.
        faults: As `Members` has it.
    """

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.told: list[str] = []
        self.passed_over: Counter[str] = Counter()
        self.faults: list[str] = []
        self._archive, self._offset, self._size = array("i"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: bytes, told: str | None, *, archive: int, offset: int, size: int) -> None:
        """An image.

        Args:
            name: What it is called within the set.
            told: What its class is called; None: nothing says so.
            archive: Which archive it is in.
            offset: Where its bytes begin.
            size: How many they are.
        """
        self.names.append(name)
        if told is not None:
            self.told.append(told)
        self._archive.append(archive)
        self._offset.append(offset)
        self._size.append(size)

    def members(
        self,
        files: Sequence[str],
        stamps: NDArray[np.int64],
        *,
        classes: Sequence[str] | None = None,
    ) -> Members:
        """What was found, in order.

        Args:
            files: The archives.
            stamps: int64 [F, 5], of each.
            classes: Names of classes that are told by their index; None: what is told is a name.
        """
        labels = np.zeros(len(self), np.int64)
        names: tuple[str, ...] = ()
        if self.told and len(self.told) < len(self):
            lacking = len(self) - len(self.told)
            self.faults.append(f"{lacking:,} of {len(self):,} images have no label")
        elif self.told and classes is None:
            names, labels = numbered(self.told)
        elif self.told and classes is not None:
            names, labels = tuple(classes), self._indices(len(classes))
        order = ordered(self.names, labels)
        if (twice := first_twice(self.names, order)) is not None:
            one, other = (os.path.basename(files[self._archive[index]]) for index in twice)
            self.faults.append(f"{printable(self.names[twice[0]])} stands twice ({one}, {other})")
        joined, starts = kept.join([self.names[index] for index in order.tolist()])
        return Members(
            files=tuple(files),
            classes=names,
            stamps=stamps,
            archive=np.array(self._archive, np.int32)[order],
            offset=np.array(self._offset, np.int64)[order],
            size=np.array(self._size, np.int64)[order],
            labels=labels[order],
            names=joined,
            starts=starts,
            passed_over=dict(self.passed_over),
            faults=tuple(self.faults),
        )

    def _indices(self, num_classes: int) -> NDArray[np.int64]:
        labels = np.zeros(len(self), np.int64)
        for index, told in enumerate(self.told):
            if told.isascii() and told.isdigit() and int(told) < num_classes:
                labels[index] = int(told)
            else:
                self.faults.append(
                    f"{printable(self.names[index])} has the label {told}, and there are "
                    f"{num_classes} classes: 0…{num_classes - 1}"
                )
        return labels


def read_members(
    files: Sequence[str],
    scan: Callable[[Sequence[str], NDArray[np.int64]], Members],
    *,
    rule: str,
) -> Members:
    """The images in archives, from the list that is kept where it still holds, otherwise by `scan`.

    Args:
        files: The archives, absolute paths.
        scan: Lists them; given their stamps from before.
        rule: What else the list depends on: which split, how labels are told. Part of its key.

    Raises:
        UserError: An archive cannot be looked at, or as `scan`.
    """
    stamps = np.array([_stamp(file) for file in files], np.int64).reshape(-1, len(fields(Stamp)))
    key = "\0".join([rule, *files]).encode("utf-8", "surrogateescape")
    place = kept.place_of(key, kind="archives")
    content = None if place is None else kept.stored(place)
    found = None if content is None else unpack(content, files)
    if found is not None and np.array_equal(found.stamps, stamps):
        return found
    started = time.time_ns()
    found = scan(files, stamps)
    settled = np.all(np.abs(started - stamps[:, :2]) >= _SETTLED_NS)
    if place is not None and settled and not found.faults:
        kept.store(place, pack(found))
    return found


def _stamp(file: str) -> list[int]:
    try:
        return Stamp.of(os.stat(file)).row()
    except OSError as error:
        raise from_os_error(error, f"cannot look at {file}") from error


# -- As bytes -------------------------------------------------------------------------------------


def pack(members: Members) -> bytes:
    """A list as it is stored."""
    facts = {
        "files": [os.fsencode(file).hex() for file in members.files],
        "classes": members.classes,
        "passed_over": dict(members.passed_over),
    }
    arrays = [
        members.stamps.astype("<i8"),
        members.archive.astype("<i4"),
        members.offset.astype("<i8"),
        members.size.astype("<i8"),
        members.labels.astype("<i4"),
        members.names,
        members.starts.astype("<i8"),
    ]
    return kept.pack(_MAGIC, facts, arrays)


def unpack(content: bytes, files: Sequence[str]) -> Members | None:
    """What `pack` made of the list of `files`; None: it is anything else."""
    try:
        told, parts = kept.unpack(_MAGIC, content, _NUM_ARRAYS)
        if told["files"] != [os.fsencode(file).hex() for file in files]:
            return None
        stamps, archive, offset, size, labels, names, starts = parts
        members = Members(
            files=tuple(files),
            classes=tuple(str(name) for name in told["classes"]),
            stamps=np.frombuffer(stamps, "<i8").astype(np.int64).reshape(-1, len(fields(Stamp))),
            archive=np.frombuffer(archive, "<i4").astype(np.int32),
            offset=np.frombuffer(offset, "<i8").astype(np.int64),
            size=np.frombuffer(size, "<i8").astype(np.int64),
            labels=np.frombuffer(labels, "<i4").astype(np.int64),
            names=np.frombuffer(names, np.uint8),
            starts=np.frombuffer(starts, "<i8").astype(np.int64),
            passed_over={str(name): int(count) for name, count in told["passed_over"].items()},
        )
    except kept.NOT_OURS:
        return None  # of another version, or made by hand
    return members if _is_whole(members) else None


def _is_whole(members: Members) -> bool:
    """Whether all indices lie in their ranges, and all parts in their archives."""
    number, num_classes = len(members), max(1, len(members.classes))
    if len(members.stamps) != len(members.files):
        return False
    columns = (members.offset, members.size, members.labels)
    if any(len(column) != number for column in columns):
        return False
    if not number:
        return kept.are_names(members.names, members.starts, number)
    return bool(
        members.archive.min() >= 0
        and members.archive.max() < len(members.files)
        and members.offset.min() >= 0
        and members.size.min() >= 0
        and np.all(members.size <= members.stamps[members.archive, 2])
        and np.all(members.offset <= members.stamps[members.archive, 2] - members.size)
        and members.labels.min() >= 0
        and members.labels.max() < num_classes
        and kept.are_names(members.names, members.starts, number)
    )


# -- As a set -------------------------------------------------------------------------------------


class ArchivedImages(StoredImages):
    """The images of a split that lie in archives.

    Args:
        members: What there is.
        name: What the user called the set.
        split: "train" or "val".
    """

    def __init__(self, members: Members, *, name: str, split: str) -> None:
        self.members = members
        self.name, self.split = name, split
        self.classes, self.labels = members.classes, members.labels

    def where(self, index: int) -> Span:
        return self.members.span(self.position(index))

    def file_size(self, index: int) -> int:
        return int(self.members.size[self.position(index)])

    def describe(self, index: int) -> str:
        return f"{self.members.files[self.members.archive[index]]}: {self.identifier(index)}"

    def identifier(self, index: int) -> str:
        return printable(self.members.name(self.position(index)))

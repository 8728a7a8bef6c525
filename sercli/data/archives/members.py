"""Which images there are in a set of archives, where in which, of which class: listed once, kept.

The list is kept (`images.kept`) while every archive, and every file beside them that told classes,
has the times, the size and the identity that it had before it was read, as lists of folders are.
What cannot be used is a fault, and a list with faults is not kept, as they may be mended.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.images import kept
from sercli.data.images.files import StoredImages
from sercli.data.images.listing import Stamp, printable, stamps_of
from sercli.data.images.order import is_index, numbered, ordered
from sercli.data.images.stored import Span, Where
from sercli.data.robustness.imagenet_classes import BARE, is_imagenet, wnids_of_images
from sercli.errors import SerError, shortened
from sercli.visible import counted

_MAGIC = b"ser's list of archived images, 3\n"
_NUM_ARRAYS = 7


@dataclass(frozen=True)
class Members:
    """The images of a split in some archives, about 70 bytes an image.

    Attributes:
        files: The archives, absolute paths.
        beside: Other files that the list depends on: they tell classes.
        form: How the archives were read, in words: "class folders".
        classes: Names; none: the images have no labels.
        stamps: int64 [F + B, 5], each file's `Stamp`, from just before it was read.
        archive: int32 [N], which each image is in; images in the order of `images.order`.
        offset: int64 [N], where its bytes begin.
        size: int64 [N], how many they are.
        labels: int64 [N]; zeros where there are no classes.
        names: uint8, the names one after another.
        starts: int64 [N+1], where each name starts in `names`.
        passed_over: What is no image, by what it is, and how many of each.
        faults: What cannot be used, a line each.
        by_index: Whether classes were told by whole numbers, which the file's names may have named.
    """

    files: tuple[str, ...]
    beside: tuple[str, ...]
    form: str
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
    by_index: bool = False

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
    """Collects the images of a split, column by column: a million are some 150 MB.

    Args:
        form: As `Members` has it.
        by_folder: Whether classes are names of folders, and no labels.

    Attributes:
        passed_over, faults: As `Members` has them.
        archive: Which archive each image is in.
    """

    def __init__(self, form: str, *, by_folder: bool = False) -> None:
        self.form, self.by_folder = form, by_folder
        self.passed_over: Counter[str] = Counter()
        self.faults: list[str] = []
        self.archive = array("i")
        self._names: list[bytes] = []
        self._told: list[str | None] = []
        self._offset, self._size = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: bytes, told: str | None, *, archive: int, offset: int, size: int) -> None:
        """An image.

        Args:
            name: What it is called within the set.
            told: What its class is called; None: nothing says so.
            archive: Which archive it is in.
            offset, size: Where its bytes begin, and how many they are.
        """
        self._names.append(name)
        self._told.append(told)
        self.archive.append(archive)
        self._offset.append(offset)
        self._size.append(size)

    def members(
        self,
        files: Sequence[str],
        stamps: NDArray[np.int64],
        *,
        beside: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        key: Callable[[bytes], bytes] | None = None,
    ) -> Members:
        """What was found, in order.

        Args:
            files, beside: As `Members` has them.
            stamps: int64 [F + B, 5], of each.
            classes: Names of classes that are told by their index; None: what is told is a name.
            key: What of a name must stand once; None: all of it.
        """
        by_index = not self.by_folder and all(
            one is not None and is_index(one) for one in {*self._told}
        )
        names, labels = self._classes(classes, by_index=by_index)
        order = ordered(self._names, labels)
        self._refuse_names_twice(files, key)
        joined, starts = kept.join([self._names[index] for index in order.tolist()])
        return Members(
            files=tuple(files),
            beside=tuple(beside),
            form=self.form,
            classes=names,
            stamps=stamps,
            archive=np.array(self.archive, np.int32)[order],
            offset=np.array(self._offset, np.int64)[order],
            size=np.array(self._size, np.int64)[order],
            labels=labels[order],
            names=joined,
            starts=starts,
            passed_over=dict(self.passed_over),
            faults=tuple(self.faults),
            by_index=by_index,
        )

    def _classes(
        self, classes: Sequence[str] | None, *, by_index: bool
    ) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Names, and the label of each image."""
        labels = np.zeros(len(self), np.int64)
        told = [one for one in self._told if one is not None]
        if not told:
            return (), labels
        if len(told) < len(self):
            lacking = next(i for i, one in enumerate(self._told) if one is None)
            self.faults.append(
                f"{len(self) - len(told):,} of {counted(len(self), 'image')} have no label, "
                f"{shortened(printable(self._names[lacking]))} for one; either each image has one "
                "or none has; pack what is missing"
            )
            return (), labels
        if classes is None:
            names, labels = numbered(told, folders=self.by_folder)
            if names == BARE:
                names = wnids_of_images(self._names, labels) or names
            return names, labels
        places = {str(index): index for index in range(len(classes))}
        if not by_index:
            if index := next(filter(is_index, told), None):
                name = next(one for one in told if not is_index(one))
                self.faults.append(
                    f"some labels are indices of classes, such as {index}, and some names, such as "
                    f"{shortened(printable(os.fsencode(name)))}; all are one or the other; "
                    "mend the labels"
                )
            return numbered(told)
        outside = [index for index, one in enumerate(told) if one not in places]
        if outside:
            first = outside[0]
            self.faults.append(
                f"{counted(len(outside), 'label')} out of range, {told[first]} of "
                f"{shortened(printable(self._names[first]))} for one; {len(classes):,} classes are "
                f"numbered 0…{len(classes) - 1}; mend the labels or the list of classes"
            )
        return tuple(classes), np.array([places.get(one, 0) for one in told], np.int64)

    def _refuse_names_twice(
        self, files: Sequence[str], key: Callable[[bytes], bytes] | None
    ) -> None:
        """Identifiers must tell images apart."""
        keys = self._names if key is None else list(map(key, self._names))
        if len(set(keys)) == len(keys):
            return
        several = [one for one, number in Counter(keys).items() if number > 1]
        where = [files[self.archive[i]] for i, one in enumerate(keys) if one == several[0]]
        more = f" and {len(several) - 1:,} more stand" if several[1:] else " stands"
        self.faults.append(
            f"{shortened(printable(several[0]))}{more} more than once (in "
            f"{' and '.join(os.path.basename(file) for file in where[:2])}); names tell images "
            "apart; pack each image once"
        )


def called_as(train: Members, val: Members) -> Members:
    """Images of val: indices of classes that only train names are those of train.

    So where train is ImageNet by its images' names, which in val tell no class. An index is no
    name's place where train has names alone: they may be in another order.
    """
    bare = tuple(map(str, range(len(train.classes))))
    alike = val.by_index and (train.by_index or is_imagenet(train.classes))
    return replace(val, classes=train.classes) if alike and val.classes == bare else val


Scan = Callable[[Sequence[str], NDArray[np.int64]], Mapping[str, Members]]


def read_members(
    files: Sequence[str], scan: Scan, *, rules: Mapping[str, str], wanted: str
) -> Members:
    """The images in archives, from the list that is kept where it still holds, otherwise by `scan`.

    Args:
        files: The archives, absolute paths.
        scan: Lists them, given their stamps from before: a list for each split of `rules`.
        rules: Split → what else its list depends on: part of its key.
        wanted: Which split.

    Raises:
        UserError: An archive cannot be looked at, or as `scan`.
    """
    places = {split: _place(files, rule) for split, rule in rules.items()}
    if (found := _kept(places[wanted], files)) is not None:
        return found
    with kept.by_one(places[wanted]):
        if (found := _kept(places[wanted], files)) is not None:
            return found  # another process has made it
        stamps = stamps_of(files)
        started = time.time_ns()
        lists = scan(files, stamps)
        for split, place in places.items():
            found = lists[split]
            if place is not None and not found.faults and kept.are_settled(found.stamps, started):
                kept.store(place, pack(found))
        return lists[wanted]


def _place(files: Sequence[str], rule: str) -> Path | None:
    key = "\0".join([rule, *files]).encode("utf-8", "surrogateescape")
    return kept.place_of(key, kind="archives")


def _kept(place: Path | None, files: Sequence[str]) -> Members | None:
    """The list that is kept, if nothing that it depends on has changed."""
    content = None if place is None else kept.stored(place)
    found = None if content is None else unpack(content, files)
    if found is None:
        return None
    stamps = stamps_of(files)
    try:
        stamps = np.concatenate([stamps, stamps_of(found.beside)])
    except (SerError, ValueError):
        return None  # what told classes is gone; a path of a list made by hand may hold a NUL
    return found if np.array_equal(found.stamps, stamps) else None


# -- As bytes -------------------------------------------------------------------------------------


def pack(members: Members) -> bytes:
    """A list as it is stored."""
    facts = {
        "files": [os.fsencode(file).hex() for file in members.files],
        "beside": [os.fsencode(file).hex() for file in members.beside],
        "form": members.form,
        "classes": members.classes,
        "passed_over": dict(members.passed_over),
        "by_index": members.by_index,
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
            beside=tuple(os.fsdecode(bytes.fromhex(file)) for file in told["beside"]),
            form=str(told["form"]),
            classes=tuple(str(name) for name in told["classes"]),
            stamps=np.frombuffer(stamps, "<i8").astype(np.int64).reshape(-1, len(fields(Stamp))),
            archive=np.frombuffer(archive, "<i4").astype(np.int32),
            offset=np.frombuffer(offset, "<i8").astype(np.int64),
            size=np.frombuffer(size, "<i8").astype(np.int64),
            labels=np.frombuffer(labels, "<i4").astype(np.int64),
            names=np.frombuffer(names, np.uint8),
            starts=np.frombuffer(starts, "<i8").astype(np.int64),
            passed_over={str(name): int(count) for name, count in told["passed_over"].items()},
            by_index=bool(told["by_index"]),
        )
    except kept.NOT_OURS:
        return None  # of another version, or made by hand
    return members if _is_whole(members) else None


def _is_whole(members: Members) -> bool:
    """Whether all indices lie in their ranges, and all parts in their archives."""
    number, num_classes = len(members), max(1, len(members.classes))
    if len(members.stamps) != len(members.files) + len(members.beside):
        return False
    if {len(members.offset), len(members.size), len(members.labels)} != {number}:
        return False
    if not number:  # a split that there is not is kept, too
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
        said: What a user should know of it, a line each.
    """

    def __init__(
        self, members: Members, *, name: str, split: str, said: Sequence[str] = ()
    ) -> None:
        self.members, self.said = members, tuple(said)
        self.name, self.split = name, split
        self.classes, self.labels = members.classes, members.labels

    def where(self, index: int) -> Where:
        return self.members.span(self.position(index))

    def file_size(self, index: int) -> int | None:
        return int(self.members.size[self.position(index)])

    def remarks(self) -> tuple[str, ...]:
        return self.said

    def listed(self) -> Iterator[bytes | memoryview]:
        """With the times and sizes of the archives: one may be replaced by one of equal names."""
        told = self.members
        files = told.stamps[: len(told.files), (0, 2)]
        for column in (files, told.archive, told.offset, told.size, told.names, told.starts):
            yield column.tobytes()

    def describe(self, index: int) -> str:
        return f"{self.members.files[self.members.archive[index]]}: {self.identifier(index)}"

    def identifier(self, index: int) -> str:
        return printable(self.members.name(self.position(index)))

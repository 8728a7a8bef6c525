"""What one archive holds: its images, what beside them tells their classes, and what is wrong.

The same for tar and zip: which reads the structure calls `Contents.add` for every file in it. Of an
image only the place is kept. A class is told as WebDataset has it: by `KEY.cls`, or by an int
`label` in `KEY.json`, where KEY is a name up to the first dot of its last part.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sercli.data.images.listing import added_as, has_suffix, printable
from sercli.errors import shortened
from sercli.visible import counted

_LARGEST_LABEL = 1024  # bytes
_LARGEST_JSON = 1 << 20
_DIGITS = 9
_LISTED = 100  # faults of one archive; a hostile one has one for every 512 bytes
# What programs make of an index: it would be the name of another class than the index itself.
_NO_INDEX = re.compile(r"[+-]\d+|[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DRIVE = re.compile(rb"[A-Za-z]:[\\/]")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True)
class Part:
    """What is listed at once: an archive, or a tar that lies in a tar.

    Attributes:
        path: The file.
        called: What it is called in messages.
        offset: Where it begins in the file.
        size: Its bytes; None: all of the file.
        folder: What its images' names begin with: the name of a tar within a tar, and a slash.
    """

    path: str
    called: str
    offset: int = 0
    size: int | None = None
    folder: bytes = b""


@dataclass
class Contents:
    """What was found in a part.

    Attributes:
        names: Of its images, paths without anything that leads up.
        told: What each image's class is called; None: no label lies beside it.
        offset: Where each image's bytes begin in the file.
        size: How many they are.
        inner: Tars in it: what is to be listed next.
        passed_over: What is no image, by what it is, and how many of each.
        faults: What cannot be used, a line each: what was received, why not, what to do.
    """

    names: list[bytes] = field(default_factory=list)
    told: list[str | None] = field(default_factory=list)
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    inner: list[Part] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


Read = Callable[[int, int], bytes]  # size and offset, as `os.pread` has them


class Collector:
    """Sorts the files of an archive as they come.

    Args:
        part: What is listed.
        read: Reads from the file.
    """

    def __init__(self, part: Part, read: Read) -> None:
        self.part, self._read = part, read
        self.found = Contents()
        self._labels: dict[bytes, str] = {}
        self._json: dict[bytes, tuple[int, int]] = {}
        self._same: dict[str, str] = {}  # a class's name once, however many images have it
        self._faults = 0

    def fault(self, what: str) -> None:
        """Note what is wrong; `what` begins with what it is of."""
        self._faults += 1
        if self._faults <= _LISTED:
            self.found.faults.append(f"{self.part.called}: {what}")

    def wrong_member(self, name: bytes, what: str) -> None:
        """Note what is wrong with a member, unless it is one that systems add."""
        if _added(name) is None:
            self.fault(f"{shortened(printable(name)) or 'a member without a name'} {what}")

    def add(self, name: bytes, *, offset: int, size: int) -> None:
        """A file in the archive.

        Args:
            name: As it stands there.
            offset: Where its bytes begin in the archive's file.
            size: How many they are.
        """
        if (added := _added(name)) is not None:
            self.found.passed_over[added] += 1
            return
        if (why := _leads_out(name)) is not None:
            self.wrong_member(name, f"{why}; names are paths below the archive; pack it again")
            return
        path = b"/".join(step for step in name.split(b"/") if step not in (b"", b"."))
        base = path.rpartition(b"/")[2]
        if has_suffix(base):
            self.found.names.append(self.part.folder + path)
            self.found.offset.append(offset)
            self.found.size.append(size)
        elif has_suffix(base, ("cls",)):
            self._add_label(path, self._read(min(size, _LARGEST_LABEL + 1), offset))
        elif has_suffix(base, ("json",)):
            self._json[key_of(path)] = (size, offset)
        elif has_suffix(base, ("tar",)) and not self.part.folder:
            called = f"{self.part.called}: {printable(path)}"
            folder = path[: -len(b".tar")] + b"/"
            self.found.inner.append(Part(self.part.path, called, offset, size, folder))
        else:
            self._pass_over(base)

    def done(self) -> Contents:
        """All that was found."""
        found = self.found
        if not self._labels and found.names:
            self._labels_from_json()
        else:
            found.passed_over[".json"] += len(self._json)
        if self._labels:
            keys = [key_of(name[len(self.part.folder) :]) for name in found.names]
            found.told = [self._labels.get(key) for key in keys]
            self._refuse_two_of_onekey_of(keys)
            found.passed_over["labels without an image"] = len(self._labels.keys() - set(keys))
        else:
            found.told = [None] * len(found.names)
        if self._faults > _LISTED:
            found.faults.append(f"{self.part.called}: {self._faults - _LISTED:,} more faults")
        found.passed_over = +found.passed_over  # without what there is none of
        return found

    def _pass_over(self, base: bytes) -> None:
        suffix = os.path.splitext(printable(base))[1].lower()
        known = suffix in self.found.passed_over or len(self.found.passed_over) < 20
        self.found.passed_over[suffix if _SUFFIX.fullmatch(suffix) and known else "others"] += 1

    # -- Labels -----------------------------------------------------------------------------------

    def _add_label(self, path: bytes, content: bytes) -> None:
        text = content.strip().decode("utf-8", "backslashreplace")
        if len(content) > _LARGEST_LABEL or not text:
            size = "is empty" if not text else f"is larger than {_LARGEST_LABEL:,} bytes"
            self.wrong_member(path, f"{size}; a label is a whole number or a name")
        elif (key := key_of(path)) in self._labels:
            self.wrong_member(path, "stands twice; each key must stand once; pack it again")
        else:
            self._labels[key] = self._plain(text, path)

    def _plain(self, text: str, path: bytes) -> str:
        """A label as it is compared: of a whole number, its plainest spelling."""
        index = text.isascii() and text.isdigit()
        if _NO_INDEX.fullmatch(text) or (index and len(text) > _DIGITS):
            self.wrong_member(
                path,
                f"has the label {shortened(text)}; labels are names, or whole numbers from 0; "
                "mend it",
            )
        elif index:
            text = str(int(text))
        return self._same.setdefault(text, text)

    def _labels_from_json(self) -> None:
        """Labels of `KEY.json`, if any of these has one."""
        unreadable = 0
        for key, (size, offset) in self._json.items():
            try:
                told = json.loads(self._read(min(size, _LARGEST_JSON), offset))
            except (ValueError, RecursionError):
                unreadable += 1
                continue
            label = told.get("label") if isinstance(told, dict) else None
            if isinstance(label, int) and not isinstance(label, bool):
                self._labels[key] = self._plain(str(label), key + b".json")
        if self._labels and unreadable:
            self.fault(
                f"{unreadable:,} of its .json members cannot be read; an int `label` is needed in "
                "each, or a .cls beside it; pack it again"
            )
        if not self._labels:
            self.found.passed_over[".json"] += len(self._json)

    def _refuse_two_of_onekey_of(self, keys: list[bytes]) -> None:
        if len(set(keys)) == len(keys):
            return
        several = [(key, number) for key, number in Counter(keys).items() if number > 1]
        key, number = several[0]
        more = f", and {counted(len(several) - 1, 'more key')} have several" if several[1:] else ""
        self.fault(
            f"the key {shortened(printable(key))} has {number} images{more}; one image belongs to "
            "a label; pack it again"
        )


def key_of(path: bytes) -> bytes:
    """WebDataset's: up to the first dot of the last part."""
    folder, slash, base = path.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _added(name: bytes) -> str | None:
    """What systems and archivers add, by any part of its name; `.` and `..` are none of it."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..")]
    return next((added for part in parts if (added := added_as(part)) is not None), None)


def _leads_out(name: bytes) -> str | None:
    """Why a name is no path below the archive; None: it is."""
    if b"\0" in name:
        return "has a NUL in its name"
    if name.startswith(b"/") or _DRIVE.match(name):
        return "has an absolute path"
    parts = name.split(b"/")
    if b".." in parts:
        return "leads out of the archive"
    return None if any(part not in (b"", b".") for part in parts) else "has no name"

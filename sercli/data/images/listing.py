"""What in a folder is data: one rule for every scan, and files opened only if they are regular.

Passed over, at any depth, are names that begin with a dot and those that file servers, systems and
archivers add (`_ADDED`, PaxHeader): no data set has a class or an image of such a name. Links are
followed. A file must be regular: opening a pipe would wait for somebody to write into it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.errors import from_os_error
from sercli.runs.reading import what_is

SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")

# As their makers spell them; they are compared without regard to case.
_ADDED = (
    "@eaDir",  # Synology: thumbnails and attributes
    "@Recycle",  # QNAP, as the next three
    "@Recently-Snapshot",
    "@__thumb",
    ".@__thumb",
    "#recycle",  # Synology, as the next two
    "#snapshot",
    "@tmp",
    "~snapshot",  # NetApp
    "lost+found",  # ext4
    "__MACOSX",  # macOS: archives, and network drives
    ".DS_Store",
    "Network Trash Folder",
    "Temporary Items",
    "$RECYCLE.BIN",  # Windows
    "RECYCLER",
    "System Volume Information",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
)
_BY_NAME = {name.lower().encode(): name for name in _ADDED}
_NOWHERE = "a link that leads nowhere"


def added_as(name: bytes) -> str | None:
    """What of the table a file or folder is, for counting; None: it may be data."""
    if (known := _BY_NAME.get(name.lower())) is not None:
        return known
    if name.startswith(b"."):
        return "._*" if name.startswith(b"._") else ".*"
    return "PaxHeader*" if name.startswith(b"PaxHeader") else None  # of a tar that was not known


def has_suffix(name: bytes, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether a file name ends in one of the suffixes, in any case, and has something before it."""
    stem, _, suffix = name.rpartition(b".")
    return stem != b"" and suffix.lower().decode("latin-1") in suffixes


def printable(name: bytes) -> str:
    """A file name as text: UTF-8, and bytes that are not shown as \\xNN."""
    return name.decode("utf-8", "backslashreplace")


# -- Folders ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """What tells whether a directory is another one, or has changed, since it was listed.

    Attributes:
        mtime_ns: When a name was added or removed; people and rsync set it.
        ctime_ns: The same, and nobody can set it; a file system may lack it.
        size: In bytes, or as the file system counts.
        device: With `inode`: which directory it is, whatever it is called.
        inode: 0 where the file system has none.
    """

    mtime_ns: int
    ctime_ns: int
    size: int
    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        mask = 2**63 - 1  # all fit an int64
        values = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        return cls(*values, status.st_dev & mask, status.st_ino & mask)

    def row(self) -> list[int]:
        """The five numbers, as an array of many has them."""
        return [self.mtime_ns, self.ctime_ns, self.size, self.device, self.inode]

    @property
    def identity(self) -> tuple[int, int] | None:
        """Equal for two names of one directory; None where that cannot be told."""
        return (self.device, self.inode) if self.inode else None


@dataclass(frozen=True)
class Listing:
    """What of a directory may be data.

    Attributes:
        stamp: From just before it was listed.
        folders: Names, sorted.
        files: Names with one of the suffixes, sorted; some may be in `faults`.
        faults: Name → what it is that cannot be read: a FIFO, say, or a link that leads nowhere,
            whatever its name.
        passed_over: What is not data by its name, as `added_as` calls it → how many.
    """

    stamp: Stamp
    folders: tuple[bytes, ...]
    files: tuple[bytes, ...]
    faults: Mapping[bytes, str]
    passed_over: Counter[str]


def list_directory(
    directory: bytes | str | Path, *, suffixes: Collection[str] = SUFFIXES
) -> Listing:
    """List a directory.

    Args:
        directory: Its path.
        suffixes: Of the files asked for.

    Raises:
        UserError: It cannot be listed.
    """
    path = os.fsencode(directory)
    folders: list[bytes] = []
    files: list[bytes] = []
    faults: dict[bytes, str] = {}
    passed: Counter[str] = Counter()
    try:
        # The stamp is taken first: what changes while listing makes it too old, never too new.
        stamp = Stamp.of(os.stat(path))
        with os.scandir(path) as entries:
            for entry in entries:
                if (added := added_as(entry.name)) is not None:
                    passed[added] += 1
                    continue
                wanted = has_suffix(entry.name, suffixes)
                folder, fault = _look_at(entry, wanted=wanted)
                if folder:
                    folders.append(entry.name)
                elif wanted:
                    files.append(entry.name)
                if fault:
                    faults[entry.name] = fault
    except OSError as error:
        raise from_os_error(error, f"cannot list {printable(path)}") from error
    return Listing(stamp, tuple(sorted(folders)), tuple(sorted(files)), faults, passed)


def _look_at(entry: os.DirEntry[bytes], *, wanted: bool) -> tuple[bool, str]:
    """Whether an entry is a folder, and what is wrong with it, if anything is.

    Of what is no link this asks the operating system nothing.
    """
    try:
        if entry.is_dir():
            return True, ""
        if wanted and not entry.is_file():
            return False, what_is(os.stat(entry.path).st_mode)
        if not wanted and entry.is_symlink():  # it may have been a folder of images
            os.stat(entry.path)
    except OSError as error:
        return False, _reason(error)
    return False, ""


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _NOWHERE
    if error.errno == errno.ELOOP:
        return "a link that leads to itself"
    return f"a link that cannot be followed ({error.strerror})"


def regular_files(directory: Path) -> set[str]:
    """Names of the regular files in a directory, whatever they are called, and of links to such.

    Raises:
        UserError: It cannot be listed.
    """

    def is_regular(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_file()
        except OSError:  # a link that leads to itself, or where nobody may look
            return False

    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in entries if is_regular(entry)}
    except OSError as error:
        raise from_os_error(error, f"cannot list {directory}") from error


def is_directory(path: Path) -> bool:
    """Whether there is such a directory. One that may not be looked at is not taken for missing.

    Raises:
        UserError: It cannot be told.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise from_os_error(error, f"cannot look at {path}") from error


def stamps_of(files: Sequence[str]) -> NDArray[np.int64]:
    """int64 [F, 5], each file's `Stamp`.

    Raises:
        UserError: One cannot be looked at.
    """
    rows = [_stamp(file) for file in files]
    return np.array(rows, np.int64).reshape(-1, len(fields(Stamp)))


def _stamp(file: str) -> list[int]:
    try:
        return Stamp.of(os.stat(file)).row()
    except OSError as error:
        raise from_os_error(error, f"cannot look at {file}") from error

"""The list of images below a folder of class folders, scanned once and then kept in a cache.

The cache is `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`, never the data directory, which
may be read-only. A stored list is used only while every directory seen has the modification time
it had before it was listed; a damaged one is replaced and an unwritable cache only costs time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sercli.errors import SerError, from_os_error
from sercli.runs.files import write_atomic

SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")

_FORMAT = 1
_SUFFIX_BYTES = frozenset(suffix.encode() for suffix in SUFFIXES)
# A directory changed this recently may change again within one tick of the file system's clock, so
# that its time would not tell; such a scan is not stored. (FAT's tick, the coarsest, is 2 s.)
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Manifest:
    """The images below one folder of class folders, about 35 bytes a file.

    Attributes:
        root: Absolute path of the folder that holds the class folders.
        classes: Names of the class folders, sorted.
        directories: All directories seen, relative to `root`; the first is the root itself ("").
        directory_class: int32 [D], each directory's class (-1 for the root).
        directory_mtime_ns: int64 [D], modification times from just before each was listed.
        file_directory: int32 [N], each file's directory.
        names: uint8, the file names one after another.
        offsets: int64 [N+1], where each name starts in `names`.
    """

    root: str
    classes: tuple[str, ...]
    directories: tuple[bytes, ...]
    directory_class: NDArray[np.int32]
    directory_mtime_ns: NDArray[np.int64]
    file_directory: NDArray[np.int32]
    names: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file_directory)

    def relative(self, index: int) -> bytes:
        """The path of a file below `root`."""
        name = self.names[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return os.path.join(self.directories[self.file_directory[index]], name)

    def labels(self) -> NDArray[np.int64]:
        """int64 [N], the class of each file."""
        return self.directory_class[self.file_directory].astype(np.int64)

    def class_counts(self) -> NDArray[np.int64]:
        """int64 [C], the number of files in each class."""
        return np.bincount(self.labels(), minlength=len(self.classes)).astype(np.int64)


def is_image_name(name: bytes) -> bool:
    """Whether a file name ends in one of `SUFFIXES`, in any case, and is not hidden."""
    stem, _, suffix = name.rpartition(b".")
    return suffix.lower() in _SUFFIX_BYTES and stem != b"" and not name.startswith(b".")


def printable(name: bytes) -> str:
    """A file name as text: UTF-8, and bytes that are not shown as \\xNN."""
    return name.decode("utf-8", "backslashreplace")


def read_manifest(root: Path) -> Manifest:
    """The images below `root`, from the cache where it still holds, otherwise by a new scan.

    Raises:
        UserError: A directory cannot be listed.
    """
    absolute = os.path.realpath(root)
    stored = _cache_file(absolute)
    manifest = _load(stored, absolute)
    if manifest is None:
        started = time.time_ns()
        manifest = scan(absolute)
        if np.all(np.abs(started - manifest.directory_mtime_ns) >= _SETTLED_NS):
            _store(stored, manifest)
    return manifest


# -- scanning ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listing:
    mtime_ns: int
    identity: tuple[int, int]
    folders: list[bytes]
    images: list[bytes]


def scan(root: str) -> Manifest:
    """List all images below `root` without looking at the cache.

    A class is a first-level folder; images may lie in folders below it; links are followed; names
    that start with a dot are left out, and so are images beside the class folders. Files are
    ordered by class, directory and name.

    Raises:
        UserError: A directory cannot be listed.
    """
    top = _list(os.fsencode(root))
    directories, classes, mtimes = [b""], [-1], [top.mtime_ns]
    counts = [0]
    names: list[bytes] = []
    for label, class_folder in enumerate(top.folders):
        # Depth first, in sorted order; the ancestors' identities stop links that lead back up.
        pending = [(class_folder, frozenset([top.identity]))]
        while pending:
            directory, ancestors = pending.pop()
            listing = _list(os.path.join(os.fsencode(root), directory))
            if listing.identity in ancestors:
                continue
            directories.append(directory)
            classes.append(label)
            mtimes.append(listing.mtime_ns)
            counts.append(len(listing.images))
            names.extend(listing.images)
            inside = ancestors | {listing.identity}
            pending.extend(
                (os.path.join(directory, name), inside) for name in reversed(listing.folders)
            )
    joined, offsets = _join(names)
    return Manifest(
        root=root,
        classes=tuple(printable(name) for name in top.folders),
        directories=tuple(directories),
        directory_class=np.array(classes, np.int32),
        directory_mtime_ns=np.array(mtimes, np.int64),
        file_directory=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        names=joined,
        offsets=offsets,
    )


def _list(directory: bytes) -> _Listing:
    folders: list[bytes] = []
    images: list[bytes] = []
    try:
        # The time is taken first: what changes while listing makes it too old, never too new.
        status = os.stat(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    if not name.startswith(b"."):
                        folders.append(name)
                elif is_image_name(name):
                    # A dead link counts too: it is reported when it is read, not lost silently.
                    images.append(name)
    except OSError as error:
        raise from_os_error(error, f"cannot list {printable(directory)}") from error
    folders.sort()
    images.sort()
    return _Listing(status.st_mtime_ns, (status.st_dev, status.st_ino), folders, images)


# -- the cache --------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Where manifests are kept: `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`."""
    if chosen := os.environ.get("SER_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "ser"


def _cache_file(root: str) -> Path:
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return cache_directory() / "manifests" / f"{key}.npz"


def _join(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The names one after another (uint8), and where each starts (int64 [len + 1])."""
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
    return np.frombuffer(b"".join(names), np.uint8), offsets


def _split(names: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[bytes, ...]:
    joined = names.tobytes()
    return tuple(joined[start:stop] for start, stop in pairwise(offsets.tolist()))


def _store(path: Path, manifest: Manifest) -> None:
    directory_names, directory_offsets = _join(manifest.directories)
    class_names, class_offsets = _join([name.encode() for name in manifest.classes])

    def write(file: BinaryIO) -> None:
        np.savez(
            file,
            format=np.array(_FORMAT),
            root=np.frombuffer(os.fsencode(manifest.root), np.uint8),
            class_names=class_names,
            class_offsets=class_offsets,
            directory_names=directory_names,
            directory_offsets=directory_offsets,
            directory_class=manifest.directory_class,
            directory_mtime_ns=manifest.directory_mtime_ns,
            file_directory=manifest.file_directory,
            names=manifest.names,
            offsets=manifest.offsets,
        )

    with suppress(SerError):  # an unwritable or full cache only costs the next scan
        write_atomic(path, write)


def _load(path: Path, root: str) -> Manifest | None:
    """The stored manifest if there is one, it is whole, and no directory has changed since."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["format"]) != _FORMAT or stored["root"].tobytes() != os.fsencode(root):
                return None
            class_names = _split(stored["class_names"], stored["class_offsets"])
            manifest = Manifest(
                root=root,
                classes=tuple(name.decode() for name in class_names),
                directories=_split(stored["directory_names"], stored["directory_offsets"]),
                directory_class=stored["directory_class"],
                directory_mtime_ns=stored["directory_mtime_ns"],
                file_directory=stored["file_directory"],
                names=stored["names"],
                offsets=stored["offsets"],
            )
    except Exception:
        # Missing, cut short, overwritten, of another version: whatever it is, a scan mends it.
        return None
    return manifest if _is_whole(manifest) and _is_current(manifest) else None


def _is_whole(manifest: Manifest) -> bool:
    num_directories = len(manifest.directories)
    return (
        len(manifest.directory_class) == num_directories
        and len(manifest.directory_mtime_ns) == num_directories
        and len(manifest.offsets) == len(manifest) + 1
        and manifest.offsets[-1] == len(manifest.names)
        and (not len(manifest) or manifest.file_directory.min() > 0)
        and (not len(manifest) or manifest.file_directory.max() < num_directories)
    )


def _is_current(manifest: Manifest) -> bool:
    root = os.fsencode(manifest.root)
    try:
        return all(
            os.stat(os.path.join(root, directory)).st_mtime_ns == mtime_ns
            for directory, mtime_ns in zip(
                manifest.directories, manifest.directory_mtime_ns.tolist(), strict=True
            )
        )
    except OSError:
        return False

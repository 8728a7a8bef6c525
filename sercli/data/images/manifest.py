"""The list of images below a folder of class folders, scanned once and then kept in a cache.

The cache is `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`, never the data directory, which
may be read-only; without a place that can be written, every command scans.

A stored list is used only while each directory seen has the times, the size and the identity that
it had before it was listed: that shows whatever was added, removed or renamed, also by programs
that set a directory's modification time back (rsync -a, tar, touch -r), as nobody can set the time
of its change. Not seen is what changes no directory: a file written anew in place, which is read
as it is then; and, on file systems that keep no time of change (FAT, some network drives), what is
added and set back. The stored bytes carry their own hash; damaged or of another version, they are
replaced by a new scan.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.images.listing import Stamp, list_directory, printable
from sercli.errors import SerError
from sercli.runs.files import write_atomic
from sercli.runs.reading import open_regular

_MAGIC = b"ser's list of images, 2\n"
_LENGTH_OF_HASH = hashlib.sha256().digest_size
# A directory changed this recently may change again within one tick of the file system's clock, so
# that its time would not tell; such a scan is not stored. (FAT's tick, the coarsest, is 2 s.)
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Fault:
    """What lies among the images and cannot be read.

    Attributes:
        path: Below the folder of class folders.
        reason: What it is, such as "a FIFO".
        listed: Whether it has an image's name, so that it is among the files.
    """

    path: bytes
    reason: str
    listed: bool

    def said_below(self, root: str) -> str:
        """ "DIR/n01/x.jpg is a FIFO"."""
        return f"{os.path.join(root, printable(self.path))} is {self.reason}"


@dataclass(frozen=True)
class Manifest:
    """The images below one folder of class folders, about 35 bytes a file.

    Attributes:
        root: Absolute path of the folder that holds the class folders.
        classes: Names of the class folders, sorted.
        directories: All directories seen, relative to `root`; the first is the root itself ("").
        directory_class: int32 [D], each directory's class (-1 for the root).
        stamps: int64 [D, 5], each directory's `Stamp`, from just before it was listed.
        file_directory: int32 [N], each file's directory.
        names: uint8, the file names one after another.
        offsets: int64 [N+1], where each name starts in `names`.
        passed_over: What was left out by its name, and how many of each.
        faults: What cannot be read; a list with any is not kept, as they may be mended.
    """

    root: str
    classes: tuple[str, ...]
    directories: tuple[bytes, ...]
    directory_class: NDArray[np.int32]
    stamps: NDArray[np.int64]
    file_directory: NDArray[np.int32]
    names: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

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


def read_manifest(root: Path) -> Manifest:
    """The images below `root`, from the cache where it still holds, otherwise by a new scan.

    Raises:
        UserError: A directory cannot be listed.
    """
    absolute = os.path.realpath(root)
    stored = _cache_file(absolute)
    manifest = None if stored is None else _load(stored, absolute)
    if manifest is None:
        started = time.time_ns()
        manifest = scan(absolute)
        settled = np.all(np.abs(started - manifest.stamps[:, :2]) >= _SETTLED_NS)
        if stored is not None and settled and not manifest.faults:
            _store(stored, manifest)
    return manifest


# -- scanning ---------------------------------------------------------------------------------


def scan(root: str) -> Manifest:
    """List all images below `root` without looking at the cache.

    A class is a first-level folder; images may lie in folders below it; images beside the class
    folders are left out. Links are followed, but no directory is listed twice for a class. Files
    are ordered by class, directory and name.

    Raises:
        UserError: A directory cannot be listed.
    """
    top = list_directory(root)
    directories, classes, stamps = [b""], [-1], [top.stamp]
    counts = [0]
    names: list[bytes] = []
    passed = Counter(top.passed_over)
    # What beside the class folders leads nowhere may have been one; a loose file is no image of it.
    faults = [
        Fault(name, why, listed=False)
        for name, why in sorted(top.faults.items())
        if name not in top.files
    ]
    for label, class_folder in enumerate(top.folders):
        # Depth first, in sorted order. Links may lead up, or in many ways to one directory.
        pending, seen = [class_folder], {top.stamp.identity} - {None}
        while pending:
            directory = pending.pop()
            listing = list_directory(os.path.join(os.fsencode(root), directory))
            if listing.stamp.identity in seen:
                continue
            if listing.stamp.identity is not None:
                seen.add(listing.stamp.identity)
            directories.append(directory)
            classes.append(label)
            stamps.append(listing.stamp)
            counts.append(len(listing.files))
            names.extend(listing.files)
            passed += listing.passed_over
            faults += [
                Fault(os.path.join(directory, name), why, listed=name in listing.files)
                for name, why in sorted(listing.faults.items())
            ]
            pending.extend(os.path.join(directory, name) for name in reversed(listing.folders))
    joined, offsets = _join(names)
    return Manifest(
        root=root,
        classes=tuple(printable(name) for name in top.folders),
        directories=tuple(directories),
        directory_class=np.array(classes, np.int32),
        stamps=np.array([stamp.row() for stamp in stamps], np.int64),
        file_directory=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        names=joined,
        offsets=offsets,
        passed_over=dict(passed),
        faults=tuple(faults),
    )


# -- the cache --------------------------------------------------------------------------------


def cache_directory() -> Path | None:
    """Where lists are kept: `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`.

    None where there is no such place: a container's user may have no home, and no entry in passwd.
    """
    if chosen := os.environ.get("SER_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored then, its specification says
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base) / "ser"


def _cache_file(root: str) -> Path | None:
    directory = cache_directory()
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return None if directory is None else directory / "manifests" / f"{key}.list"


def _join(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The names one after another (uint8), and where each starts (int64 [len + 1])."""
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
    return np.frombuffer(b"".join(names), np.uint8), offsets


def _split(names: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[bytes, ...]:
    joined = names.tobytes()
    return tuple(joined[start:stop] for start, stop in pairwise(offsets.tolist()))


def _store(path: Path, manifest: Manifest) -> None:
    content = pack(manifest)
    with suppress(SerError):  # an unwritable or full cache only costs the next scan
        write_atomic(path, lambda file: file.write(content))


def _load(path: Path, root: str) -> Manifest | None:
    """The stored list if there is one, it is whole, and no directory has changed since."""
    try:
        with open_regular(path) as file:
            content = file.read()
    except Exception:
        return None  # whatever it is, a scan does instead
    manifest = unpack(content, root)
    return manifest if manifest is not None and _is_current(manifest) else None


def pack(manifest: Manifest) -> bytes:
    """A list as it is stored: a hash of what follows, the length of each part, the parts."""
    directory_names, directory_offsets = _join(manifest.directories)
    facts = {
        "root": os.fsencode(manifest.root).hex(),
        "classes": manifest.classes,
        "passed_over": dict(manifest.passed_over),
    }
    parts = [
        json.dumps(facts).encode(),
        directory_names.tobytes(),
        directory_offsets.astype("<i8").tobytes(),
        manifest.directory_class.astype("<i4").tobytes(),
        manifest.stamps.astype("<i8").tobytes(),
        manifest.file_directory.astype("<i4").tobytes(),
        manifest.names.tobytes(),
        manifest.offsets.astype("<i8").tobytes(),
    ]
    lengths = np.array([len(part) for part in parts], "<i8").tobytes()
    body = b"".join([lengths, *parts])
    return b"".join([_MAGIC, hashlib.sha256(body).digest(), body])


_NUM_PARTS = 8


def unpack(content: bytes, root: str) -> Manifest | None:
    """What `pack` made of the list of `root`; None: it is anything else."""
    start = len(_MAGIC) + _LENGTH_OF_HASH
    body = content[start:]
    told = content[len(_MAGIC) : start]
    if not content.startswith(_MAGIC) or told != hashlib.sha256(body).digest():
        return None
    try:
        manifest = _parsed(body, root)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError):
        return None  # of another version, or made by hand
    return manifest if _is_whole(manifest) else None


def _parsed(body: bytes, root: str) -> Manifest:
    lengths = np.frombuffer(body, "<i8", _NUM_PARTS).tolist()
    if min(lengths) < 0 or sum(lengths) + 8 * _NUM_PARTS != len(body):
        raise ValueError("the parts do not add up")
    facts, names_of_directories, ends, of_class, stamps, of_file, names, offsets = _parts(
        body, lengths
    )
    told = json.loads(facts)
    if bytes.fromhex(told["root"]) != os.fsencode(root):
        raise ValueError("of another folder")
    passed = {str(name): int(number) for name, number in told["passed_over"].items()}
    return Manifest(
        root=root,
        classes=tuple(str(name) for name in told["classes"]),
        directories=_split(
            np.frombuffer(names_of_directories, np.uint8),
            np.frombuffer(ends, "<i8").astype(np.int64),
        ),
        directory_class=np.frombuffer(of_class, "<i4").astype(np.int32),
        stamps=np.frombuffer(stamps, "<i8").astype(np.int64).reshape(-1, len(fields(Stamp))),
        file_directory=np.frombuffer(of_file, "<i4").astype(np.int32),
        names=np.frombuffer(names, np.uint8),
        offsets=np.frombuffer(offsets, "<i8").astype(np.int64),
        passed_over=passed,
    )


def _parts(body: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    position = 8 * _NUM_PARTS
    for length in lengths:
        yield body[position : position + length]
        position += length


def _is_whole(manifest: Manifest) -> bool:
    """Whether all indices lie in their ranges and no name leads out of the folder."""
    num_directories, labels = len(manifest.directories), manifest.directory_class
    files, offsets = manifest.file_directory, manifest.offsets
    return bool(
        num_directories
        and manifest.directories[0] == b""
        and all(map(_leads_down, manifest.directories[1:]))
        and len(labels) == len(manifest.stamps) == num_directories
        and labels[0] == -1
        and np.all((labels[1:] >= 0) & (labels[1:] < len(manifest.classes)))
        and np.all((files > 0) & (files < num_directories))
        and len(offsets) == len(files) + 1
        and offsets[0] == 0
        and np.all(np.diff(offsets) > 0)
        and offsets[-1] == len(manifest.names)
        and ord("/") not in manifest.names
    )


def _leads_down(directory: bytes) -> bool:
    return bool(directory) and not {b"", b".", b".."} & {*directory.split(b"/")}


def _is_current(manifest: Manifest) -> bool:
    root = os.fsencode(manifest.root)
    try:
        return all(
            Stamp.of(os.stat(os.path.join(root, directory))).row() == stamp
            for directory, stamp in zip(manifest.directories, manifest.stamps.tolist(), strict=True)
        )
    except (OSError, ValueError):  # a path of a list made by hand may hold a NUL
        return False

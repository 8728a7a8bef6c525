"""The list of images below a folder, of class folders or without, scanned once and then kept.

A stored list is used only while each directory seen has the times, the size and the identity that
it had before it was listed: that shows whatever was added, removed or renamed, also by programs
that set a directory's modification time back (rsync -a, tar, touch -r), as nobody can set the time
of its change. Not seen is what changes no directory: a file written anew in place, which is read
as it is then; and, on file systems that keep no time of change (FAT, some network drives), what is
added and set back. The stored bytes carry their own hash; damaged or of another version, they are
replaced by a new scan.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.images import kept
from sercli.data.images.listing import Listing, Stamp, list_directory, printable

_MAGIC = b"ser's list of images, 2\n"


@dataclass(frozen=True)
class Fault:
    """What lies among the images and cannot be read.

    Attributes:
        path: Below the folder that was listed.
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
    """The images below one folder, about 35 bytes a file.

    Attributes:
        root: Absolute path of the folder that holds the class folders, or all images.
        classes: Names of the class folders, sorted; none: the images have no labels.
        directories: All directories seen, relative to `root`; the first is the root itself ("").
        directory_class: int32 [D], each directory's class (-1 for a root of class folders);
            zeros where there are no labels.
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


def read_manifest(root: Path, *, labelled: bool = True) -> Manifest:
    """The images below `root`, from the cache where it still holds, otherwise by a new scan.

    Args:
        root: A folder.
        labelled: Whether its folders are classes, as `scan` has it.

    Raises:
        UserError: A directory cannot be listed.
    """
    absolute = os.path.realpath(root)
    stored = _cache_file(absolute, labelled=labelled)
    manifest = None if stored is None else _load(stored, absolute, labelled=labelled)
    if manifest is None:
        started = time.time_ns()
        manifest = scan(absolute, labelled=labelled)
        if (
            stored is not None
            and not manifest.faults
            and kept.are_settled(manifest.stamps, started)
        ):
            kept.store(stored, pack(manifest))
    return manifest


# -- scanning ---------------------------------------------------------------------------------


def scan(root: str, *, labelled: bool = True) -> Manifest:
    """List all images below `root` without looking at the cache.

    A class is a first-level folder; images may lie in folders below it; images beside the class
    folders are left out. Without labels every image below `root` is one of the set. Links are
    followed, but no directory is listed twice for a class. Files are ordered by class, directory
    and name.

    Raises:
        UserError: A directory cannot be listed.
    """
    top = list_directory(root)
    directories, classes, stamps, counts = [b""], [-1], [top.stamp], [0]
    names: list[bytes] = []
    passed = Counter(top.passed_over)
    # What beside the class folders leads nowhere may have been one; a loose file is no image of it.
    faults = [one for one in _faults_of(b"", top) if not (labelled and one.listed)]
    starts: list[tuple[bytes, ...]] = [(folder,) for folder in top.folders]
    if not labelled:
        classes, counts, names, starts = [0], [len(top.files)], [*top.files], [top.folders]
    for label, folders in enumerate(starts):
        # Depth first, in sorted order. Links may lead up, or in many ways to one directory.
        pending, seen = [*reversed(folders)], {top.stamp.identity} - {None}
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
            faults += _faults_of(directory, listing)
            pending.extend(os.path.join(directory, name) for name in reversed(listing.folders))
    joined, offsets = kept.join(names)
    return Manifest(
        root=root,
        classes=tuple(printable(name) for name in top.folders) if labelled else (),
        directories=tuple(directories),
        directory_class=np.array(classes, np.int32),
        stamps=np.array([stamp.row() for stamp in stamps], np.int64),
        file_directory=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        names=joined,
        offsets=offsets,
        passed_over=dict(passed),
        faults=tuple(faults),
    )


def _faults_of(directory: bytes, listing: Listing) -> list[Fault]:
    return [
        Fault(os.path.join(directory, name), why, listed=name in listing.files)
        for name, why in sorted(listing.faults.items())
    ]


# -- the cache --------------------------------------------------------------------------------


def _cache_file(root: str, *, labelled: bool) -> Path | None:
    return kept.place_of(os.fsencode(root), kind="manifests" if labelled else "unlabelled")


def _load(path: Path, root: str, *, labelled: bool) -> Manifest | None:
    """The stored list if there is one, it is whole, and no directory has changed since."""
    content = kept.stored(path)
    manifest = None if content is None else unpack(content, root, labelled=labelled)
    return manifest if manifest is not None and _is_current(manifest) else None


def pack(manifest: Manifest) -> bytes:
    """A list as it is stored."""
    directory_names, directory_offsets = kept.join(manifest.directories)
    facts = {
        "root": os.fsencode(manifest.root).hex(),
        "classes": manifest.classes,
        "passed_over": dict(manifest.passed_over),
    }
    arrays = [
        directory_names,
        directory_offsets.astype("<i8"),
        manifest.directory_class.astype("<i4"),
        manifest.stamps.astype("<i8"),
        manifest.file_directory.astype("<i4"),
        manifest.names,
        manifest.offsets.astype("<i8"),
    ]
    return kept.pack(_MAGIC, facts, arrays)


_NUM_ARRAYS = 7


def unpack(content: bytes, root: str, *, labelled: bool = True) -> Manifest | None:
    """What `pack` made of such a list of `root`; None: it is anything else."""
    try:
        manifest = _parsed(content, root)
    except kept.NOT_OURS:
        return None  # of another version, or made by hand
    return manifest if _is_whole(manifest, labelled=labelled) else None


def _parsed(content: bytes, root: str) -> Manifest:
    told, parts = kept.unpack(_MAGIC, content, _NUM_ARRAYS)
    names_of_directories, ends, of_class, stamps, of_file, names, offsets = parts
    if bytes.fromhex(told["root"]) != os.fsencode(root):
        raise ValueError("of another folder")
    passed = {str(name): int(number) for name, number in told["passed_over"].items()}
    return Manifest(
        root=root,
        classes=tuple(str(name) for name in told["classes"]),
        directories=kept.split(
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


def _is_whole(manifest: Manifest, *, labelled: bool) -> bool:
    """Whether all indices lie in their ranges and no name leads out of the folder."""
    num_directories, labels = len(manifest.directories), manifest.directory_class
    files, offsets = manifest.file_directory, manifest.offsets
    # Files beside class folders are of none.
    of_root, first, num_classes = (-1, 1, len(manifest.classes)) if labelled else (0, 0, 1)
    return bool(
        num_directories
        and manifest.directories[0] == b""
        and all(map(_leads_down, manifest.directories[1:]))
        and len(labels) == len(manifest.stamps) == num_directories
        and (labelled or not manifest.classes)
        and labels[0] == of_root
        and np.all((labels[1:] >= 0) & (labels[1:] < num_classes))
        and np.all((files >= first) & (files < num_directories))
        and kept.are_names(manifest.names, offsets, len(files))
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

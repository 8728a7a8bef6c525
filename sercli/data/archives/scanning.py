"""Lists archives one after another, or several at once where there is much to look through."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from sercli import signals
from sercli.data.archives.contents import Contents, Part
from sercli.data.archives.tars import list_tar
from sercli.data.archives.zips import SPLIT, list_zip
from sercli.data.cores import cores
from sercli.errors import RunFailed, from_os_error
from sercli.runs.reading import NotRegular, open_regular
from sercli.visible import counted, say

_MUCH = 2**30  # bytes; of less, starting processes takes longer
_LONGEST_MAGIC = 8
_ZIP, _SPLIT_ZIP = (b"PK\x03\x04", b"PK\x05\x06"), b"PK\x07\x08"
# How a compressed file begins → what it is, and what unpacks it.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!": ("RAR", "unrar x"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"\x5d\x00\x00": ("lzma", "unlzma"),
}


def list_part(part: Part) -> Contents:
    """What is in an archive, or in a tar within one; what it is, its first bytes say.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open_regular(part.path) as file:
            descriptor = file.fileno()
            there = os.fstat(descriptor).st_size
            length = there - part.offset if part.size is None else part.size
            # What follows a header is mostly an image, of which nothing is wanted.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            magic = os.pread(descriptor, max(0, min(length, _LONGEST_MAGIC)), part.offset)
            if (why := _not_read(magic, within=bool(part.folder))) is not None:
                return Contents(faults=[f"{part.called}: {why}"])
            if magic.startswith(_ZIP):
                return list_zip(part, file, length)
            return list_tar(part, descriptor, length)
    except NotRegular as error:
        return Contents(faults=[f"{part.called}: {error}"])
    except OSError as error:
        raise from_os_error(error, f"cannot read {part.path}") from error


def _not_read(magic: bytes, *, within: bool) -> str | None:
    """Why what begins so is not read; None: it may be."""
    if not magic:
        return "it is empty; copy or download it again"
    if magic.startswith(_SPLIT_ZIP):
        return SPLIT
    if within and magic.startswith(_ZIP):
        return "it is a zip within a tar; only a tar may lie in one; unpack it"
    for begins, (what, unpacks) in _COMPRESSED.items():
        if magic.startswith(begins):
            return (
                f"it is compressed ({what}); images are read where they lie; {unpacks} it first, "
                "or unpack it and name the folder"
            )
    return None


def list_parts(parts: Sequence[Part], *, processes: int | None = None) -> Iterator[Contents]:
    """What is in each of some archives, in their order.

    Args:
        parts: What to list.
        processes: How many list (default: one for each core that this process may use, where
            there is much to list).

    Raises:
        UserError: One cannot be read.
        RunFailed: A process was killed.
    """
    number = min(len(parts), cores() if processes is None else processes)
    much = sum(map(_size, parts)) >= _MUCH
    if much and not any(part.folder for part in parts):
        where = os.path.dirname(parts[0].path)
        say(f"listing {counted(len(parts), 'archive')} in {where}, once", err=True)
    if number < 2 or (processes is None and not much):
        yield from map(list_part, parts)
        return
    # Spawned, not forked: whoever opens a data set may have threads.
    pool = ProcessPoolExecutor(
        number, mp_context=multiprocessing.get_context("spawn"), initializer=signals.ignore
    )
    try:
        with signals.starting_processes("spawn"):
            running = [pool.submit(list_part, part) for part in parts]
        for place, future in enumerate(running):
            yield future.result()
            del future
            running[place] = None  # type: ignore[call-overload]  # what it held is held once
    except BrokenProcessPool as error:
        raise RunFailed(
            f"listing {parts[0].path}: a process was killed, most likely for lack of memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _size(part: Part) -> int:
    try:
        return os.stat(part.path).st_size if part.size is None else part.size
    except OSError:
        return 0  # who lists it says why

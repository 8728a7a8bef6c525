"""The structure of a tar: `tarfile` reads the headers, and no byte of an image is read.

Truncation is told by what tar itself asks for: members that end within their archive, and a block
of zeros behind the last. `tarfile` takes a damaged header for the end, so the end is looked at.
"""

from __future__ import annotations

import os
import tarfile

from sercli.data.archives.contents import Collector, Contents, Part
from sercli.data.images.listing import printable
from sercli.errors import shortened

_BLOCK = 512
_LARGEST_HEADER = 1 << 20  # names, times and attributes of one member
_AHEAD = 4096  # bytes: a header, a small member behind it and the next header are one read
_PADDING = 1 << 16  # behind the end mark, zeros for the length of a tape's block

_NOT_READ = {
    tarfile.SYMTYPE: "is a symbolic link; links in archives are not followed; pack with tar -h",
    tarfile.LNKTYPE: "is a hard link; links in archives are not followed; pack with tar "
    "--hard-dereference",
    tarfile.CHRTYPE: "is a device; images are regular files; pack without it",
    tarfile.BLKTYPE: "is a device; images are regular files; pack without it",
    tarfile.FIFOTYPE: "is a FIFO; images are regular files; pack without it",
}
_SPARSE = "is stored sparse; an image is read where it lies, in one piece; pack without tar -S"
_UNKNOWN = "is of a type that is not read; images are regular files; pack with another tar"
_LABEL_OF_VOLUME = b"V"
_TRUNCATED = "it ends behind {}, without tar's end mark; it is truncated; copy or download it again"


def list_tar(part: Part, descriptor: int, length: int) -> Contents:
    """What is in a tar.

    Args:
        part: Which it is.
        descriptor: Of the file that it lies in.
        length: Its bytes.
    """
    collector = Collector(part, lambda size, offset: os.pread(descriptor, size, offset))
    file = _Headers(descriptor, part.offset, length)
    last, before = b"", -1
    try:
        with tarfile.TarFile(
            fileobj=file,  # type: ignore[arg-type]
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # one after another
                name = member.name.encode("utf-8", "surrogateescape")
                last = name
                if member.size < 0 or archive.offset <= before:
                    raise tarfile.ReadError("a size below zero")
                before = archive.offset
                if member.isreg() and member.offset_data + member.size > length:
                    collector.fault(
                        f"it ends within {_called(last)}, after {length:,} bytes; it is "
                        "truncated; copy or download it again"
                    )
                    return collector.done()
                _add(collector, member, name)
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if before >= length:  # what fills the last block is missing as well
            collector.fault(_TRUNCATED.format(_called(last)))
            return collector.done()
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        what = "it is no tar archive" if before < 0 else f"it is damaged behind {_called(last)}"
        collector.fault(f"{what} ({reason}); copy or download it again")
    else:
        _look_at_end(collector, file, end, last)
    return collector.done()


def _add(collector: Collector, member: tarfile.TarInfo, name: bytes) -> None:
    if member.isdir() or member.type == _LABEL_OF_VOLUME:
        return
    if member.issparse():
        collector.wrong_member(name, _SPARSE)
    elif member.isreg():
        offset = collector.part.offset + member.offset_data
        collector.add(name, offset=offset, size=member.size)
    else:
        collector.wrong_member(name, _NOT_READ.get(member.type, _UNKNOWN))


def _called(name: bytes) -> str:
    """A member in a message about what follows it."""
    return shortened(printable(name)) or "its start"


def _look_at_end(collector: Collector, file: _Headers, end: int, last: bytes) -> None:
    """`tarfile` has come to the end of the archive, or to something that it cannot read."""
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        collector.fault(_TRUNCATED.format(_called(last)))
    elif mark.strip(b"\0"):
        collector.fault(f"it is damaged behind {_called(last)}; copy or download it again")
    elif file.read(_PADDING).strip(b"\0"):
        collector.fault(
            f"more follows its end mark, behind {_called(last)}; tar reads one archive a file; "
            "join archives with tar -A, or name each"
        )


class _Headers:
    """A part of a file as `tarfile` reads it: what is asked for is small, and mostly in a row.

    Args:
        descriptor: Of the file.
        start: Where the part begins.
        length: Its bytes.
    """

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length = descriptor, start, length
        self._position = 0
        self._ahead, self._ahead_at = b"", 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """At most `size` bytes.

        Raises:
            tarfile.ReadError: More than a header has.
        """
        if not 0 <= size <= _LARGEST_HEADER or self._position < 0:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        size = max(0, min(size, self._length - self._position))
        first = self._position - self._ahead_at
        if not 0 <= first <= len(self._ahead) - size:
            wanted = min(max(size, _AHEAD), self._length - self._position)
            self._ahead = os.pread(self._descriptor, max(0, wanted), self._start + self._position)
            self._ahead_at, first = self._position, 0
        data = self._ahead[first : first + size]
        self._position += len(data)
        return data

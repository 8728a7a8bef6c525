"""Where the bytes of an image are: a file of its own, a part of a file, or memory.

Parts are read by `pread` at their offset: no scan, no position that processes share, and an archive
is open once in a process, a few of many at a time.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from sercli.errors import UserError
from sercli.runs.reading import open_regular

_OPEN_AT_ONCE = 32  # archives of a process: a thousand shards, a dozen processes, 1,024 descriptors
_IN_MEMORY = 64 * 2**20  # bytes; of a larger part Pillow reads as much as it needs


@dataclass(frozen=True)
class Span:
    """A part of a file.

    Attributes:
        path: The file.
        offset: Where the part begins, in bytes.
        size: Its bytes.
        length: Bytes of the whole file when its parts were listed.
        mtime_ns: When it had last been written then.
    """

    path: str
    offset: int
    size: int
    length: int
    mtime_ns: int


# A path; a part of a file; or the bytes themselves.
Where = str | Span | memoryview


@contextmanager
def open_stored(where: Where) -> Iterator[tuple[IO[bytes], int]]:
    """A file-like object on an image's bytes, and how many they are.

    Raises:
        NotRegular: The file is a FIFO, a device, a directory.
        OSError: It cannot be read.
        UserError: It is another than when its parts were listed.
    """
    if isinstance(where, str):
        with open_regular(where) as file:
            yield file, os.fstat(file.fileno()).st_size
    elif isinstance(where, memoryview):
        yield io.BytesIO(where), where.nbytes
    elif where.size <= _IN_MEMORY:
        yield io.BytesIO(read_span(where)), where.size
    else:
        yield io.BufferedReader(Window(where)), where.size


def read_span(span: Span) -> bytes:
    """All bytes of a part.

    Raises:
        OSError, NotRegular, UserError: As `open_stored`.
    """
    return _exactly(_opened.descriptor(span), span.size, span.offset)


class Window(io.RawIOBase):
    """A part of a file as a file of its own, seekable; read only.

    Raises:
        OSError, NotRegular, UserError: As `open_stored`, when it is read.
    """

    def __init__(self, span: Span) -> None:
        self._span, self._position = span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, self._span.size)[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset}; it must be >= 0")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._span.size - self._position))
        place = self._span.offset + self._position
        data = os.pread(_opened.descriptor(self._span), wanted, place) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Linux gives at most 2 GiB at once, and a signal may shorten what it gives."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError(f"its archive ends after {len(data):,} of its {size:,} bytes")
        data += more
    return data


class _OpenFiles:
    """Descriptors of the archives that this process read last. Not for several threads."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def descriptor(self, span: Span) -> int:
        key = (span.path, span.length, span.mtime_ns)
        found = self._descriptors.get(key)
        if found is not None:
            _require_as_listed(span, os.fstat(found))  # it may be written anew in place
        else:
            found = self._descriptors[key] = _open_as_listed(span)
            while len(self._descriptors) > _OPEN_AT_ONCE:
                os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(key)
        return found


_opened = _OpenFiles()


def _open_as_listed(span: Span) -> int:
    with open_regular(span.path) as file:
        _require_as_listed(span, os.fstat(file.fileno()))
        return os.dup(file.fileno())


def _require_as_listed(span: Span, status: os.stat_result) -> None:
    if (status.st_size, status.st_mtime_ns) != (span.length, span.mtime_ns):
        raise UserError(
            f"{span.path} has changed since the images in it were listed",
            "what is read of an archive is where its list says",
            "repeat the command: it is listed anew",
        )

"""A tar of WebDataset's form: KEY.suffix and KEY.cls, with no time and no owner.

The same images make the same bytes. Headers are ustar's; what does not fit one (a name of more than
100 bytes that cannot be parted, a file of 8 GiB) has a header of pax before it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tars are padded to


class TarShard:
    """Writes images one after another.

    Args:
        write: Takes bytes.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._position = write, 0

    def add(self, member: bytes, data: bytes, label: int | None) -> int:
        """An image, and its label if it has one.

        Args:
            member: What it is called: KEY.suffix.
            data: Its bytes.
            label: Index of its class.

        Returns:
            Where its bytes begin in the tar.
        """
        place = self._file(member, data)
        if label is not None:
            self._file(member.rpartition(b".")[0] + b".cls", str(label).encode())
        return place

    def close(self) -> None:
        """The end of the tar: two blocks of zeros, and what fills a record."""
        end = self._position + 2 * _BLOCK
        self._put(bytes(2 * _BLOCK + -end % _RECORD))

    def _file(self, name: bytes, data: bytes) -> int:
        self._put(_header(name, len(data)))
        place = self._position
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))
        return place

    def _put(self, data: bytes) -> None:
        self._write(data)
        self._position += len(data)


def _header(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    except ValueError:
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

"""The pages of a parquet column of bytes: where they are, and the values in one.

A row group of a set of images is some ten to a hundred MiB, and pyarrow decodes it whole. Its
pages, of about one MiB, can be read each for itself: a header says how long the next one is. So an
image at random costs a page. What is read here are plain and dictionary-encoded pages of either
version, under any codec of pyarrow's; anything else is `Unfamiliar`, and left to pyarrow.

The format: https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_PLAIN, _BY_DICTIONARY = 0, (2, 8)
_HEADER = 256  # bytes; what most headers need
_LONGEST_HEADER = 1 << 16  # statistics of a page may hold two values
_DEEPEST = 8
_LONG = 1 << 14  # bytes of a value from which it is passed over rather than read
_LARGEST = 1 << 31  # bytes of a page: the format has int32

Read = Callable[[int, int], bytes]


class Unfamiliar(Exception):
    """A page is encoded in a way that only pyarrow reads."""


class Page(NamedTuple):
    """Where a page is, and how its values are stored.

    Attributes:
        offset: Where what follows its header begins, in bytes from the chunk's start.
        stored: Bytes there.
        size: Bytes once it is decompressed.
        first: The first of its rows, counted from the chunk's.
        rows: How many there are.
        encoding: Of its values, the format's number.
        levels: Bytes of definition levels that stand before what is compressed; -1: they are in it.
        compressed: Whether the codec was used.
    """

    offset: int
    stored: int
    size: int
    first: int
    rows: int
    encoding: int
    levels: int
    compressed: bool


@dataclass(frozen=True)
class ChunkPages:
    """The pages of a column chunk.

    Attributes:
        dictionary: The page that values of other pages are indices into; None: there is none.
        data: The others, in the order of their rows.
    """

    dictionary: Page | None
    data: tuple[Page, ...]

    def holding(self, row: int) -> Page:
        """The page with a row of the chunk.

        Raises:
            ValueError: None has.
        """
        for page in self.data:
            if page.first <= row < page.first + page.rows:
                return page
        raise ValueError(f"no page has row {row}")

    def read_for(self, page: Page) -> int:
        """Bytes that are read for a value of a page."""
        also = self.dictionary.stored if self.dictionary and page.encoding != _PLAIN else 0
        return page.stored + also


@dataclass(frozen=True)
class Values:
    """Decoded values of a page.

    Attributes:
        data: What they lie in.
        starts: int64 [N], where each begins.
        sizes: int64 [N], bytes of each; -1: it is null.
    """

    data: bytes
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return len(self.data) + self.starts.nbytes + self.sizes.nbytes

    def value(self, index: int) -> memoryview | None:
        """The bytes of one; None: it is null."""
        start, size = int(self.starts[index]), int(self.sizes[index])
        return None if size < 0 else memoryview(self.data)[start : start + size]


def find_pages(read: Read, *, size: int, rows: int) -> ChunkPages:
    """Walk over the headers of a column chunk.

    Args:
        read: Offset in the chunk and a number of bytes → these.
        size: Bytes of the chunk.
        rows: Its rows; the column has no lists, so that each has one value.

    Raises:
        ValueError: It is damaged.
        Unfamiliar: It has a page of another kind or encoding.
    """
    position, found = 0, 0
    dictionary: Page | None = None
    data: list[Page] = []
    while found < rows:
        if position >= size:
            raise ValueError(f"its pages end after {found} of {rows} rows")
        header, length = _header(read, position, size)
        page = _page(header, offset=position + length, first=found)
        if not 0 <= page.stored <= size - page.offset or not 0 <= page.size < _LARGEST:
            raise ValueError("a page does not fit its column chunk")
        if header.get(1) == _DICTIONARY:
            dictionary = page
        else:
            if not 0 < page.rows <= rows - found:
                raise ValueError(f"a page of {page.rows} rows where {rows - found} are left")
            data.append(page)
            found += page.rows
        position = page.offset + page.stored
    return ChunkPages(dictionary, tuple(data))


def read_values(
    page: Page,
    stored: bytes,
    *,
    decompress: Callable[[bytes, int], bytes],
    max_level: int,
    dictionary: Callable[[], Values],
) -> Values:
    """The values of a data page, or of a dictionary's.

    Args:
        page: What its header says.
        stored: The bytes after it.
        decompress: Bytes and how many they become → these.
        max_level: What a definition level is where the value is not null; 0: there are no levels.
        dictionary: Gives the values of the chunk's dictionary page.

    Raises:
        ValueError: It is damaged.
        Unfamiliar: As `find_pages`.
    """
    before = max(0, page.levels)
    if before > len(stored):
        raise ValueError("its levels do not fit their page")
    data = stored[before:]
    if page.compressed:
        data = decompress(data, page.size - before)
    position = 0
    there = np.ones(page.rows, bool)
    if max_level:
        if page.levels < 0:
            position = 4 + int.from_bytes(_cut(data, 0, 4), "little")
            levels = _cut(data, 4, position - 4)
        else:
            levels = stored[:before]
        found = _runs(levels, bit_width=max_level.bit_length(), count=page.rows)
        there = found == max_level
    count = int(there.sum())
    starts, sizes = np.zeros(page.rows, np.int64), np.full(page.rows, -1, np.int64)
    if page.encoding == _PLAIN:
        starts[there], sizes[there] = _plain(data, position, count)
        return Values(data, starts, sizes)
    if count:
        known = dictionary()
        width = _cut(data, position, 1)[0]
        indices = _runs(data[position + 1 :], bit_width=width, count=count)
        if indices.min() < 0 or indices.max() >= len(known.starts):
            raise ValueError("an index leads out of its dictionary")
        starts[there], sizes[there] = known.starts[indices], known.sizes[indices]
        data = known.data
    return Values(data, starts, sizes)


def find_places(
    page: Page, read: Read, *, max_level: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Where the values of a plain page that is not compressed begin in its chunk, and their sizes.

    Of long values only the lengths before them are read.

    Args:
        page: Of a chunk without a codec.
        read: Offset in the chunk and a number of bytes → these.
        max_level: As `read_values` has it.

    Returns:
        int64 [rows] each; None: they lie otherwise, or some are null or empty.

    Raises:
        ValueError, IndexError: It is damaged.
    """
    if page.encoding != _PLAIN:
        return None
    position, end = page.offset + max(0, page.levels), page.offset + page.stored
    if max_level:
        first, length = page.offset, page.levels
        if page.levels < 0:
            first += 4
            length = int.from_bytes(read(page.offset, 4), "little")
            position = first + length
        if position > end:
            raise ValueError("its levels do not fit their page")
        levels = _runs(read(first, length), bit_width=max_level.bit_length(), count=page.rows)
        if np.any(levels != max_level):
            return None
    if page.stored < page.rows * _LONG:
        found = _plain(read(position, end - position), 0, page.rows)
        starts, sizes = np.array(found[0], np.int64) + position, np.array(found[1], np.int64)
    else:
        places = []
        for _ in range(page.rows):
            if position + 4 > end:
                raise ValueError("a page ends too soon")
            size = int.from_bytes(read(position, 4), "little")
            places.append((position + 4, size))
            position += 4 + size
        if position > end:
            raise ValueError("a page ends too soon")
        starts, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return (starts, sizes) if np.all(sizes > 0) else None


def _cut(data: bytes, start: int, length: int) -> bytes:
    if length < 0 or start + length > len(data):
        raise ValueError("a page ends too soon")
    return data[start : start + length]


def _plain(data: bytes, position: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Where values begin that each stand after their length, and their lengths."""
    starts, sizes = [], []
    length_at = struct.Struct("<I").unpack_from
    try:
        for _ in range(count):
            (size,) = length_at(data, position)
            starts.append(position + 4)
            sizes.append(size)
            position += 4 + size
    except struct.error as error:
        raise ValueError("a page ends too soon") from error
    if position > len(data):
        raise ValueError("a page ends too soon")
    return starts, sizes


def _runs(data: bytes, *, bit_width: int, count: int) -> NDArray[np.int64]:
    """int64 [count] of the format's mixture of repeated and of packed small numbers."""
    if bit_width > 32:
        raise ValueError(f"numbers of {bit_width} bits")
    found: list[NDArray[np.int64]] = []
    filled, position = 0, 0
    while filled < count:
        header, position = _varint(data, position)
        number = header >> 1
        if not number:
            raise ValueError("an empty run")
        if header & 1:
            wanted = min(number, (count - filled + 7) // 8)  # groups of eight
            packed = np.frombuffer(_cut(data, position, wanted * bit_width), np.uint8)
            bits = np.unpackbits(packed, bitorder="little").reshape(8 * wanted, bit_width)
            values = bits.astype(np.int64) @ (1 << np.arange(bit_width, dtype=np.int64))
            position += number * bit_width
        else:
            wide = (bit_width + 7) // 8
            value = int.from_bytes(_cut(data, position, wide), "little")
            values = np.full(min(number, count - filled), value, np.int64)
            position += wide
        found.append(values)
        filled += len(values)
    return np.concatenate([np.zeros(0, np.int64), *found])[:count]


# -- Headers ---------------------------------------------------------------------------------------


def _page(header: dict[int, Any], *, offset: int, first: int) -> Page:
    """What a PageHeader says; fields by the numbers that parquet.thrift gives them."""
    kind = header.get(1)
    place = {_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}
    if kind not in place:
        raise Unfamiliar(f"a page of kind {kind}")
    told = header.get(place[kind])
    if not isinstance(told, dict):
        raise ValueError("a header without its page's kind")
    second = kind == _DATA_2
    encoding = told.get(4 if second else 2)
    if encoding != _PLAIN and (encoding not in _BY_DICTIONARY):
        raise Unfamiliar(f"values of encoding {encoding}")
    if second and told.get(6):
        raise Unfamiliar("lists")
    numbers = [header.get(3), header.get(2), told.get(1), told.get(5, 0) if second else -1]
    whole = [number for number in numbers if isinstance(number, int)]
    if len(whole) < len(numbers):
        raise ValueError("a header that lacks a number")
    stored, size, rows, levels = whole
    if second and not 0 <= levels <= stored:
        raise ValueError("levels that do not fit their page")
    return Page(
        offset=offset,
        stored=stored,
        size=size,
        first=first,
        rows=rows,
        # A dictionary's own values are plain, whatever an old writer calls that.
        encoding=_PLAIN if kind == _DICTIONARY else encoding,
        levels=levels,
        compressed=bool(told.get(7, True)) if second else True,
    )


def _header(read: Read, position: int, size: int) -> tuple[dict[int, Any], int]:
    """A page's header, and how long it is."""
    for length in (_HEADER, _LONGEST_HEADER):
        data = read(position, min(length, size - position))
        try:
            return _struct(data, 0, 0)
        except IndexError:
            continue
    raise ValueError("a page's header does not end")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if position >= len(data) or shift > 63:
            raise (
                IndexError("a number does not end") if shift <= 63 else ValueError("a long number")
            )
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _struct(data: bytes, position: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct of thrift's compact protocol: field number → value."""
    if depth > _DEEPEST:
        raise ValueError("a header of too many levels")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[position]
        position += 1
        if head == 0:
            return fields, position
        if head >> 4:
            number += head >> 4
        else:
            told, position = _varint(data, position)
            number = _signed(told)
        fields[number], position = _field(data, position, head & 0x0F, depth)


def _field(data: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, position
    if kind == 3:
        return data[position], position + 1
    if kind in (4, 5, 6):
        told, position = _varint(data, position)
        return _signed(told), position
    if kind == 7:
        return None, position + 8
    if kind == 8:
        length, position = _varint(data, position)
        if length > _LONGEST_HEADER:
            raise ValueError("a header of a long text")
        if position + length > len(data):
            raise IndexError("a text does not end")
        return None, position + length
    if kind == 12:
        return _struct(data, position, depth + 1)
    raise ValueError(f"a header with a field of type {kind}")


def _signed(told: int) -> int:
    return (told >> 1) ^ -(told & 1)

"""Values of parquet's column chunks, by the page: an image at random costs its page, no row group.

pyarrow reads the footers, in the process that opens a set. Loader processes read pages by `pread`,
and use of pyarrow no more than its codecs: no thread, no open file of its.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.members import Members
from sercli.data.images.stored import Span, read_span
from sercli.data.tables.columns import Columns, find_columns
from sercli.data.tables.pages import (
    ChunkPages,
    Page,
    Read,
    Unfamiliar,
    Values,
    find_pages,
    find_places,
    read_values,
)
from sercli.errors import UserError
from sercli.runs.reading import NotRegular, open_regular

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_CODECS = {"UNCOMPRESSED": "", "LZ4": "lz4_raw", "LZ4_RAW": "lz4_raw"}
_CODECS |= {name: name.lower() for name in ("SNAPPY", "GZIP", "BROTLI", "ZSTD")}
_TABLES = 1024  # column chunks whose pages a process keeps in mind, 2 KB each
_DECODED = 32 * 2**20  # bytes of decoded pages that a process keeps, but one at least
_SAMPLED = 8  # column chunks by which the cost of an image is judged
_LFS = b"version https://git-lfs"


def open_parquet(file: str) -> pq.ParquetFile:
    """A parquet file, by pyarrow, without a thread of its.

    Raises:
        UserError: It cannot be read, or is none, or not a whole one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(file) as opened:
            start = opened.read(len(_LFS))
        return pq.ParquetFile(file, pre_buffer=False)
    except (NotRegular, OSError, pa.ArrowException) as error:
        if not isinstance(error, pa.ArrowException) and not isinstance(error, OSError):
            raise UserError(f"{file}: {error}") from error
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        if start == _LFS:
            raise UserError(
                f"{file} is a pointer of Git LFS, not the file it stands for", remedy="git lfs pull"
            ) from error
        raise UserError(
            f"{file} is no whole parquet file ({first_line(error)})",
            "the footer at its end says what is in it",
            "copy it again",
        ) from error


def leaf_of(table: pq.ParquetFile, columns: Columns) -> int:
    """Which of the file's columns has the images' bytes."""
    metadata = table.metadata
    for index in range(metadata.num_columns):
        if metadata.schema.column(index).path == columns.bytes_column:
            return int(index)
    raise UserError(f"the column {columns.bytes_column} is missing")


class Chunk(NamedTuple):
    """The column chunk of a row group with its images' bytes.

    Attributes:
        group: Which row group of its file.
        offset: Where it begins in its file.
        size: Its bytes.
        rows: How many images it has.
        codec: pyarrow's name; "": it is not compressed; None: it is none that is known here.
        max_level: Definition level of what is not null.
    """

    group: int
    offset: int
    size: int
    rows: int
    codec: str | None
    max_level: int


def chunks_of(table: pq.ParquetFile, columns: Columns) -> list[Chunk]:
    """The column chunks with the images' bytes of a file.

    Raises:
        UserError: It lacks the column.
    """
    metadata, leaf = table.metadata, leaf_of(table, columns)
    about = metadata.schema.column(leaf)
    found = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(leaf)
        starts = [chunk.data_page_offset]
        if chunk.dictionary_page_offset:  # some writers have 0 for none
            starts.append(chunk.dictionary_page_offset)
        codec = None if about.max_repetition_level else _CODECS.get(chunk.compression)
        place = min(starts), chunk.total_compressed_size, chunk.num_values
        found.append(Chunk(group, *place, codec, about.max_definition_level))
    return found


def places_in(
    chunks: Sequence[Chunk], read: Read
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Where the images of a file begin, and their bytes, where they lie there as they are.

    Args:
        chunks: Of the file.
        read: Offset in the file and a number of bytes → these.

    Returns:
        int64 [N] each; None: some are compressed, stand in a dictionary, or are empty or missing.

    Raises:
        ValueError, IndexError: It is damaged.
    """
    starts, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    if any(chunk.codec != "" for chunk in chunks):
        return None
    for chunk in chunks:

        def inside(offset: int, size: int, base: int = chunk.offset) -> bytes:
            return read(base + offset, size)

        try:
            pages = find_pages(inside, size=chunk.size, rows=chunk.rows)
        except Unfamiliar:
            return None
        for page in pages.data:
            places = find_places(page, inside, max_level=chunk.max_level)
            if places is None:
                return None
            starts.append(places[0] + chunk.offset)
            sizes.append(places[1])
    return np.concatenate(starts), np.concatenate(sizes)


@dataclass(frozen=True)
class Chunks:
    """The column chunks with the images' bytes, of all files.

    Attributes:
        column: What the column is called.
        file: int64 [G], which file each is in.
        first_row: int64 [G], the first row of each, counted over all files.
        chunks: [G].
        first_of_file: int64 [F], the first row of each file.
    """

    column: str
    file: NDArray[np.int64]
    first_row: NDArray[np.int64]
    chunks: tuple[Chunk, ...]
    first_of_file: NDArray[np.int64]


def find_chunks(files: Sequence[str]) -> Chunks:
    """Where the images' bytes are, from the files' footers; what cannot be read has none."""
    found: list[Chunk] = []
    of_file: list[int] = []
    counts, name = [0], ""
    for number, file in enumerate(files):
        rows = 0
        with contextlib.suppress(UserError), open_parquet(file) as table:
            columns = find_columns(table.schema_arrow, file)
            name = columns.bytes_column
            of_it = chunks_of(table, columns)
            found += of_it
            of_file += [number] * len(of_it)
            rows = sum(chunk.rows for chunk in of_it)
        counts.append(rows)
    lengths = [0, *(chunk.rows for chunk in found)]
    return Chunks(
        column=name,
        file=np.array(of_file, np.int64),
        first_row=np.cumsum(lengths[:-1], dtype=np.int64),
        chunks=tuple(found),
        first_of_file=np.cumsum(counts[:-1], dtype=np.int64),
    )


class ChunkReader:
    """Bytes of rows, with the pages that were decoded last. Of one process; not for threads."""

    def __init__(self, members: Members, chunks: Chunks) -> None:
        self._members, self._chunks = members, chunks
        self._pages: OrderedDict[int, ChunkPages | None] = OrderedDict()
        self._decoded: OrderedDict[tuple[int, int], Values] = OrderedDict()
        self._kept = 0  # bytes of these

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkReader, (self._members, self._chunks)  # to another process without what is kept

    def value(self, row: int) -> memoryview | None:
        """The bytes of a row, counted over all files; None: it has none.

        Raises:
            ValueError, IndexError, OSError: It is damaged, or cannot be read.
            UserError: Its file has changed.
        """
        number = int(np.searchsorted(self._chunks.first_row, row, "right")) - 1
        inside = row - int(self._chunks.first_row[number])
        pages = self._pages_of(number)
        try:
            if pages is not None:
                page = pages.holding(inside)
                return self._values(number, pages, page).value(inside - page.first)
        except Unfamiliar:
            self._pages[number] = None
        return self._whole_group(number).value(inside)

    def amplification(self) -> float:
        """Bytes read for an image at random, by those that it has: of a few row groups.

        What part of all fits into what is kept costs nothing then.
        """
        read = owned = 0.0
        chunks = self._chunks.chunks
        some = np.linspace(0, len(chunks) - 1, min(_SAMPLED, len(chunks)))
        for number in np.unique(some.astype(int)).tolist():
            chunk, pages = chunks[number], self._pages_of(number)
            if pages is None:
                read += chunk.size * chunk.rows
            else:
                read += sum(pages.read_for(page) * page.rows for page in pages.data)
            owned += chunk.size
        missed = max(0.0, 1 - _DECODED / max(1, sum(chunk.size for chunk in chunks)))
        return max(1.0, missed * read / max(owned, 1.0))

    def _pages_of(self, number: int) -> ChunkPages | None:
        """The pages of a column chunk; None: only pyarrow reads them."""
        if number in self._pages:
            self._pages.move_to_end(number)
            return self._pages[number]
        found = None
        chunk = self._chunks.chunks[number]
        if chunk.codec is not None:
            read = functools.partial(self._read, number)
            with contextlib.suppress(Unfamiliar):
                found = find_pages(read, size=chunk.size, rows=chunk.rows)
        self._pages[number] = found
        if len(self._pages) > _TABLES:
            self._pages.popitem(last=False)
        return found

    def _read(self, number: int, offset: int, size: int) -> bytes:
        chunks, members = self._chunks, self._members
        file = int(chunks.file[number])
        mtime_ns, _, length, *_ = members.stamps[file].tolist()
        start = chunks.chunks[number].offset + offset
        return read_span(Span(members.files[file], start, size, length=length, mtime_ns=mtime_ns))

    def _values(self, number: int, pages: ChunkPages, page: Page) -> Values:
        key = number, page.offset
        chunk = self._chunks.chunks[number]

        def decode() -> Values:
            is_dictionary = page is pages.dictionary
            return read_values(
                page,
                self._read(number, page.offset, page.stored),
                decompress=_codec(chunk.codec or ""),
                max_level=0 if is_dictionary else chunk.max_level,
                dictionary=lambda: self._dictionary(number, pages),
            )

        return self._remembered(key, decode)

    def _dictionary(self, number: int, pages: ChunkPages) -> Values:
        if pages.dictionary is None:
            raise ValueError("a page refers to a dictionary that is missing")
        return self._values(number, pages, pages.dictionary)

    def _whole_group(self, number: int) -> Values:
        """What pyarrow makes of all rows of a group; they are kept until others are read."""

        def decode() -> Values:
            chunks = self._chunks
            file = self._members.files[int(chunks.file[number])]
            return _by_pyarrow(file, chunks.chunks[number].group, chunks.column)

        self._read(number, 0, 0)  # that it has not changed
        return self._remembered((number, -1), decode)

    def _remembered(self, key: tuple[int, int], decode: Callable[[], Values]) -> Values:
        found = self._decoded.get(key)
        if found is None:
            found = self._decoded[key] = decode()
            self._kept += found.nbytes
            while self._kept > _DECODED and len(self._decoded) > 1:
                self._kept -= self._decoded.popitem(last=False)[1].nbytes
        self._decoded.move_to_end(key)
        return found


def _codec(name: str) -> Callable[[bytes, int], bytes]:
    import pyarrow as pa

    if not name:
        return lambda data, _: data
    codec = pa.Codec(name)

    def decompress(data: bytes, size: int) -> bytes:
        return bytes(codec.decompress(data, decompressed_size=size, asbytes=True)) if size else b""

    return decompress


def _by_pyarrow(file: str, group: int, column: str) -> Values:
    """All values of a column in a row group."""
    with open_parquet(file) as table:
        found = table.read_row_group(group, columns=[column], use_threads=False).flatten()
    values = found.column(0).to_pylist()
    sizes = np.array([-1 if one is None else len(one) for one in values], np.int64)
    starts = np.cumsum(np.maximum(sizes, 0)) - np.maximum(sizes, 0)
    return Values(b"".join(one for one in values if one is not None), starts, sizes)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

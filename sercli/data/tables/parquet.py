"""Images in parquet files: a list of them by the small columns, their bytes by the page.

pyarrow reads the footers and the small columns, in the process that opens a set. Loader processes
read pages by `pread`, and use of pyarrow no more than its codecs: no thread, no open file of its.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.members import ArchivedImages, Members, read_members
from sercli.data.images.decode import failure
from sercli.data.images.stored import Span, read_span
from sercli.data.source import UnreadableImage
from sercli.data.tables.columns import Columns, find_columns
from sercli.data.tables.pages import ChunkPages, Page, Unfamiliar, Values, find_pages, read_values
from sercli.data.tables.rows import FileRows, Rows
from sercli.errors import UserError
from sercli.runs.reading import NotRegular, open_regular

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_CODECS = {"UNCOMPRESSED": "", "LZ4": "lz4_raw", "LZ4_RAW": "lz4_raw"}
_CODECS |= {name: name.lower() for name in ("SNAPPY", "GZIP", "BROTLI", "ZSTD")}
_TABLES = 1024  # column chunks whose pages a process keeps in mind, 2 KB each
_DECODED = 16 * 2**20  # bytes of decoded pages that a process keeps, but one at least
_SAMPLED = 8  # column chunks by which the cost of an image is judged
_LFS = b"version https://git-lfs"


# -- The list --------------------------------------------------------------------------------------


def read_parquet(
    files: Sequence[str], split: str, *, named: tuple[str, ...] | None = None
) -> Members:
    """The images in parquet files; `offset` is the row in its file, `size` is 0.

    Args:
        files: Absolute paths.
        split: "train" or "val".
        named: What classes of bare numbers are called; None: nothing says so.

    Raises:
        UserError: A file cannot be looked at.
    """
    rule = "\0".join(["parquet, 1", split, *(named or ())])
    return read_members(files, functools.partial(_scan, split=split, named=named), rule=rule)


def _scan(
    files: Sequence[str],
    stamps: NDArray[np.int64],
    *,
    split: str,
    named: tuple[str, ...] | None,
) -> Members:
    found = Rows(files)
    for number, file in enumerate(files):
        try:
            with open_parquet(file) as table:
                columns = find_columns(table.schema_arrow, file)
                if found.agree(columns, file):
                    found.add(_rows_of(table, columns, found, file, number))
        except UserError as error:
            found.faults.append(str(error))
    return found.members(stamps, split=split, named=named)


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
            f"{file} is no whole parquet file ({_first_line(error)})",
            "the footer at its end says what is in it",
            "copy it again",
        ) from error


def _rows_of(
    table: pq.ParquetFile, columns: Columns, found: Rows, file: str, number: int
) -> FileRows:
    """The rows of a file by its small columns.

    Raises:
        UserError: These cannot be read, or its images lie elsewhere.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = table.metadata.num_rows
    _require_bytes(table, columns, file)
    paths: Sequence[str | None] = [None] * rows
    values = None
    if columns.small:
        try:
            small = table.read(columns=columns.small, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{file}: its columns {', '.join(columns.small)} cannot be read "
                f"({_first_line(error)})",
                remedy="copy it again",
            ) from error
        if columns.has_path:
            paths = pc.struct_field(small[columns.image], "path").to_pylist()
        values = None if columns.label is None else small[columns.label]
    told = found.labels(values, columns, file)
    return FileRows(number, paths, told, np.arange(rows), np.zeros(rows, np.int64))


def _require_bytes(table: pq.ParquetFile, columns: Columns, file: str) -> None:
    """Images that are links to files elsewhere are none of this set's."""
    nulls = 0
    for group in range(table.metadata.num_row_groups):
        chunk = table.metadata.row_group(group).column(_leaf(table, columns))
        statistics = chunk.statistics if chunk.is_stats_set else None
        if statistics is not None and statistics.has_null_count:
            nulls += statistics.null_count
    if nulls:
        raise UserError(
            f"{file}: {nulls:,} of {table.metadata.num_rows:,} rows have no bytes of an image",
            "a path in a row leads to a file elsewhere, which is not read",
            "write it with the images in it (`datasets` does so in push_to_hub, and in to_parquet "
            "from 4.8 on), or give a list of the paths",
        )


def _leaf(table: pq.ParquetFile, columns: Columns) -> int:
    """Which of the file's columns has the images' bytes."""
    metadata = table.metadata
    for index in range(metadata.num_columns):
        if metadata.schema.column(index).path == columns.bytes_column:
            return int(index)
    raise UserError(f"the column {columns.bytes_column} is missing")


# -- Reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """The column chunks with the images' bytes, of all files.

    Attributes:
        column: What the column is called.
        first_row: int64 [G], the first row of each, counted over all files.
        rows: int64 [G].
        file: int64 [G], which file it is in.
        group: int64 [G], which row group of that.
        offset: int64 [G], where it begins in its file.
        size: int64 [G], its bytes.
        codec: [G], pyarrow's name; "": it is not compressed; None: it is none that is known.
        max_level: Definition level of what is not null.
        first_of_file: int64 [F], the first row of each file.
    """

    column: str
    first_row: NDArray[np.int64]
    rows: NDArray[np.int64]
    file: NDArray[np.int64]
    group: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    codec: tuple[str | None, ...]
    max_level: NDArray[np.int64]
    first_of_file: NDArray[np.int64]


def find_chunks(files: Sequence[str]) -> Chunks:
    """Where the images' bytes are, from the files' footers; files that cannot be read have none."""
    rows: list[tuple[int, ...]] = []
    codecs: list[str | None] = []
    first_of_file, total, name = [], 0, ""
    for number, file in enumerate(files):
        first_of_file.append(total)
        try:
            table = open_parquet(file)
        except UserError:
            continue  # a fault of the list, which has no image of it
        with table:
            columns = find_columns(table.schema_arrow, file)
            leaf, name = _leaf(table, columns), columns.bytes_column
            about = table.metadata.schema.column(leaf)
            for group in range(table.metadata.num_row_groups):
                chunk = table.metadata.row_group(group).column(leaf)
                starts = [chunk.data_page_offset]
                if chunk.dictionary_page_offset:  # some writers have 0 for none
                    starts.append(chunk.dictionary_page_offset)
                count = chunk.num_values
                place = (min(starts), chunk.total_compressed_size, about.max_definition_level)
                rows.append((total, count, number, group, *place))
                lists = about.max_repetition_level > 0
                codecs.append(None if lists else _CODECS.get(chunk.compression))
                total += count
    columns_of = np.array(rows, np.int64).reshape(-1, 7).T
    first, counts, of_file, groups, offset, size, level = columns_of
    starts_of_files = np.array(first_of_file, np.int64)
    return Chunks(
        name, first, counts, of_file, groups, offset, size, tuple(codecs), level, starts_of_files
    )


class ParquetImages(ArchivedImages):
    """The images of a split that lie in parquet files.

    Args:
        members: What there is.
        name: What the user called the set.
        split: "train" or "val".
    """

    def __init__(self, members: Members, *, name: str, split: str) -> None:
        super().__init__(members, name=name, split=split)
        self.chunks = find_chunks(members.files)
        self._reader = _Reader(members, self.chunks)

    def where(self, index: int) -> memoryview:  # type: ignore[override]
        index = self.position(index)
        members = self.members
        row = self.chunks.first_of_file[members.archive[index]] + members.offset[index]
        try:
            found = self._reader.value(int(row))
        except Exception as error:
            raise failure(self.describe(index), error) from error
        if found is None:
            raise UnreadableImage(self.describe(index), "its row has no bytes of an image")
        return found

    def file_size(self, index: int) -> None:  # type: ignore[override]
        """None: how many bytes an image has, only its page tells."""
        del index

    def made_of(self) -> dict[str, object]:
        return {"parquet": [int(self.chunks.size.sum()), int(self.chunks.rows.sum())]}

    def remarks(self) -> tuple[str, ...]:
        cost = self.amplification()
        if cost < _WORTH_SAYING:
            return ()
        return (
            f"note: {self.name} is parquet: an image at random is read with all that shares its "
            f"page, {cost:.0f} times its own bytes; `ser data shard`, or --set data.cache=DIR, "
            "makes of it once what is read by the image",
        )

    def amplification(self) -> float:
        """Bytes read for an image at random, by those that it has: of a few row groups."""
        return self._reader.amplification()

    def in_rows(self) -> NDArray[np.int64]:
        """int64 [N], the images in the order in which they lie: for who reads all of them."""
        members = self.members
        return np.lexsort((members.offset, members.archive))


_WORTH_SAYING = 2.0


class _Reader:
    """Bytes of rows, with the pages that were decoded last. Of one process; not for threads."""

    def __init__(self, members: Members, chunks: Chunks) -> None:
        self._members, self._chunks = members, chunks
        self._pages: OrderedDict[int, ChunkPages | None] = OrderedDict()
        self._decoded: OrderedDict[tuple[int, int], Values] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Reader, (self._members, self._chunks)  # to another process without what is kept

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
        chunks = self._chunks
        read = owned = 0.0
        some = np.linspace(0, len(chunks.rows) - 1, min(_SAMPLED, len(chunks.rows)))
        for number in np.unique(some.astype(int)).tolist():
            size, rows = float(chunks.size[number]), int(chunks.rows[number])
            pages = self._pages_of(number)
            if pages is None:
                read += size * rows
            else:
                read += sum(pages.read_for(page) * page.rows for page in pages.data)
            owned += size
        return read / max(owned, 1.0)

    def _pages_of(self, number: int) -> ChunkPages | None:
        """The pages of a column chunk; None: only pyarrow reads them."""
        if number in self._pages:
            self._pages.move_to_end(number)
            return self._pages[number]
        found = None
        if self._chunks.codec[number] is not None:
            try:
                found = find_pages(
                    functools.partial(self._read, number),
                    size=int(self._chunks.size[number]),
                    rows=int(self._chunks.rows[number]),
                )
            except Unfamiliar:
                found = None
        self._pages[number] = found
        if len(self._pages) > _TABLES:
            self._pages.popitem(last=False)
        return found

    def _read(self, number: int, offset: int, size: int) -> bytes:
        chunks, members = self._chunks, self._members
        file = int(chunks.file[number])
        mtime_ns, _, length, *_ = members.stamps[file].tolist()
        start = int(chunks.offset[number]) + offset
        return read_span(Span(members.files[file], start, size, length=length, mtime_ns=mtime_ns))

    def _values(self, number: int, pages: ChunkPages, page: Page) -> Values:
        key = number, page.offset

        def decode() -> Values:
            is_dictionary = page is pages.dictionary
            return read_values(
                page,
                self._read(number, page.offset, page.stored),
                decompress=_codec(self._chunks.codec[number] or ""),
                max_level=0 if is_dictionary else int(self._chunks.max_level[number]),
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
            return _by_pyarrow(file, int(chunks.group[number]), chunks.column)

        self._read(number, 0, 0)  # that it has not changed
        return self._remembered((number, -1), decode)

    def _remembered(self, key: tuple[int, int], decode: Callable[[], Values]) -> Values:
        found = self._decoded.get(key)
        if found is None:
            found = decode()
            self._decoded[key] = found
            kept = sum(len(one.data) for one in self._decoded.values())
            while kept > _DECODED and len(self._decoded) > 1:
                kept -= len(self._decoded.popitem(last=False)[1].data)
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


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

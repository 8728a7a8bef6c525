"""Images in parquet files: a list of them by the small columns, their bytes where they lie.

Where a file is not compressed, its list says where each image begins,
and it is read as a member of an archive is. Of a compressed one it says the row, and an image costs
its page (`chunks`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.members import ArchivedImages, Members, read_members
from sercli.data.images.decode import failure
from sercli.data.images.stored import Span, Where, read_span
from sercli.data.source import UnreadableImage
from sercli.data.tables.chunks import (
    ChunkReader,
    Chunks,
    chunks_of,
    find_chunks,
    first_line,
    leaf_of,
    open_parquet,
    places_in,
)
from sercli.data.tables.columns import Columns, find_columns
from sercli.data.tables.rows import EMBED, FileRows, Rows, scan
from sercli.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_WORTH_SAYING = 2.0  # times its own bytes that an image costs


# -- The list --------------------------------------------------------------------------------------


def read_parquet(files: Sequence[str], split: str) -> Members:
    """The images in parquet files.

    `offset` is where an image begins in its file; where `size` is 0, it is its row there.

    Args:
        files: Absolute paths.
        split: "train" or "val".

    Raises:
        UserError: A file cannot be looked at.
    """
    how = functools.partial(scan, form="parquet", split=split, add=_add_file)
    return read_members(files, how, rules={split: f"parquet, 2\n{split}"}, wanted=split)


def _add_file(found: Rows, file: str, number: int, stamp: list[int]) -> None:
    with open_parquet(file) as table:
        columns = find_columns(table.schema_arrow, file)
        if found.agree(columns, file):
            found.add(_rows_of(table, columns, found, number, stamp))


def _rows_of(
    table: pq.ParquetFile, columns: Columns, found: Rows, number: int, stamp: list[int]
) -> FileRows:
    """The rows of a file by its small columns.

    Raises:
        UserError: These cannot be read, or its images lie elsewhere.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    file, rows = found.files[number], table.metadata.num_rows
    _require_bytes(table, columns, file)
    paths: Sequence[str | None] = [None] * rows
    values = None
    if columns.small:
        try:
            small = table.read(columns=columns.small, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{file}: its columns {', '.join(columns.small)} cannot be read "
                f"({first_line(error)})",
                remedy="copy it again",
            ) from error
        if columns.has_path:
            paths = pc.struct_field(small[columns.image], "path").to_pylist()
        values = None if columns.label is None else small[columns.label]
    told = found.labels(values, columns, file)
    places = _places(table, columns, file, stamp)
    if places is None:
        places = np.arange(rows, dtype=np.int64), np.zeros(rows, np.int64)
    return FileRows(number, paths, told, *places)


def _places(
    table: pq.ParquetFile, columns: Columns, file: str, stamp: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Where images lie that are not compressed; None: they are, or that part is damaged."""
    mtime_ns, _, length, *_ = stamp

    def read(offset: int, size: int) -> bytes:
        return read_span(Span(file, offset, size, length=length, mtime_ns=mtime_ns))

    try:
        places = places_in(chunks_of(table, columns), read)
    except (ValueError, IndexError, EOFError):
        return None  # it is told image by image, when these are read
    if places is None or len(places[0]) != table.metadata.num_rows:
        return None
    return places


def _require_bytes(table: pq.ParquetFile, columns: Columns, file: str) -> None:
    """Images that are links to files elsewhere are none of this set's."""
    nulls = 0
    for group in range(table.metadata.num_row_groups):
        chunk = table.metadata.row_group(group).column(leaf_of(table, columns))
        statistics = chunk.statistics if chunk.is_stats_set else None
        if statistics is not None and statistics.has_null_count:
            nulls += statistics.null_count
    if nulls:
        raise UserError(
            f"{file}: {nulls:,} of {table.metadata.num_rows:,} rows have no bytes of an image",
            "a path in a row leads to a file elsewhere, which is not read",
            EMBED,
        )


# -- As a set --------------------------------------------------------------------------------------


class ParquetImages(ArchivedImages):
    """The images of a split that lie in parquet files.

    Args:
        members: What there is, of `read_parquet`.
        name: What the user called the set.
        split: "train" or "val".
        said: What a user should know of it, a line each.
    """

    def __init__(
        self, members: Members, *, name: str, split: str, said: Sequence[str] = ()
    ) -> None:
        super().__init__(members, name=name, split=split, said=said)
        self.by_page = not members.size.all()
        self.chunks: Chunks | None = None
        if self.by_page:
            self.chunks = find_chunks(members.files)
            self.reader = ChunkReader(members, self.chunks)

    def where(self, index: int) -> Where:
        index = self.position(index)
        if self.chunks is None or self.members.size[index]:
            return self.members.span(index)
        first = self.chunks.first_of_file[self.members.archive[index]]
        try:
            found = self.reader.value(int(first + self.members.offset[index]))
        except Exception as error:
            raise failure(self.describe(index), error) from error
        if found is None:
            raise UnreadableImage(self.describe(index), "its row has no bytes of an image")
        return found

    def file_size(self, index: int) -> int | None:
        """Bytes of an image; None: only its page would tell."""
        return super().file_size(index) or None

    def made_of(self) -> dict[str, object]:
        if self.chunks is None:
            return {}
        return {"pages": sum(chunk.size for chunk in self.chunks.chunks)}

    def reading_order(self) -> NDArray[np.int64] | None:
        """By page, so that each is decoded once; None: images are not in pages."""
        if not self.by_page:
            return None
        return np.lexsort((self.members.offset, self.members.archive))

    def remarks(self) -> tuple[str, ...]:
        cost = self.amplification()
        if cost < _WORTH_SAYING:
            return super().remarks()
        return (
            *super().remarks(),
            f"{self.name} is compressed parquet: an image at random is read with all that shares "
            f"its page, {cost:,.0f} times its own bytes; `ser data shard`, or --set "
            "data.cache=DIR, makes of it once what is read by the image",
        )

    def amplification(self) -> float:
        """Bytes read for an image at random, by those that it has; 1: no more."""
        return self.reader.amplification() if self.by_page else 1.0

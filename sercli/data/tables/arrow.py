"""Images in Arrow files: those of `datasets.save_to_disk`, and of its cache.

A list is made from the files, mapped into memory; after that an image is a part of a file, read at
its offset as one of an archive is. Nothing of pyarrow's is needed then.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.made import require_whole
from sercli.data.archives.members import Members, read_members
from sercli.data.images.splits import split_told
from sercli.data.tables.columns import Columns, find_columns
from sercli.data.tables.finding import Tables, find_tables
from sercli.data.tables.rows import EMBED, FileRows, Rows, scan
from sercli.errors import UserError
from sercli.runs.reading import (
    LARGEST_JSON,
    NotRegular,
    open_regular,
    parse_json,
    read_bytes,
    shown,
)

if TYPE_CHECKING:
    import pyarrow as pa

DICTIONARY = "dataset_dict.json"
STATE = "state.json"
_FILE = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # the message that ends a stream, from Arrow 0.15 on


def find_arrow(path: str) -> Tables:
    """The files of a set: a folder of `save_to_disk`, of its cache, a file, or a pattern.

    Raises:
        UserError: A folder cannot be listed, holds two sets, or what says its files is damaged.
    """
    root = Path(path)
    if root.is_dir():
        require_whole(root)
    if (root / DICTIONARY).is_file():
        files, left_out = {}, 0
        for name in _texts(root / DICTIONARY, "splits"):
            split = split_told(name)
            if split in ("train", "val"):
                files[split] = _of_state(root / name)
            else:
                left_out += 1
        return Tables(files, {"splits of neither train nor val": left_out} if left_out else {})
    if (root / STATE).is_file():
        return Tables({"train": _of_state(root)})
    return find_tables(path, "arrow")


def _of_state(folder: Path) -> tuple[str, ...]:
    """The files of a split as its state.json says.

    Raises:
        UserError: It does not, or a file is missing.
    """
    told = _read(folder / STATE)
    if told.get("_indices_files"):
        raise UserError(
            f"{folder} is a choice of rows of other tables (_indices_files in {STATE})",
            "that is not read",
            "save it again with `dataset.flatten_indices().save_to_disk(DIR)`",
        )
    files: list[str] = []
    for one in told.get("_data_files") or []:
        name = one.get("filename") if isinstance(one, dict) else one
        if not isinstance(name, str) or not _is_plain(name):
            raise UserError(f"{folder / STATE} names the file {shown(name)}", "they lie beside it")
        files.append(name)
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing", f"{STATE} beside it names it")
    if not files:
        raise UserError(f"{folder / STATE} names no files", "`save_to_disk` writes `_data_files`")
    return tuple(os.path.abspath(folder / name) for name in files)


def _read(path: Path) -> dict[str, Any]:
    told = parse_json(read_bytes(path, limit=LARGEST_JSON), str(path))
    if not isinstance(told, dict):
        raise UserError(f"{path} holds no mapping", "`save_to_disk` writes one")
    return told


def _texts(path: Path, key: str) -> list[str]:
    told = _read(path).get(key)
    if not isinstance(told, list) or not all(_is_plain(one) for one in told):
        raise UserError(f"{path} names no {key}", "`save_to_disk` writes names of folders")
    return told


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and os.path.basename(name) == name and name not in ("", ".", "..")


def read_arrow(files: Sequence[str], split: str) -> Members:
    """The images in Arrow files, where each begins and its size.

    Args:
        files: Absolute paths.
        split: "train" or "val".

    Raises:
        UserError: A file cannot be looked at.
    """
    how = functools.partial(scan, form="arrow", split=split, add=_add_file)
    return read_members(files, how, rules={split: f"arrow, 2\n{split}"}, wanted=split)


def _add_file(found: Rows, file: str, number: int, _stamp: list[int]) -> None:
    """Add the rows of a file.

    Raises:
        UserError: It is none, cut short, compressed, or its images lie elsewhere.
    """
    import pyarrow as pa

    try:
        mapped = _mapped(file)
        if mapped.size == 0:
            raise pa.ArrowInvalid("it is empty")
        schema, batches = _batches(mapped, file)
        columns = find_columns(schema, file)
        if not found.agree(columns, file):
            return
        paths: list[str | None] = []
        labels, offsets, sizes = [], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for batch in batches:
            starts, lengths, names = _images(batch, columns, mapped, file)
            offsets.append(starts)
            sizes.append(lengths)
            paths += names
            if columns.label is not None:
                labels.append(batch.column(batch.schema.get_field_index(columns.label)))
    except (NotRegular, OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        raise UserError(
            f"{file} is no whole Arrow file ({(str(error) or 'damaged').splitlines()[0]})",
            remedy="copy or save it again",
        ) from error
    kind = None if columns.label is None else schema.field(columns.label).type
    values = None if kind is None else pa.chunked_array(labels, kind)
    told = found.labels(values, columns, file)
    found.add(FileRows(number, paths, told, np.concatenate(offsets), np.concatenate(sizes)))


def _mapped(file: str) -> pa.Buffer:
    import pyarrow as pa

    with open_regular(file) as opened:  # a FIFO is never waited for
        if not os.fstat(opened.fileno()).st_size:
            return pa.py_buffer(b"")
    with pa.memory_map(file) as mapped:
        return mapped.read_buffer()


def _batches(mapped: pa.Buffer, file: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The batches of a stream, or of a file with a footer.

    Raises:
        UserError: A stream ends without its end.
    """
    from pyarrow import ipc

    options = ipc.IpcReadOptions(use_threads=False)
    if mapped.slice(0, min(len(_FILE), mapped.size)).to_pybytes() == _FILE:
        whole = ipc.open_file(mapped, options=options)
        return whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))
    stream = ipc.open_stream(mapped, options=options)
    if mapped.slice(max(0, mapped.size - len(_END))).to_pybytes() != _END:
        raise UserError(
            f"{file} ends without the end of its stream",
            "it was cut short",
            "copy or save it again",
        )
    return stream.schema, iter(stream)


def _images(
    batch: pa.RecordBatch, columns: Columns, mapped: pa.Buffer, file: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str | None]]:
    """Where the images of a batch begin in the file, their bytes, and their names.

    Raises:
        UserError: It is compressed, or lacks bytes.
        ValueError: It is damaged.
    """
    import pyarrow as pa

    whole: Any = batch.column(batch.schema.get_field_index(columns.image))
    images = whole.field("bytes") if columns.in_struct else whole
    if nulls := max(whole.null_count, images.null_count):
        raise UserError(
            f"{file}: {nulls:,} of {len(images):,} rows of a batch have no bytes of an image",
            "a path in a row leads to a file elsewhere, which is not read",
            EMBED,
        )
    names = whole.field("path").to_pylist() if columns.has_path else [None] * len(images)
    if not len(images):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), names
    _, places, data = images.buffers()
    wide = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    skipped = images.offset * np.dtype(wide).itemsize
    ends = np.frombuffer(places, wide, len(images) + 1, skipped).astype(np.int64)
    length = 0 if data is None else data.size
    if ends[0] < 0 or np.any(np.diff(ends) < 0) or ends[-1] > length:
        raise ValueError("places of images lead out of their buffer")
    start = 0 if data is None else data.address - mapped.address
    if not 0 <= start <= mapped.size - length:
        raise UserError(
            f"{file} is compressed",
            "images are read where they lie",
            "write it without compression, as `save_to_disk` does",
        )
    starts: NDArray[np.int64] = start + ends[:-1]
    sizes: NDArray[np.int64] = np.diff(ends)
    return starts, sizes, names

"""`data.cache`: a set is copied once to a local disk, and read from there.

A copy is a folder of tar shards, called by a hash of what tells the set (`plan.digest_of`): once
the original has changed, its copy is another. Names, labels and all that is said of images are the
original's; only their bytes come from the copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.made import is_finished, read_record
from sercli.data.images import kept
from sercli.data.images.files import StoredImages
from sercli.data.images.stored import Span, Where
from sercli.data.shards.making import Progress, Space, make_shards
from sercli.data.shards.plan import Options, digest_of, make_plan, usual_name
from sercli.data.shards.writing import read_index
from sercli.data.source import ImageSource
from sercli.errors import UserError

_NOWHERE = -1  # of an image that could not be read when its set was copied


@dataclass(frozen=True)
class Places:
    """Where the images of a copy lie.

    Attributes:
        files: Its shards.
        lengths: int64 [F], their bytes.
        times: int64 [F], when each was last written.
        file: int32 [N], which each image is in.
        offset: int64 [N], where it begins; -1: it is not in the copy.
        size: int64 [N].
    """

    files: tuple[str, ...]
    lengths: NDArray[np.int64]
    times: NDArray[np.int64]
    file: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


class CopiedImages(StoredImages):
    """A set whose bytes are read from a copy.

    Args:
        source: The original.
        places: Where the copy has them.
    """

    def __init__(self, source: StoredImages, places: Places) -> None:
        self._source, self._places = source, places
        self.name, self.split = source.name, source.split
        self.classes, self.labels = source.classes, source.labels

    def where(self, index: int) -> Where:
        index = self.position(index)
        told = self._places
        if told.offset[index] == _NOWHERE:
            return self._source.where(index)
        number = int(told.file[index])
        return Span(
            told.files[number],
            int(told.offset[index]),
            int(told.size[index]),
            length=int(told.lengths[number]),
            mtime_ns=int(told.times[number]),
        )

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def identifier(self, index: int) -> str:
        return self._source.identifier(index)

    def file_size(self, index: int) -> int | None:
        return self._source.file_size(index)

    def made_of(self) -> dict[str, object]:
        return self._source.made_of()

    def listed(self) -> Iterator[bytes | memoryview]:
        return self._source.listed()


def from_cache(source: ImageSource, directory: Path) -> ImageSource:
    """A set as its copy has it; the set itself where there is no whole copy."""
    if not isinstance(source, StoredImages) or not directory.is_dir():
        return source
    places = _places_of(_folder(source, directory), len(source))
    return source if places is None else CopiedImages(source, places)


def copy_to_cache(
    source: ImageSource,
    directory: Path,
    progress: Progress,
    begins: Callable[[Path, Space], object],
) -> None:
    """Copy a set, unless there is a copy of it; other processes that would, wait for this one.

    Args:
        source: One split.
        directory: Where copies lie.
        progress: As `make_shards` takes it.
        begins: Told the folder of the copy and what is to be written, before it is.

    Raises:
        UserError: It is rendered, or the place cannot be written or is too small.
        RunFailed: The disk is full, or a process was killed.
    """
    if not isinstance(source, StoredImages):
        raise UserError(
            f"data.cache {directory} for {source.name}, which is rendered",
            "only files are copied",
            "leave data.cache out",
        )
    folder = _folder(source, directory)
    if _places_of(folder, len(source)) is not None:
        return
    options = Options(name=usual_name(source.name), shuffled=False, indexed=True)
    plan = make_plan([source], folder, options)
    make_shards(plan, progress, lambda space: begins(folder, space), wait=True)


def _folder(source: ImageSource, directory: Path) -> Path:
    name = f"{usual_name(source.name)}-{source.split}-{digest_of(source)[:16]}"
    return directory / name


def _places_of(folder: Path, images: int) -> Places | None:
    """Where the images of a copy lie; None: it is not whole."""
    try:
        record = read_record(folder)
        if record is None:
            return None
        shards = [folder / name for names in record.files.values() for name in names]
        if not all(map(is_finished, shards)):
            return None
        return _read(shards, images)
    except (OSError, UserError, *kept.NOT_OURS):
        return None  # whatever it is, it is made again


def _read(shards: list[Path], images: int) -> Places:
    """Read where the images of each shard lie.

    Raises:
        ValueError: A shard is another than was written, or an image is in none.
        OSError: One cannot be looked at.
    """
    file = np.full(images, -1, np.int32)
    offset, size = np.full(images, _NOWHERE, np.int64), np.zeros(images, np.int64)
    lengths, times = [], []
    for number, shard in enumerate(shards):
        status = os.stat(shard)
        which, begin, length = read_index(shard)
        if np.any((which < 0) | (which >= images)):
            raise ValueError(f"{shard} is of another set")
        file[which], offset[which], size[which] = number, begin, length
        lengths.append(status.st_size)
        times.append(status.st_mtime_ns)
    if file.min(initial=0) < 0:
        raise ValueError("an image is in no shard")
    return Places(
        tuple(str(shard.absolute()) for shard in shards),
        np.array(lengths, np.int64),
        np.array(times, np.int64),
        file,
        offset,
        size,
    )

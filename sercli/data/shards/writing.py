"""Writes one shard, from its images to its checksum."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.made import member_of
from sercli.data.images import kept
from sercli.data.shards.arrow import ArrowShard
from sercli.data.shards.encoding import payload
from sercli.data.shards.plan import Plan, SplitPlan
from sercli.data.shards.processes import Asked, Count, Stop, Task
from sercli.data.shards.tar import TarShard
from sercli.data.source import UnreadableImage
from sercli.errors import from_os_error
from sercli.runs.files import hash_of, verifies, write_atomic, write_text
from sercli.visible import one_line

_COUNTED = 32  # images between two counts
_INDEX_MAGIC = b"ser's places of images in a shard, 1\n"


class _Shard(Protocol):
    def add(self, index: int, data: bytes, suffix: bytes) -> int: ...
    def close(self) -> None: ...


class Writer:
    """Writes shards of a plan. Picklable.

    Args:
        plan: Which there are.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def is_sound(self, task: Task, count: Count, asked: Asked) -> bool:
        """Whether a finished shard has the bytes that its checksum says."""
        del count, asked
        path = self._path(task)
        if self._plan.options.indexed:
            try:
                read_index(path)
            except (OSError, *kept.NOT_OURS):
                return False
        return verifies(path)

    def write(self, task: Task, count: Count, asked: Asked) -> list[str]:
        """Write a shard.

        Args:
            task: Split and number.
            count: Told how many images more there are.
            asked: Whether to end.

        Returns:
            What could not be read, a line each. With any the shard is not made, unless they are
            left out.

        Raises:
            UserError: It cannot be written, or what is read has changed.
            RunFailed: The disk is full.
            Stop: It was asked to end.
        """
        path = self._path(task)
        draft = path.with_name(f"{path.name}.part")
        split = self._plan.splits[task[0]]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in (hash_of(path), _left_out(path)):
                old.unlink(missing_ok=True)
            with open(draft, "wb") as file:
                hashed = _Hashed(file)
                found = self._fill(hashed, split, task[1], count, asked)
                file.flush()
                os.fsync(file.fileno())
            if found.unreadable and not self._leaves_out:
                return found.unreadable
            os.replace(draft, path)
            self._note(path, hashed, found)
        except OSError as error:
            raise from_os_error(error, f"cannot write {path}") from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return [] if self._plan.options.indexed else found.unreadable

    @property
    def _leaves_out(self) -> bool:
        return self._plan.options.skip_unreadable or self._plan.options.indexed

    def _path(self, task: Task) -> Path:
        return self._plan.out / self._plan.splits[task[0]].shards[task[1]]

    def _fill(
        self, hashed: _Hashed, split: SplitPlan, number: int, count: Count, asked: Asked
    ) -> _Found:
        """Write the images of a shard; one at a time is in memory."""
        found = _Found()
        shard = self._shard(hashed, split)
        indices = split.indices(number)
        for place, index in enumerate(indices, start=1):
            if asked():
                raise Stop
            try:
                data, suffix = payload(split.source, index, self._plan.options.encoding)
            except UnreadableImage as error:
                found.unreadable.append(one_line(f"{error.path}: {error.reason}"))
                found.place(index, -1, -1)
            else:
                found.place(index, shard.add(index, data, suffix), len(data))
            if place % _COUNTED == 0:
                count(_COUNTED)
        count(len(indices) % _COUNTED)
        shard.close()
        return found

    def _shard(self, hashed: _Hashed, split: SplitPlan) -> _Shard:
        if self._plan.options.form == "arrow":
            return _Arrow(hashed, split)
        return _Tar(hashed.write, split)

    def _note(self, path: Path, hashed: _Hashed, found: _Found) -> None:
        """Write what stands beside a shard; its checksum last, as it says that all is done."""
        if self._plan.options.indexed:
            columns = [np.array(column, "<i8") for column in found.columns]
            content = kept.pack(_INDEX_MAGIC, {"length": hashed.size}, columns)
            write_atomic(_index_of(path), lambda file: file.write(content))
        elif found.unreadable:
            write_text(_left_out(path), "".join(f"{line}\n" for line in found.unreadable))
        write_text(hash_of(path), f"{hashed.digest.hexdigest()}  {path.name}\n")


def _index_of(shard: Path) -> Path:
    """Where the places of a shard's images are noted."""
    return shard.with_name(f"{shard.name}.index")


def read_index(shard: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The images of a shard (indices into their set), where each begins, and its size; int64 [N].

    An image that could not be read begins at -1.

    Raises:
        ValueError: The shard is another than was written, or the index is damaged.
        OSError: One of them cannot be read.
    """
    facts, parts = kept.unpack(_INDEX_MAGIC, _index_of(shard).read_bytes(), 3)
    which, offset, size = (np.frombuffer(part, "<i8").astype(np.int64) for part in parts)
    length = shard.stat().st_size
    if facts["length"] != length or np.any(offset + size > length):
        raise ValueError(f"{shard} is another")
    return which, offset, size


def _left_out(shard: Path) -> Path:
    """Where images are listed that a shard lacks."""
    return shard.with_name(f"{shard.name}.unreadable.txt")


class _Found:
    """What became of the images of a shard."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self.columns: tuple[list[int], list[int], list[int]] = ([], [], [])

    def place(self, index: int, offset: int, size: int) -> None:
        for column, value in zip(self.columns, (index, offset, size), strict=True):
            column.append(value)


class _Hashed(io.RawIOBase):
    """A file that is only written, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._file.write(data)
        self.digest.update(data)
        self.size += size
        return size


class _Tar:
    def __init__(self, write: Callable[[bytes], object], split: SplitPlan) -> None:
        self._split, self._tar = split, TarShard(write)

    def add(self, index: int, data: bytes, suffix: bytes) -> int:
        source = self._split.source
        name = source.identifier(index).encode("utf-8", "surrogateescape")
        apart = index in self._split.apart
        label = int(source.labels[index]) if source.classes else None
        return self._tar.add(member_of(name, suffix=suffix, apart=apart), data, label)

    def close(self) -> None:
        self._tar.close()


class _Arrow:
    def __init__(self, file: _Hashed, split: SplitPlan) -> None:
        self._source = split.source
        self._arrow = ArrowShard(file, split.source.classes)

    def add(self, index: int, data: bytes, suffix: bytes) -> int:
        del suffix  # what an image is called here says nothing of its bytes
        label = int(self._source.labels[index]) if self._source.classes else None
        self._arrow.add(self._source.identifier(index), data, label)
        return 0  # no reader of ours asks for it

    def close(self) -> None:
        self._arrow.close()

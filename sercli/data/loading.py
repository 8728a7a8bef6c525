"""From image sets to batches of tensors: loader processes, and the transform of every evaluator."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sercli import stages
from sercli.data import spent
from sercli.data.copies import SlotsInUse, copied_ahead
from sercli.data.cores import cores
from sercli.data.ring import Column, Ring, Row
from sercli.data.source import ImageSource
from sercli.data.workers import InProcesses, InThisProcess, Workers
from sercli.recipe.values import IMAGENET_MEAN as IMAGENET_MEAN
from sercli.recipe.values import IMAGENET_STD as IMAGENET_STD
from sercli.transfer import constant

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_Key = TypeVar("_Key")
_Note = TypeVar("_Note")


class SupportsGetItem(Protocol[_T_co]):
    """A data set: key → what is read for it."""

    def __getitem__(self, key: Any, /) -> _T_co: ...


def default_workers(ranks_here: int = 1) -> int:
    """Loader processes of a rank: the cores of its share but one, at most 12."""
    return max(0, min(12, cores() // max(1, ranks_here) - 1))


class RowReader(abc.ABC, Generic[_Key, _Note]):
    """What is read for a key: a row of every column of the batch, and a note beside it."""

    @abc.abstractmethod
    def layout(self) -> Mapping[str, Column]:
        """The columns: name → shape and type of a row."""

    @abc.abstractmethod
    def read(self, key: _Key, row: Row) -> _Note:
        """Fill a row of each column; the note, anything picklable, goes to the batch."""


@dataclass(frozen=True)
class Batch(Generic[_Note]):
    """What was read for the keys of a batch.

    Attributes:
        columns: name → [B, *shape]. On the CPU they lie in memory that is used again: they are
            valid until the batch after the next is asked for.
        notes: What the reader returned for each key, in their order.
        spent: Seconds of `spent.PARTS` that reading it took, of all processes together.
    """

    columns: dict[str, Tensor]
    notes: list[_Note]
    spent: tuple[float, ...] = (0.0,) * len(spent.PARTS)


@dataclass(frozen=True)
class _Task:
    """A piece of a batch: rows `first`… of a slot, for so many keys."""

    slot: int
    first: int
    keys: Sequence[Any]


class _Reading:
    """What is done with a piece, by loader processes or, without any, in between two steps."""

    def __init__(self, reader: RowReader[Any, Any], ring: Ring, *, waits: bool) -> None:
        self.reader, self.ring, self.waits = reader, ring, waits

    def __call__(self, task: _Task) -> tuple[list[Any], tuple[float, ...]]:
        if self.waits:
            spent.here.lap("idle")
        else:
            spent.here.begin()  # this process has not been idle: it has taken a step
        columns = self.ring.slot(task.slot)
        notes = []
        for row, key in enumerate(task.keys, task.first):
            place = {name: column[row, ...] for name, column in columns.items()}
            notes.append(self.reader.read(key, place))
            spent.here.lap("crop")
        return notes, spent.here.take()


_LARGEST_PIECE = 64  # images: a large batch is read by all processes together
_ITEMS_A_PIECE = 4  # of what comes by value
_AHEAD = 3  # pieces that wait for each process


def load_rows(
    reader: RowReader[_Key, _Note],
    batches: Iterable[Sequence[_Key]],
    *,
    rows: int,
    workers: int,
    device: torch.device | None = None,
) -> Generator[Batch[_Note]]:
    """Read batches of keys with `workers` processes (0: in this one), in order.

    A batch is read in pieces by all processes together, into a ring of slots (see `ring`) that has
    room for what is read ahead, the batch in use and the one before it.

    Args:
        reader: What is done with a key; picklable.
        batches: The keys of each batch, asked for as they are needed.
        rows: How many the largest batch has, for which room is made.
        workers: Loader processes.
        device: Where the batches go: to CUDA the columns for it are copied from page-locked slots,
            one batch ahead (see `copies`).

    Raises:
        SerError: As the reader raised it.
        RunFailed: A loader process ended, or a limit of this machine is reached.
    """
    piece = max(1, min(_LARGEST_PIECE, -(-rows // workers))) if workers else max(1, rows)
    ahead = workers * _AHEAD or 1
    slots = -(-ahead // -(-max(1, rows) // piece)) + 2
    with ExitStack() as stack:
        ring = Ring(reader.layout(), rows=max(1, rows), slots=slots)
        reading = _Reading(reader, ring, waits=workers > 0)
        spent.here.begin()  # also of the processes, which are forked from this one
        pool: Workers = InProcesses(reading, workers) if workers else InThisProcess(reading)
        stack.callback(pool.close)
        if device is None or device.type != "cuda":
            yield from _in_order(batches, ring, pool, piece, ahead, SlotsInUse(None))
            return
        ring.page_lock()  # after the processes have started: they need no locked pages
        stack.callback(ring.page_unlock)
        stream = torch.cuda.Stream(device)
        stack.callback(stream.synchronize)  # before that, and before the processes end
        found = _in_order(batches, ring, pool, piece, ahead, SlotsInUse(stream))
        names = frozenset(name for name, column in ring.layout.items() if column.for_device)
        pairs = ((batch.columns, batch) for batch in found)
        for columns, batch in copied_ahead(pairs, names, device=device, stream=stream):
            yield replace(batch, columns=columns)


def _in_order(
    batches: Iterable[Sequence[Any]],
    ring: Ring,
    pool: Workers,
    piece: int,
    ahead: int,
    uses: SlotsInUse,
) -> Iterator[Batch[Any]]:
    """Keep `ahead` pieces submitted and put their answers together to batches."""
    keys_of = enumerate(batches)
    waiting: deque[tuple[int, _Task]] = deque()  # pieces of the batch that is being submitted
    begun: deque[tuple[int, int, int]] = deque()  # slot, keys and pieces of batches submitted
    submitted, current = 0, 0

    def submit() -> None:
        nonlocal submitted
        while submitted < ahead:
            if not waiting:
                number, keys = next(keys_of, (-1, ()))
                if number < 0:
                    return
                if ring.layout and len(keys) > ring.rows:
                    raise ValueError(f"a batch of {len(keys)} in a ring for {ring.rows}")
                slot, firsts = number % ring.slots, range(0, len(keys), piece) or range(1)
                waiting.extend(
                    (number, _Task(slot, first, keys[first : first + piece])) for first in firsts
                )
                begun.append((slot, len(keys), len(firsts)))
            number, task = waiting[0]
            if (
                ring.layout and number - ring.slots > current - 2
            ):  # its slot's last batch may be in use
                return
            if not task.first:
                uses.wait(task.slot)
            waiting.popleft()
            pool.submit(task)
            submitted += 1

    submit()
    while begun:
        slot, count, pieces = begun.popleft()
        notes: list[Any] = []
        seconds = []
        for _ in range(pieces):
            submit()
            more, spent_on_it = pool.take()
            notes += more
            seconds.append(spent_on_it)
            stages.moved()
            submitted -= 1
        submit()
        columns = {n: torch.from_numpy(column[:count]) for n, column in ring.slot(slot).items()}
        yield Batch(columns, notes, tuple(map(sum, zip(*seconds, strict=True))))
        uses.note(slot)
        current += 1
        submit()


class _Items(RowReader[Any, Any]):
    """Whatever a data set returns, as notes."""

    def __init__(self, dataset: SupportsGetItem[Any]) -> None:
        self._dataset = dataset

    def layout(self) -> Mapping[str, Column]:
        return {}

    def read(self, key: Any, row: Row) -> Any:
        del row
        return self._dataset[key]


def load_batches(
    dataset: SupportsGetItem[_T], batches: Iterable[Sequence[Any]], *, workers: int
) -> Iterator[list[_T]]:
    """Read batches of keys with `workers` processes (0: in this one), in order, by value.

    For what has no fixed shape; pictures of one size come faster by `load_images`.
    """
    rows = _ITEMS_A_PIECE * max(1, workers)
    for batch in load_rows(_Items(dataset), batches, rows=rows, workers=workers):
        yield batch.notes


class _Pictures(RowReader[Any, None]):
    def __init__(self, dataset: SupportsGetItem[Tensor], size: int) -> None:
        self._dataset, self._size = dataset, size

    def layout(self) -> Mapping[str, Column]:
        return {"pixels": Column((3, self._size, self._size), "uint8", for_device=True)}

    def read(self, key: Any, row: Row) -> None:
        row["pixels"][...] = np.asarray(self._dataset[key])


def load_images(
    dataset: SupportsGetItem[Tensor],
    batches: Iterable[Sequence[Any]],
    *,
    size: int,
    rows: int,
    workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Read batches of pictures with `workers` processes (0: in this one), in order.

    Args:
        dataset: Key → uint8 [3, size, size].
        batches: The keys of each batch.
        size: Side of a picture, pixels.
        rows: How many the largest batch has, for which room is made.
        workers: Loader processes.
        device: Where the batches go.

    Yields:
        uint8 [B, 3, size, size] on the device; on the CPU valid as `Batch.columns` are.
    """
    pictures = _Pictures(dataset, size)
    for batch in load_rows(pictures, batches, rows=rows, workers=workers, device=device):
        yield batch.columns["pixels"].to(device)


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean) / std by channel; images float [B, 3, H, W] in 0…1."""
    shape = (1, 3, 1, 1)
    shift, scale = (constant(v, images.device, images.dtype).view(shape) for v in (mean, std))
    return (images - shift) / scale


RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize_and_crop(
    image: Image.Image, *, resize: int, crop: int, interpolation: str = "bicubic"
) -> Image.Image:
    """Resize of the shorter side to `resize` pixels, then the central `crop`×`crop`."""
    width, height = image.size
    scale = resize / min(width, height)
    size = (max(crop, round(width * scale)), max(crop, round(height * scale)))
    if size != image.size:
        image = image.resize(size, RESAMPLING[interpolation])
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def evaluation_resize(image_size: int) -> int:
    """The shorter side before the central crop: 256 for 224, in proportion for other sizes."""
    return round(image_size * 256 / 224)


class EvaluationImages:
    """The evaluators' view of a set: resize, central crop, uint8 [3, S, S].

    An image that cannot be read is an error here: a number must not rest on replacements.
    """

    def __init__(self, source: ImageSource, image_size: int) -> None:
        self.source = source
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        image = self.source.load(index)
        resize = evaluation_resize(self.image_size)
        return image_to_tensor(resize_and_crop(image, resize=resize, crop=self.image_size))


def evaluation_batches(
    source: ImageSource,
    *,
    image_size: int,
    indices: Sequence[int],
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    workers: int | None = None,
) -> Iterator[Tensor]:
    """Normalised float batches [≤ batch_size, 3, S, S] of the images named, in order."""
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    for images in load_images(
        EvaluationImages(source, image_size),
        batches,
        size=image_size,
        rows=min(batch_size, len(indices)),
        workers=default_workers() if workers is None else workers,
        device=device,
    ):
        yield normalise(images.float() / 255, mean, std)

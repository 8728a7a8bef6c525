"""What loading costs the training process, and how fast batches come from files."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from PIL import Image

from sercli.benchmarks.record import Tell
from sercli.benchmarks.rounds import interleaved
from sercli.data.images.folder import ImageFolder
from sercli.data.loading import load_rows
from sercli.data.ring import Row
from sercli.data.source import ImageSource, UnreadableImage
from sercli.data.spent import shares
from sercli.recipe.schema import Decoder, Views
from sercli.statistics import Ratio, paired_ratio
from sercli.views.plan import ViewPlan, partition, plan_views
from sercli.views.reading import Note, Samples, Ticket, TrainingImages, batches

_TO_WARM_UP, _TO_TIME = 8, 4  # batches; the former touch every slot
_MANY = 1_000_000  # images of the epoch that tickets are drawn from


def two_crops() -> ViewPlan:
    """Two views of 224 pixels, as of the ImageNet recipes."""
    return plan_views(Views(), image_size=224, patch_size=16)


@dataclass(frozen=True)
class ProcessRow:
    """What loading costs the process that trains.

    Attributes:
        batch_size: Images a batch.
        seconds: CPU time a batch, median.
        open_files: Most descriptors that it had open.
    """

    batch_size: int
    seconds: float
    open_files: int | None

    @property
    def images_per_s(self) -> float:
        return self.batch_size / self.seconds


class _Painted(TrainingImages):
    """Crops without images: a level is written all over."""

    def read(self, ticket: Ticket, row: Row) -> Note:
        for values in row.values():
            values[...] = ticket.index % 128
        return Note(ticket.index, ())


class _Numbered(ImageSource):
    """As many images as anyone asks for; none is there."""

    def __init__(self) -> None:
        self.name, self.split, self.classes = "numbered", "train", ("any",)
        self.labels = np.zeros(_MANY, np.int64)

    def load(self, index: int) -> Image.Image:
        raise UnreadableImage(self.describe(index), "it is a number")

    def describe(self, index: int) -> str:
        return str(index)

    def identifier(self, index: int) -> str:
        return str(index)


def training_process(
    batch_size: int, *, workers: int, device: torch.device, rounds: int
) -> ProcessRow:
    """CPU time of this process a batch, where reading images costs loader processes nothing.

    Args:
        batch_size: Images a batch, of two crops.
        workers: Loader processes.
        device: Where batches go; for CUDA page-locking and copies are included.
        rounds: Batches that are timed, after some that touch every slot once.
    """
    part = partition(batch_size, None)
    tickets = batches(_MANY, part, batch_size=batch_size, seed=0, steps=range(_MANY))
    images = _Painted(_Numbered(), Views(), two_crops(), seed=0)
    loader = load_rows(images, tickets, rows=batch_size, workers=workers, device=device)
    seconds, most = [], 0
    with contextlib.closing(loader):
        for _ in range(_TO_WARM_UP):
            Samples.of(next(loader))
        for _ in range(rounds):
            start = time.process_time()
            Samples.of(next(loader))
            seconds.append(time.process_time() - start)
            most = max(most, _open_files() or 0)
    return ProcessRow(batch_size, statistics.median(seconds), most or None)


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None


# -- end to end -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EndRow:
    """From files to batches.

    Attributes:
        decoder: `data.decoder`.
        workers: Loader processes.
        images_per_s: Median over the rounds, by the clock.
        ratio: Times as many as the first decoder.
        spent: Share of the loaders' time by part, `spent.PARTS`.
    """

    decoder: str
    workers: int
    images_per_s: float
    ratio: Ratio
    spent: Mapping[str, float]


def end_to_end(
    source: ImageFolder,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    rounds: int,
    tell: Tell,
) -> list[EndRow]:
    """Images a second with loader processes, in interleaved rounds: a loader each, once it flows.

    Args:
        source: JPEG files, read again and again.
        batch_size: Images a batch.
        workers: Loader processes.
        device: Where batches go.
        rounds: Timed rounds.
        tell: Shows how far it is.
    """
    decoders = get_args(Decoder)

    def flow(decoder: Decoder) -> Callable[[], _Flow]:
        images = TrainingImages(source, Views(), two_crops(), seed=0, decoder=decoder)
        return lambda: _flow(images, batch_size, workers, device)

    found = interleaved(
        [flow(decoder) for decoder in decoders],
        rounds=rounds,
        warmup=0,
        report=lambda text: tell(f"end to end: {text}"),
    )
    seconds = [[one for one, _ in by_round] for by_round in found]
    return [
        EndRow(
            decoder,
            workers,
            batch_size / statistics.median(mine),
            paired_ratio(seconds[0], mine),
            shares(np.sum([parts for _, parts in by_round], axis=0).tolist()),
        )
        for decoder, mine, by_round in zip(decoders, seconds, found, strict=True)
    ]


_Flow = tuple[float, tuple[float, ...]]  # seconds a batch, and what loaders spent on them


def _flow(images: TrainingImages, batch_size: int, workers: int, device: torch.device) -> _Flow:
    number = len(images.source)
    tickets = (
        [Ticket((step * batch_size + i) % number, step, paired=False) for i in range(batch_size)]
        for step in itertools.count()
    )
    loader = load_rows(images, tickets, rows=batch_size, workers=workers, device=device)
    with contextlib.closing(loader):
        for _ in range(2):  # nobody is slower than the loaders, so that nothing is read ahead
            next(loader)
        start = time.perf_counter()
        parts = [next(loader).spent for _ in range(_TO_TIME)]
        seconds = (time.perf_counter() - start) / _TO_TIME
    return seconds, tuple(np.sum(parts, axis=0).tolist())

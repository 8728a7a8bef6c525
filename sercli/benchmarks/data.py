"""`ser bench data`: from JPEG files to batches, against the pipeline that everyone begins with."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sercli.benchmarks import forms
from sercli.benchmarks.flow import EndRow, ProcessRow, end_to_end, training_process, two_crops
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.rounds import cpu_seconds, interleaved
from sercli.benchmarks.table import Column, Row, Table, rows_of
from sercli.data.images.folder import ImageFolder
from sercli.data.ring import Ring
from sercli.data.source import ImageSource
from sercli.data.spent import PARTS
from sercli.recipe.schema import Decoder, Views
from sercli.statistics import Ratio, paired_ratio
from sercli.views.reading import Ticket, TrainingImages
from sercli.visible import counted

_SIZE = 224
_BATCH = 64  # images a loader process, end to end
REFERENCE = "PIL + ToTensor + float collate"


# -- files ----------------------------------------------------------------------------------------


def picture(seed: int, *, width: int = 500, height: int = 375) -> Image.Image:
    """Something with the statistics of a photograph: structure at all scales, and fine texture."""
    draws = np.random.default_rng(seed)
    levels = np.full((height, width, 3), 128, np.float32)
    for octave in range(1, 9):
        knots = draws.normal(scale=70 / 1.7**octave, size=(2**octave, 2**octave, 3))
        for channel in range(3):
            small = Image.fromarray(knots[..., channel].astype(np.float32))
            resized = small.resize((width, height), Image.Resampling.BICUBIC)
            levels[..., channel] += np.asarray(resized)
    levels += draws.normal(scale=6, size=(height, width, 1)).astype(np.float32)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def jpeg_files(count: int) -> Iterator[ImageFolder]:
    """A set of so many JPEG files of 500 × 375 pixels at quality 90, while it is needed."""
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as folder:
        for number in range(count):
            path = Path(folder) / "pictures" / f"{number:04}.jpg"
            path.parent.mkdir(exist_ok=True)
            picture(number).save(path, quality=90)
        yield ImageFolder(Path(folder))


# -- one core -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoreRow:
    """A way to read images, on one core.

    Attributes:
        way: What it is called.
        seconds: CPU time an image, median over the rounds.
        ratio: Times as many images a second as the reference.
    """

    way: str
    seconds: float
    ratio: Ratio

    @property
    def images_per_s(self) -> float:
        return 1 / self.seconds


def one_core(source: ImageFolder, *, rounds: int, tell: Tell) -> list[CoreRow]:
    """CPU seconds of each way to read the whole set once, in interleaved rounds; one thread.

    Args:
        source: JPEG files.
        rounds: Timed rounds, after one to warm up.
        tell: Shows how far it is.
    """
    variants: dict[str, Callable[[], object]] = {REFERENCE: _reference(source)}
    for decoder in get_args(Decoder):
        variants[f"ser, data.decoder={decoder}"] = _ours(source, range(len(source)), decoder)
    variants["decoding only, pil"] = lambda: [source.load(i) for i in range(len(source))]
    variants["decoding only, fast"] = lambda: [source.pixels(i).shape for i in range(len(source))]
    with _one_thread():
        times = interleaved(
            [cpu_seconds(read) for read in variants.values()],
            rounds=rounds,
            report=lambda text: tell(f"one core: {text}"),
        )
    return [
        CoreRow(
            name,
            statistics.median(seconds) / len(source),
            paired_ratio(times[0], seconds),
        )
        for name, seconds in zip(variants, times, strict=True)
    ]


def _reference(source: ImageFolder) -> Callable[[], list[Tensor]]:
    """Two crops an image as torchvision's examples make them, and one batch of them all."""
    from torch.utils.data import default_collate
    from torchvision.transforms import Compose, RandomResizedCrop, ToTensor

    crop = Compose([RandomResizedCrop(_SIZE), ToTensor()])

    def read() -> list[Tensor]:
        samples = []
        for index in range(len(source)):
            with open(source.path(index), "rb") as file:
                image = Image.open(file).convert("RGB")
            samples.append([crop(image), crop(image)])
        collated: list[Tensor] = default_collate(samples)
        return collated

    return read


def _ours(source: ImageSource, indices: Sequence[int], decoder: Decoder) -> Callable[[], None]:
    """What a loader process does: two crops an image, into a slot of the ring."""
    images = TrainingImages(source, Views(), two_crops(), seed=0, decoder=decoder)
    ring = Ring(images.layout(), rows=len(indices), slots=3)
    for slot in range(ring.slots):  # its memory is there from the first lap on
        for column in ring.slot(slot).values():
            column[...] = 0
    epochs = itertools.count()

    def read() -> None:
        epoch = next(epochs)
        columns = ring.slot(epoch % ring.slots)
        for row, index in enumerate(indices):
            place = {name: column[row, ...] for name, column in columns.items()}
            images.read(Ticket(index, epoch, paired=False), place)

    return read


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# -- tables ---------------------------------------------------------------------------------------


def run(
    *,
    machine: Machine,
    files: int,
    batch_sizes: Sequence[int],
    workers: int,
    rounds: int,
    tell: Tell,
) -> list[Table]:
    """Measure all four.

    Args:
        machine: Where batches go.
        files: JPEG files that are made and read.
        batch_sizes: Of the training process.
        workers: Loader processes.
        rounds: Timed rounds of each.
        tell: Shows how far it is.
    """
    device, at_once = machine.device, _BATCH * max(1, workers)
    tell(f"making {files} JPEG files")
    with jpeg_files(files) as source:
        size = statistics.mean(source.file_size(i) or 0 for i in range(files))
        cores = one_core(source, rounds=rounds, tell=tell)
        with _one_thread():
            kept = forms.from_forms(
                source,
                lambda images, indices: _ours(images, indices, "fast"),
                rounds=rounds,
                tell=tell,
            )
        tell("the training process")
        costs = [
            training_process(one, workers=workers, device=device, rounds=max(9, rounds))
            for one in batch_sizes
        ]
        ends = end_to_end(
            source,
            batch_size=at_once,
            workers=workers,
            device=device,
            rounds=rounds,
            tell=tell,
        )
    what = f"JPEG files of 500 × 375 pixels, {size / 1e3:.0f} kB each"
    loaders = counted(workers, "loader process")
    return [
        _table_of_core(cores, f"Two crops of 224 of {what}, one core"),
        forms.tabled(kept, "The same from each form that sets are kept in, one core"),
        _table_of_process(costs, f"The training process, batches to {device}, {loaders}"),
        _table_of_end(ends, f"{what}, to batches of {at_once} on {device}, {loaders}"),
    ]


def _table_of_core(rows: Sequence[CoreRow], title: str) -> Table:
    columns = (
        Column("way", "way"),
        Column("seconds", "ms an image", "s", ".3f", 1e-3),
        Column("images_per_s", "images/s", "1/s", ",.0f"),
        Column("ratio", "times the first", form=".2f"),
    )
    notes = [
        f"CPU time of one thread, median over rounds ({rows[0].ratio.rounds}), each way once a "
        "round; ser's ways write bytes into a slot of the ring"
    ]
    return Table("data", title, columns, rows_of(columns, rows), notes)


def _table_of_process(rows: Sequence[ProcessRow], title: str) -> Table:
    columns = (
        Column("batch_size", "batch", form=",d"),
        Column("seconds", "CPU ms a batch", "s", ".2f", 1e-3),
        Column("images_per_s", "its ceiling, images/s", "1/s", ",.0f"),
        Column("open_files", "open files", form="d"),
    )
    notes = ["crops of one level instead of images; to CUDA page-locking and copies are included"]
    return Table("data", title, columns, rows_of(columns, rows), notes)


def _table_of_end(rows: Sequence[EndRow], title: str) -> Table:
    columns = (
        Column("decoder", "data.decoder"),
        Column("images_per_s", "images/s", "1/s", ",.0f"),
        Column("ratio", "times the first", form=".2f"),
        *(Column(part, part, form=".0%") for part in PARTS),
    )
    lines: list[Row] = [
        {
            "decoder": row.decoder,
            "images_per_s": row.images_per_s,
            "ratio": row.ratio,
            **row.spent,
        }
        for row in rows
    ]
    notes = ["by the clock, once batches flow; read to idle: what loaders spend their time on"]
    return Table("data", title, columns, lines, notes)

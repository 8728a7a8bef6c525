"""What the encoder sees of an image: crops, colours and group elements, and a record of them.

Nothing drawn depends on the number of ranks or on what came before:

    order of images    f(seed, epoch)
    crops and colours  f(seed, epoch, index)
    group elements     f(seed, step, position)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sercli import randomness
from sercli.data import spent
from sercli.data.crops import central_square, random_crop, shared_crop
from sercli.data.cutting import CUTTERS, Cutter
from sercli.data.loading import (
    Batch,
    RowReader,
)
from sercli.data.ring import Column, Row
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import RunFailed
from sercli.recipe.schema import Decoder
from sercli.recipe.schema import Views as ViewsConfig
from sercli.views import colours as photometrics
from sercli.views.plan import Partition, ViewPlan, ViewSpec

_MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class Ticket:
    """One image to read.

    Attributes:
        index: Which image of the source.
        epoch: Seeds its crops and colours, with the index.
        paired: Whether it is in b₂.
        leader: The image whose crops and colours it shares; None: it has its own.
    """

    index: int
    epoch: int
    paired: bool
    leader: int | None = None


@dataclass(frozen=True)
class Samples:
    """This rank's share of a global batch as read, b₁ first.

    Attributes:
        crops: uint8 [B, 3, S, S] for each crop of the plan, its channels last in memory. A row of
            b₂ has the base that the views of this crop show.
        uniforms: float32 [B, crops, photometrics.NUM_UNIFORMS + 1]: for the colours, and the
            mirroring of b₁.
        boxes: float32 [B, crops, 4], left, top, width and height as shares of the image.
        turns: int64 [B, crops], quarter turns of b₁.
        indices: Which images of the source the rows are, for messages.
        unreadable: Messages of images that could not be read and were replaced.
        spent: Seconds of `spent.PARTS` that reading them took, of all processes together.
    """

    crops: Sequence[Tensor]
    uniforms: Tensor
    boxes: Tensor
    turns: Tensor
    indices: tuple[int, ...]
    unreadable: tuple[str, ...] = ()
    spent: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.uniforms)

    @classmethod
    def of(cls, batch: Batch[Note]) -> Samples:
        """From a loader; the crops are where it has them, the small tensors are copied."""
        columns = batch.columns
        number = columns["uniforms"].shape[1]
        crops = [columns[_crop_name(i)].permute(0, 3, 1, 2) for i in range(number)]
        return cls(
            crops,
            columns["uniforms"].clone(),
            columns["boxes"].clone(),
            columns["turns"].clone(),
            tuple(note.image for note in batch.notes),
            tuple(message for note in batch.notes for message in note.unreadable),
            batch.spent,
        )


class Note(NamedTuple):
    """What is said of one image: its index, and messages of those that it replaces."""

    image: int
    unreadable: tuple[str, ...]


def _crop_name(crop: int) -> str:
    return f"crop{crop}"


def batches(
    num_images: int, part: Partition, *, batch_size: int, seed: int, steps: range
) -> Iterator[list[Ticket]]:
    """This rank's tickets of each step; the last incomplete batch of an epoch is dropped."""
    per_epoch = num_images // batch_size
    order, of_epoch = np.zeros(0, dtype=np.int64), -1
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != of_epoch:
            order = randomness.numpy_generator(seed, "order", epoch).permutation(num_images)
            of_epoch = epoch
        indices = order[within * batch_size : (within + 1) * batch_size]
        yield [
            Ticket(
                int(indices[position]),
                epoch,
                row >= part.num_standard,
                None if part.group == 1 else int(indices[position - position % part.group]),
            )
            for row, position in enumerate(part.positions)
        ]


class TrainingImages(RowReader[Ticket, Note]):
    """Reads and crops images in loader processes; colours and elements come later, in batches.

    Args:
        source: Where the images are read.
        config: The recipe's section: shapes of crops, interpolation, quarter turns.
        plan: Which crops to cut.
        seed: What crops, colours and turns are drawn from, with epoch and index.
        decoder: "pil", or "fast".
    """

    def __init__(
        self,
        source: ImageSource,
        config: ViewsConfig,
        plan: ViewPlan,
        *,
        seed: int,
        decoder: Decoder = "pil",
    ) -> None:
        self.source = source
        self.config = config
        self.plan = plan
        self.seed = seed
        self._cutter = CUTTERS[decoder]

    def layout(self) -> Mapping[str, Column]:
        crops = self.plan.crops(paired=False)
        return {
            **{
                _crop_name(i): Column((spec.size, spec.size, 3), "uint8", for_device=True)
                for i, spec in enumerate(crops)
            },
            "uniforms": Column((len(crops), photometrics.NUM_UNIFORMS + 1), "float32"),
            "boxes": Column((len(crops), 4), "float32"),
            "turns": Column((len(crops),), "int64"),
        }

    def read(self, ticket: Ticket, row: Row) -> Note:
        cutter, index, unreadable = self._load(ticket.index)
        key = ticket.index if ticket.leader is None else ticket.leader
        draws = randomness.numpy_generator(self.seed, "views", ticket.epoch, key)
        crops = self.plan.crops(paired=False)
        shape = (len(crops), photometrics.NUM_UNIFORMS + 1)
        row["uniforms"][...] = draws.random(shape, dtype=np.float32)
        specs = self.plan.crops(paired=ticket.paired)
        boxes = [self._box(spec, cutter.size, ticket, draws) for spec in specs]
        scale = np.array([*cutter.size, *cutter.size], dtype=np.float32)
        written: dict[int, NDArray[np.uint8]] = {}
        for place, spec in enumerate(crops):
            shown, target = spec.base if ticket.paired else spec.crop, row[_crop_name(place)]
            if shown in written:
                target[...] = written[shown]
            else:
                cutter.cut(target, boxes[shown], self.config.interpolation)
                written[shown] = target
            row["boxes"][place] = np.array(boxes[shown], dtype=np.float32) / scale
        row["turns"][...] = self._turns(ticket.epoch, key, len(crops))
        return Note(index, unreadable)

    def _box(
        self, spec: ViewSpec, size: tuple[int, int], ticket: Ticket, draws: np.random.Generator
    ) -> tuple[int, int, int, int]:
        paired = self.plan.paired if ticket.paired and spec.kind == "global" else None
        if spec.kind == "plain" or (paired is not None and paired.base == "full"):
            return central_square(*size)
        aspect = self.config.crop_aspect
        if ticket.leader is None:
            return random_crop(*size, area=spec.area, aspect=aspect, draws=draws)
        return shared_crop(*size, area=spec.area, aspect=aspect, draws=draws)

    def _turns(self, epoch: int, key: int, count: int) -> NDArray[np.int64]:
        if not self.config.rot90_p:
            return np.zeros(count, dtype=np.int64)
        draws = randomness.numpy_generator(self.seed, "turns", epoch, key)
        turned = draws.random(count) < self.config.rot90_p
        return turned * draws.integers(1, 4, count)

    def _load(self, index: int) -> tuple[Cutter, int, tuple[str, ...]]:
        """The image, or the next one that can be read, with what was wrong."""
        unreadable: list[str] = []
        for offset in range(_MAX_REPLACEMENTS):
            candidate = (index + offset) % len(self.source)
            try:
                cutter = self._cutter.of(self.source, candidate)
            except UnreadableImage as error:
                unreadable.append(str(error))
            else:
                spent.here.lap("decode")
                return cutter, candidate, tuple(unreadable)
        raise RunFailed(f"{_MAX_REPLACEMENTS} images in a row cannot be read: {unreadable[0]}")

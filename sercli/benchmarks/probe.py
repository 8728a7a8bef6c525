"""`ser bench probe`: a step of 13 learning rates × 3 feature sets against a step of one head."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sercli.benchmarks.measure import synchronise
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.table import Column, Table, rows_of
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, normalise
from sercli.data.registry import find_kind
from sercli.encoders.vit import Encoder, final_norm
from sercli.engine.runtime import Runtime
from sercli.evals.linear.classifiers import HeadRow
from sercli.evals.linear.features import layers_of, parts_of, plan_features
from sercli.evals.linear.options import PRESETS
from sercli.families import resolve
from sercli.statistics import Ratio, paired_ratio
from sercli.visible import counted


@dataclass(frozen=True)
class ProbeRow:
    """One grid of heads, relative to the first.

    Attributes:
        sets: Number of feature sets.
        rates: Number of learning rates.
        parameters: Trainable parameters of all heads of the grid together.
        seconds: Median time of a step over the rounds.
        heads_seconds: Median of the part of it that is not the encoder's.
        ratio: A step over a step of the first grid in the same round.
        by_parts: (encoder + these heads) / (encoder + the first grid's heads) from medians; the
            encoder's is over all grids, since its work is the same. Steadier on a busy machine.
    """

    sets: int
    rates: int
    parameters: int
    seconds: float
    heads_seconds: float
    ratio: Ratio
    by_parts: float


@dataclass(frozen=True)
class Subject:
    """What is probed.

    Attributes:
        name: Of the model.
        encoder: What is frozen below the heads, on the machine's device.
        image_size: Side of an image, pixels.
        num_classes: Outputs of a head.
        grids: Feature sets and learning rates of each grid of heads; the first is the reference.
    """

    name: str
    encoder: Encoder
    image_size: int
    num_classes: int
    grids: Sequence[tuple[Sequence[str], Sequence[float]]]


def subject(recipe: str, classes: int | None, *, machine: Machine) -> Subject:
    """A recipe's model with random weights, and the grids: one of each, all of one, all of both.

    Raises:
        UserError: No such recipe.
    """
    resolved = resolve(recipe, (), {}).recipe
    model, size = resolved.model, resolved.data.image_size
    kind = find_kind(resolved.data.path)
    number = classes or (kind and kind.num_classes) or 1000
    encoder = Encoder.from_model(model, image_size=size).initialise(0).to(machine.device).eval()
    preset = PRESETS["ser"]
    grids = [
        (sets, rates)
        for sets in (("cls4",), preset.feature_sets)
        for rates in (preset.learning_rates[:1], preset.learning_rates)
    ]
    return Subject(model.name, encoder.requires_grad_(False), size, number, grids)


def run(
    subject: Subject, *, batch_size: int, machine: Machine, rounds: int, tell: Tell
) -> list[ProbeRow]:
    """Time the grids in turn, a step each a round, so that they share the machine's moods.

    Args:
        subject: What is probed.
        batch_size: Images of noise that a step takes, the same in every step.
        machine: What steps run on.
        rounds: Timed rounds, after one to warm up.
        tell: Shows how far it is.
    """
    num_classes, size = subject.num_classes, subject.image_size
    timers = [
        ProbeTimer(subject.encoder, sets, rates, num_classes=num_classes, runtime=machine.runtime)
        for sets, rates in subject.grids
    ]
    draws = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, size, size)
    images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    labels = torch.randint(num_classes, (batch_size,), generator=draws)
    times = interleaved(
        [partial(timer.step, images, labels) for timer in timers],
        rounds=rounds,
        report=tell,
    )
    encoding = statistics.median(step - heads for each in times for step, heads in each)
    steps = [[step for step, _ in each] for each in times]
    of_heads = [statistics.median(heads for _, heads in each) for each in times]
    return [
        ProbeRow(
            *timer.shape,
            timer.parameters,
            statistics.median(own),
            heads,
            paired_ratio(own, steps[0]),
            (encoding + heads) / (encoding + of_heads[0]),
        )
        for timer, own, heads in zip(timers, steps, of_heads, strict=True)
    ]


def tabled(
    rows: Sequence[ProbeRow], *, subject: Subject, batch_size: int, machine: Machine
) -> Table:
    """The rows as a table."""
    title = (
        f"One step of the linear probe of {subject.name}, {subject.image_size} px, "
        f"{counted(subject.num_classes, 'class')}: batch {batch_size}, {machine.title}"
    )
    columns = (
        Column("sets", "sets", form="d"),
        Column("rates", "rates", form="d"),
        Column("parameters", "weights", form=",d"),
        Column("seconds", "seconds", "s", ".3f"),
        Column("heads_seconds", "heads", "s", ".4f"),
        Column("ratio", "time/one", form=".3f"),
        Column("by_parts", "by parts", form=".3f"),
    )
    rounds = rows[0].ratio.rounds
    notes = [
        "one: cls4 with one rate; sets: feature sets; rates: learning rates; heads: the part of "
        "the seconds that is not the encoder's",
        f"time/one: median over rounds ({rounds}), each grid once a round; by parts: from medians "
        "of the encoder's seconds, alike for all grids, and of the heads'",
    ]
    return Table("probe", title, columns, rows_of(columns, rows), notes)


class ProbeTimer:
    """Takes training steps of a grid of heads: encoder forward, then every head.

    Args:
        encoder: Frozen, shared between timers.
        sets: Feature sets, a head for each with each rate.
        rates: Learning rates of the heads.
        num_classes: Outputs of a head.
        runtime: The device that steps run on, and the precision of their products.
    """

    def __init__(
        self,
        encoder: Encoder,
        sets: Sequence[str],
        rates: Sequence[float],
        *,
        num_classes: int,
        runtime: Runtime,
    ) -> None:
        self.encoder, self.runtime = encoder, runtime
        self.plan = plan_features(encoder, sets)
        self.rows = {
            name: HeadRow(
                name,
                len(parts) * encoder.dim,
                learning_rates=rates,
                num_classes=num_classes,
                seed=0,
                device=runtime.device,
            )
            for name, parts in self.plan.sets.items()
        }
        self.shape = len(sets), len(rates)
        self.parameters = sum(r.weight.numel() + r.bias.numel() for r in self.rows.values())

    @torch.no_grad()
    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One step; returns the seconds of it, and of what is not the encoder's."""
        device = self.runtime.device
        synchronise(device)
        start = time.perf_counter()
        pixels = normalise(images.to(device).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        with self.runtime.autocast():
            features = self.encoder(pixels, layers_of(self.plan.parts))
        synchronise(device)
        encoded = time.perf_counter()
        with self.runtime.autocast():
            parts = parts_of(features, self.plan.parts, final_norm(self.encoder))
        own = labels.to(device)
        for name, row in self.rows.items():
            row.step(self.plan.join(name, parts), own, factor=0.5)
        synchronise(device)
        end = time.perf_counter()
        return end - start, end - encoded

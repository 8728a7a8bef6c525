"""`ser bench probe`: a step of 13 learning rates × 3 feature sets against a step of one head."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, normalise
from sercli.encoders.vit import Encoder, final_norm
from sercli.engine.runtime import Runtime
from sercli.evals.linear.classifiers import HeadRow
from sercli.evals.linear.features import layers_of, parts_of, plan_features


@dataclass(frozen=True)
class ProbeRow:
    """One grid of heads, relative to the first.

    Attributes:
        sets: Number of feature sets.
        rates: Number of learning rates.
        parameters: Trainable parameters of all heads of the grid together.
        seconds: Median time of a step over the rounds.
        heads_seconds: Median of the part of it that is not the encoder's.
        ratio: Median over rounds of (step / step of the first grid in the same round).
        low, high: Lower and upper quartile of that ratio over rounds.
        by_parts: (encoder + these heads) / (encoder + the first grid's heads) from medians; the
            encoder's is over all grids, since its work is the same. Steadier on a busy machine.
    """

    sets: int
    rates: int
    parameters: int
    seconds: float
    heads_seconds: float
    ratio: float
    low: float
    high: float
    by_parts: float


def run(
    encoder: Encoder,
    grids: Sequence[tuple[Sequence[str], Sequence[float]]],
    *,
    image_size: int,
    num_classes: int,
    batch_size: int,
    runtime: Runtime,
    rounds: int,
    report: Callable[[int], None],
) -> list[ProbeRow]:
    """Time the grids in turn, a step each a round, so that they share the machine's moods.

    Args:
        encoder: What is frozen below the heads, on the runtime's device.
        grids: Feature sets and learning rates of each; the first is the reference.
        image_size: Side of an image, pixels.
        num_classes: Outputs of a head.
        batch_size: Images of noise that a step takes, the same in every step.
        runtime: The device that steps run on, and the precision of their products.
        rounds: Timed rounds, after one to warm up.
        report: Called after every round with its number.
    """
    timers = [
        ProbeTimer(encoder, sets, rates, num_classes=num_classes, runtime=runtime)
        for sets, rates in grids
    ]
    draws = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    labels = torch.randint(num_classes, (batch_size,), generator=draws)
    times: list[list[tuple[float, float]]] = []
    for number in range(rounds + 1):
        # Every other round runs backwards: whatever drifts within a round hits all alike.
        order = range(len(timers)) if number % 2 else range(len(timers) - 1, -1, -1)
        measured = {which: timers[which].step(images, labels) for which in order}
        if number:
            times.append([measured[which] for which in range(len(timers))])
        report(number)
    encoding = statistics.median(step - heads for each in times for step, heads in each)
    of_heads = [statistics.median(each[w][1] for each in times) for w in range(len(timers))]
    rows = []
    for which, timer in enumerate(timers):
        ratios = [each[which][0] / each[0][0] for each in times]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        rows.append(
            ProbeRow(
                *timer.shape,
                timer.parameters,
                statistics.median(each[which][0] for each in times),
                of_heads[which],
                statistics.median(ratios),
                low,
                high,
                (encoding + of_heads[which]) / (encoding + of_heads[0]),
            )
        )
    return rows


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
        _synchronise(device)
        start = time.perf_counter()
        pixels = normalise(images.to(device).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        with self.runtime.autocast():
            features = self.encoder(pixels, layers_of(self.plan.parts))
        _synchronise(device)
        encoded = time.perf_counter()
        with self.runtime.autocast():
            parts = parts_of(features, self.plan.parts, final_norm(self.encoder))
        own = labels.to(device)
        for name, row in self.rows.items():
            row.step(self.plan.join(name, parts), own, factor=0.5)
        _synchronise(device)
        end = time.perf_counter()
        return end - start, end - encoded


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

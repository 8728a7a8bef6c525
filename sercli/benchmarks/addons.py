"""`ser bench addons`: what each add-on adds to a training step, against none, within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sercli.benchmarks.step import StepTimer
from sercli.engine.flops import count_flops
from sercli.engine.runtime import Runtime
from sercli.recipe.schema import Recipe


@dataclass(frozen=True)
class AddonRow:
    """One variant, relative to the first one.

    Attributes:
        name: The add-on as the table shows it, with what sets it apart: "ser (fraction 0.01)".
        parameters: Trainable parameters beyond the first variant's.
        flops: Counted FLOPs of a step, over the first variant's.
        seconds: Median time of a step over the rounds.
        ratio: Median over rounds of (step / step of the first variant in the same round).
        low, high: Lower and upper quartile of that ratio over rounds.
    """

    name: str
    parameters: int
    flops: float
    seconds: float
    ratio: float
    low: float
    high: float


def run(
    recipes: Sequence[tuple[str, Recipe]],
    *,
    runtime: Runtime,
    rounds: int,
    report: Callable[[int], None],
) -> list[AddonRow]:
    """Time the variants in turn, a step each a round, so that they share the machine's moods.

    Args:
        recipes: Name and recipe of each variant; the first is the reference.
        runtime: The device that steps run on, and the precision of their products.
        rounds: Timed rounds, after one to warm up.
        report: Called after every round with its number.
    """
    timers = [StepTimer(recipe, runtime) for _, recipe in recipes]
    times: list[list[float]] = []
    for number in range(rounds + 1):
        # Every other round runs backwards: whatever drifts within a round hits all alike.
        order = range(len(timers)) if number % 2 else range(len(timers) - 1, -1, -1)
        measured = {which: timers[which].step() for which in order}
        if number:
            times.append([measured[which] for which in range(len(timers))])
        report(number)
    counted = [count_flops(recipe) for _, recipe in recipes]
    rows = []
    for which, (name, _) in enumerate(recipes):
        ratios = [each[which] / each[0] for each in times]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        rows.append(
            AddonRow(
                name,
                counted[which].parameters - counted[0].parameters,
                counted[which].step / counted[0].step,
                statistics.median(each[which] for each in times),
                statistics.median(ratios),
                low,
                high,
            )
        )
    return rows

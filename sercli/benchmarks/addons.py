"""`ser bench addons`: what each add-on adds to a training step, against none, within one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.step import StepTimer
from sercli.benchmarks.table import Column, Table, rows_of
from sercli.engine.flops import count_flops
from sercli.families import addon_names, default_recipe, resolve
from sercli.recipe.schema import Recipe
from sercli.statistics import Ratio, paired_ratio


@dataclass(frozen=True)
class AddonRow:
    """One variant, relative to the first one.

    Attributes:
        addon: As the table shows it, with what sets it apart: "ser (fraction 0.01)".
        views: View setting.
        parameters: Trainable parameters beyond the first variant's.
        flops: Counted FLOPs of a step, over the first variant's.
        seconds: Median time of a step over the rounds.
        ratio: A step over a step of the first variant in the same round.
    """

    addon: str
    views: str
    parameters: int
    flops: float
    seconds: float
    ratio: Ratio


def recipes_of(
    method: str, layer: int, *, batch_size: int, fraction: float, plugins: Sequence[Path] = ()
) -> list[tuple[str, Recipe]]:
    """The embedded world's recipe without an add-on and with each, by what it is called.

    Raises:
        UserError: No such method, or no such layer.
    """
    recipes = []
    for name in addon_names(plugins):  # none is the first
        settings = [f"train.batch_size={batch_size}"]
        if name == "ser":
            settings.append(f"addon.fraction={fraction}")
        if name != "none":
            settings.append(f"addon.layer={layer}")
        start = default_recipe(method=method, addon=name, data=None, plugins=plugins)
        resolved = resolve(start.recipe, tuple(settings), start.flags, plugins=plugins)
        label = f"{name} (fraction {fraction:g})" if name == "ser" else name
        recipes.append((label, resolved.recipe))
    return recipes


def run(
    recipes: Sequence[tuple[str, Recipe]], *, machine: Machine, rounds: int, tell: Tell
) -> list[AddonRow]:
    """Time the variants in turn, a step each a round, so that they share the machine's moods.

    Args:
        recipes: Name and recipe of each variant; the first is the reference.
        machine: What steps run on.
        rounds: Timed rounds, after one to warm up.
        tell: Shows how far it is.
    """
    timers = [StepTimer(recipe, machine.runtime) for _, recipe in recipes]
    times = interleaved(
        [timer.step for timer in timers],
        rounds=rounds,
        report=tell,
    )
    counted = [count_flops(recipe) for _, recipe in recipes]
    return [
        AddonRow(
            name,
            recipe.views.setting,
            flops.parameters - counted[0].parameters,
            flops.step / counted[0].step,
            statistics.median(seconds),
            paired_ratio(seconds, times[0]),
        )
        for (name, recipe), flops, seconds in zip(recipes, counted, times, strict=True)
    ]


def tabled(rows: Sequence[AddonRow], *, title: str) -> Table:
    """The rows as a table."""
    columns = (
        Column("addon", "add-on"),
        Column("views", "views"),
        Column("parameters", "extra parameters", form="+,"),
        Column("flops", "FLOPs / none", form=".3f"),
        Column("seconds", "seconds", "s", ".3f"),
        Column("ratio", "time / none", form=".3f"),
    )
    rounds = rows[0].ratio.rounds
    notes = [f"time / none: median over rounds ({rounds}), each variant once a round"]
    return Table("addons", title, columns, rows_of(columns, rows), notes)

"""`ser bench step`: what a training step costs, of several recipes and ways to take it, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sercli.benchmarks.counting import OperatorCount, launched_kernels
from sercli.benchmarks.measure import peak_above, reset_peak, seconds_of
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.reference import ReferenceTimer
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.step import StepTimer, matmul_flops_per_s
from sercli.benchmarks.table import Column, Row, Table
from sercli.data.registry import find_kind
from sercli.engine.flops import count_flops
from sercli.errors import UserError
from sercli.families import resolve
from sercli.recipe.schema import Recipe
from sercli.statistics import paired_ratio

Mode = Literal["eager", "compiled", "reference"]
MODES: tuple[Mode, ...] = ("eager", "compiled", "reference")
PAPER_FRACTION = "addon.fraction=0.01"  # of the batch in b₂; recipes of the embedded world: more
PAPER, EPOCHS, IMAGENET = "imagenet/moco-ser", 100, 1_281_167


@dataclass(frozen=True)
class Variant:
    """One row: a recipe, and how its steps are taken.

    Attributes:
        name: As the table has it.
        recipe: Its `train.batch_size` images are a step.
        mode: "reference" is `reference.ReferenceTimer`, for recipes without add-on.
    """

    name: str
    recipe: Recipe
    mode: Mode

    def timer(self, machine: Machine) -> StepTimer:
        """What takes its steps."""
        if self.mode == "reference":
            return ReferenceTimer(self.recipe, machine.runtime)
        return StepTimer(self.recipe, machine.runtime, compiled=self.mode == "compiled")


def parse_modes(text: str | None, *, cuda: bool) -> tuple[Mode, ...]:
    """Modes by their names, separated by commas; None: those that the device is measured in.

    Raises:
        UserError: There is no such mode.
    """
    if text is None:
        return MODES if cuda else ("eager",)
    found = tuple(mode for mode in MODES if mode in text.split(","))
    if unknown := set(text.split(",")) - set(found):
        raise UserError(
            f"--modes {text}", f"{min(unknown)!r} is none", f"known: {', '.join(MODES)}"
        )
    return found


def variants_of(
    recipes: Sequence[str],
    *,
    modes: Sequence[Mode],
    batch_size: int,
    settings: Sequence[str] = (),
    accumulate: int | None = None,
) -> list[Variant]:
    """Every recipe in every mode that it can be taken in; the last recipe also in micro-batches.

    Settings of an add-on go to the recipes that have one.

    Raises:
        UserError: No such recipe; or a setting is not one of all of them.
    """

    def resolved(name: str, *more: str) -> Recipe:
        own = [*settings, f"train.batch_size={batch_size}", *more]
        if resolve(name, (), {}).recipe.addon.name == "none":
            own = [one for one in own if not one.startswith("addon.")]
        return resolve(name, tuple(own), {}).recipe

    variants = []
    for name in recipes:
        recipe = resolved(name)
        for mode in modes:
            if mode == "reference" and recipe.addon.name != "none":
                continue
            label = name if mode == "eager" else f"{name}, {mode}"
            variants.append(Variant(label, recipe, mode))
    if accumulate is not None:
        recipe = resolved(recipes[-1], f"train.accumulate={accumulate}")
        variants.append(Variant(f"{recipes[-1]}, accumulate={accumulate}", recipe, "eager"))
    if not variants:
        raise UserError("--modes reference", "it is of recipes without an add-on")
    return variants


def measure(
    recipes: Sequence[str],
    *,
    machine: Machine,
    rounds: int,
    tell: Tell,
    modes: str | None = None,
    batch_size: int = 256,
    settings: Sequence[str] = (),
    accumulate: int | None = None,
) -> Table:
    """The table of recipes: see `parse_modes`, `variants_of`, `run`."""
    cuda = machine.device.type == "cuda"
    variants = variants_of(
        recipes,
        modes=parse_modes(modes, cuda=cuda),
        batch_size=batch_size,
        settings=settings,
        accumulate=accumulate,
    )
    # A GPU is to be busy while steps are launched.
    rows = run(variants, machine=machine, rounds=rounds, steps=10 if cuda else 1, tell=tell)
    return tabled(rows, machine=machine, settings=settings)


@dataclass
class StepRow:
    """What was found of a variant.

    Attributes:
        variant: Which.
        flops: Counted, of a step, with what it computes twice.
        again: Those that it computes twice, to save memory.
        calls: Operators that compute or copy.
        kernels: Launched by a step on a CUDA device; None elsewhere.
        num_bytes: What they read and write, an upper bound.
        peak_bytes: Largest extra memory of a step; None where it cannot be measured.
        seconds: Of a step, in each round; none if steps were only counted.
    """

    variant: Variant
    flops: float
    again: float
    calls: int
    kernels: int | None
    num_bytes: int
    peak_bytes: int | None
    seconds: list[float]

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def images_per_s(self) -> float | None:
        return None if self.median is None else self.variant.recipe.train.batch_size / self.median


def run(
    variants: Sequence[Variant], *, machine: Machine, rounds: int, steps: int, tell: Tell
) -> list[StepRow]:
    """Count a step of each variant; then time them in turn.

    Args:
        variants: The first is the reference of ratios.
        machine: What steps run on.
        rounds: Timed rounds, after one to warm up; 0: steps are only counted, of one variant after
            the other.
        steps: Back to back in a round, which on a GPU is how steps are taken.
        tell: Shows how far it is.
    """
    rows, timers = [], []
    for variant in variants:
        tell(f"counting a step of {variant.name}")
        timer = variant.timer(machine)
        timer.take()  # the first makes what later ones find, such as moments and constants
        with OperatorCount() as seen:
            timer.take()
        before = reset_peak(machine.device)
        peak = None
        if rounds:
            timer.take()
            peak = peak_above(before, machine.device)
            timers.append(timer)
        counted = count_flops(variant.recipe)
        rows.append(
            StepRow(
                variant,
                flops=counted.step + counted.again,
                again=counted.again,
                calls=seen.calls.total(),
                kernels=launched_kernels(timer.take, machine.device),
                num_bytes=seen.num_bytes,
                peak_bytes=peak,
                seconds=[],
            )
        )
    if rounds:
        times = interleaved(
            [partial(_seconds, timer, steps, machine) for timer in timers],
            rounds=rounds,
            report=tell,
        )
        for row, seconds in zip(rows, times, strict=True):
            row.seconds = seconds
    return rows


def _seconds(timer: StepTimer, steps: int, machine: Machine) -> float:
    """Of a step, of so many back to back."""

    def take() -> None:
        for _ in range(steps):
            timer.take()

    return seconds_of(take, machine.device)[0] / steps


def tabled(rows: Sequence[StepRow], *, machine: Machine, settings: Sequence[str] = ()) -> Table:
    """The rows as a table, with the device's matmul ceiling measured beside.

    Args:
        rows: The first is what the others are held to.
        machine: What they were measured on.
        settings: That their recipes were given, for the title.
    """
    timed = bool(rows[0].seconds)
    side, repeats = (8192, 20) if machine.device.type == "cuda" else (1024, 3)
    dtype = machine.runtime.autocast_dtype
    ceiling = (
        matmul_flops_per_s(machine.device, side=side, repeats=repeats, dtype=dtype)
        if timed
        else None
    )
    paper = count_flops(resolve(PAPER, ("train.batch_size=2048",), {}).recipe).step / 2048
    lines: list[Row] = []
    for row in rows:
        rate = None if row.median is None else row.flops / row.median
        lines.append(
            {
                "step": row.variant.name,
                "batch_size": row.variant.recipe.train.batch_size,
                "flops": row.flops,
                "operators": row.calls,
                "kernels": row.kernels,
                "bytes": row.num_bytes,
                "peak_bytes": row.peak_bytes,
                "seconds": row.median,
                "images_per_s": row.images_per_s,
                "ratio": paired_ratio(row.seconds, rows[0].seconds) if timed else None,
                "flops_ratio": row.flops / rows[0].flops,
                "operators_ratio": row.calls / rows[0].calls,
                "matmul_share": rate / ceiling if rate and ceiling else None,
                "paper_seconds": _paper_seconds(row, paper),
            }
        )
    batch = rows[0].variant.recipe.train.batch_size
    last = {one.partition("=")[0]: one for one in settings}  # the last of a key counts
    given = "".join(f", {one}" for one in last.values())
    title = f"A training step of {batch} images on {machine.title}{given}"
    columns = _columns(rows, timed=timed)
    return Table("step", title, columns, lines, _notes(rows, ceiling))


def _columns(rows: Sequence[StepRow], *, timed: bool) -> tuple[Column, ...]:
    return (
        Column("step", "step"),
        Column("batch_size", "batch", form="d", printed=False),
        Column("flops", "GFLOP", "FLOP", ",.1f", 1e9),
        Column("flops_ratio", "/first", form=".3f"),
        Column("operators", "operators", form=",d"),
        Column("operators_ratio", "/first", form=".3f"),
        Column("kernels", "kernels", form=",d", printed=any(row.kernels for row in rows)),
        Column("bytes", "GB", "bytes", ",.1f", 1e9),
        Column("peak_bytes", "peak MB", "bytes", ",.0f", 1e6, printed=timed),
        Column("seconds", "ms", "s", ",.1f", 1e-3, printed=timed),
        Column("images_per_s", "images/s", form=",.1f", printed=timed),
        Column("ratio", "time/first", form=".3f", printed=timed),
        Column("matmul_share", "% matmul", form=".1f", per=1e-2, printed=timed),
        Column("paper_seconds", "hours", "s", ",.1f", 3600, printed=timed),
    )


def _notes(rows: Sequence[StepRow], ceiling: float | None) -> list[str]:
    """What the columns mean; `ceiling` in FLOP/s, None if steps were only counted."""
    notes = [
        f"/first: over {rows[0].variant.name}; operators that compute or copy (on CUDA each "
        "launches a kernel or more); GB: what they read and write, as if no cache held it"
    ]
    if ceiling is not None:
        notes += [
            f"time/first: median over rounds ({len(rows[0].seconds)}), each variant once a round, "
            "and its 95 % interval",
            f"% matmul: FLOP/s over those of a square product here, {ceiling / 1e12:.3g} TFLOP/s; "
            "peak: beyond what was in use before the step",
            f"hours: {EPOCHS} epochs of ImageNet, {IMAGENET:,} images, at a row's images/s; of the "
            f"embedded world's models by the FLOPs of {PAPER} at a row's FLOP/s, without what a "
            "step computes twice",
        ]
    return notes


def _paper_seconds(row: StepRow, paper: float) -> float | None:
    """Of the paper's 100 epochs: at this speed, or at this rate if the model is another.

    Args:
        row: Of the embedded world's models, what is computed twice does not count as work.
        paper: FLOPs of an image of the paper's model.
    """
    if row.median is None or row.images_per_s is None:
        return None
    kind = find_kind(row.variant.recipe.data.path)
    images = EPOCHS * IMAGENET
    if kind is None or not kind.rendered:
        return images / row.images_per_s
    return images * paper * row.median / (row.flops - row.again)

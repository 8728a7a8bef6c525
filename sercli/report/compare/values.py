"""A run's numbers, one at a time: those of a result with their interval, and those of run.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sercli.protocols import Quantity, Reading
from sercli.protocols.contract import Unit
from sercli.runs.facts import RunFacts
from sercli.runs.result import Result
from sercli.statistics import wilson_interval

OF_RUN = "run"  # in keys, where results have their protocol


@dataclass(frozen=True)
class RunQuantity:
    """A number of the run itself.

    Attributes:
        quantity: What it is; its pattern is the name in the column's key.
        read: Where a run has it: a section and key of run.json, or what looks it up.
        measured: It was found out; else it is one of the run's settings.
    """

    quantity: Quantity
    read: tuple[str, str] | Callable[[RunFacts], float | None]
    measured: bool = True

    @property
    def key(self) -> str:
        return f"{OF_RUN}/{self.quantity.pattern}"

    def of(self, run: RunFacts) -> float | None:
        return run.quantity(*self.read) if isinstance(self.read, tuple) else self.read(run)


def _of_run(
    pattern: str, heading: str, unit: Unit, explanation: str, *, default: bool = False
) -> Quantity:
    """Neither end of a cost is better: it is worth what it buys."""
    return Quantity(
        pattern, heading, unit=unit, better=None, default=default, explanation=explanation
    )


RUN_QUANTITIES: tuple[RunQuantity, ...] = (
    RunQuantity(
        _of_run("layer", "Layer", "count", "The block that the add-on taps."),
        lambda run: run.tapped_layer,
        measured=False,
    ),
    RunQuantity(
        _of_run(
            "parameters",
            "Parameters trained",
            "count",
            "Parameters that a step trains: the encoder, the heads of the objective and the "
            "add-on's.",
        ),
        ("parameters", "trainable"),
    ),
    RunQuantity(
        _of_run(
            "encoder_parameters", "Parameters encoder", "count", "Parameters of the encoder alone."
        ),
        ("parameters", "encoder"),
    ),
    RunQuantity(
        _of_run("flops", "FLOPs /step", "count", "Counted training FLOPs of a step."),
        ("flops", "step"),
    ),
    RunQuantity(
        _of_run(
            "flops_ratio_none",
            "FLOPs / none",
            "ratio",
            "Counted training FLOPs a step, relative to the same run without add-on.",
            default=True,
        ),
        ("flops", "ratio_none"),
    ),
    RunQuantity(
        _of_run(
            "flops_ratio_weight0",
            "FLOPs / λ=0",
            "ratio",
            "Counted training FLOPs a step, relative to the same run with λ=0 and the same [CLS].",
            default=True,
        ),
        ("flops", "ratio_weight0"),
    ),
    RunQuantity(
        _of_run("train_seconds", "Train time", "duration", "Training time.", default=True),
        ("timings", "train_seconds"),
    ),
    RunQuantity(
        _of_run(
            "counted_memory_gib",
            "Tensors counted",
            "memory",
            "Memory of a process's tensors at a step's peak, counted before it began.",
        ),
        ("memory", "counted_gib"),
    ),
    RunQuantity(
        _of_run(
            "peak_memory_gib",
            "GPU memory",
            "memory",
            "The most memory that a process's tensors took on its CUDA device in a step.",
        ),
        ("memory", "peak_gib"),
    ),
    RunQuantity(
        _of_run(
            "resident_memory_gib",
            "Resident memory",
            "memory",
            "On a CPU: the most memory that the training process had, PyTorch itself included and "
            "loader processes not.",
        ),
        ("memory", "resident_gib"),
    ),
    RunQuantity(
        _of_run(
            "images_per_s",
            "Images /s",
            "rate",
            "Training throughput in images per second.",
            default=True,
        ),
        ("timings", "images_per_s"),
    ),
)


def interval_of(result: Result, reading: Reading) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval over images, in the value's unit: the stored one, else Wilson's.

    Which of them a quantity has is its contract's to say; Wilson's is of a share of n images.
    """
    if reading.quantity.interval is None:
        return None, None
    stored = result.metrics.get
    low, high = stored(f"{reading.metric}/low"), stored(f"{reading.metric}/high")
    if low is not None and high is not None:
        return low, high
    value, images = result.metrics.get(reading.metric), result.data.get("n")
    if (
        value is None
        or reading.quantity.interval != "wilson"
        or not isinstance(images, int)
        or images < 1
    ):
        return None, None
    right = min(images, max(0, round(value / 100 * images)))
    interval = wilson_interval(right, images)
    return 100 * interval.low, 100 * interval.high

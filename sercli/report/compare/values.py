"""A run's numbers, one at a time: those of a result with their interval, and those of run.json."""

from __future__ import annotations

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
        section, field: Where run.json has it.
        quantity: What it is; its pattern is the name in the column's key.
    """

    section: str
    field: str
    quantity: Quantity

    @property
    def key(self) -> str:
        return f"{OF_RUN}/{self.quantity.pattern}"

    def of(self, run: RunFacts) -> float | None:
        return run.quantity(self.section, self.field)


def _of_run(
    pattern: str, heading: str, unit: Unit, explanation: str, *, default: bool = True
) -> Quantity:
    """Neither end of a cost is better: it is worth what it buys."""
    return Quantity(
        pattern, heading, unit=unit, better=None, default=default, explanation=explanation
    )


RUN_QUANTITIES: tuple[RunQuantity, ...] = (
    RunQuantity(
        "flops",
        "ratio_none",
        _of_run(
            "flops_ratio_none",
            "FLOPs / none",
            "ratio",
            "Counted training FLOPs a step, relative to the same run without add-on.",
        ),
    ),
    RunQuantity(
        "flops",
        "ratio_weight0",
        _of_run(
            "flops_ratio_weight0",
            "FLOPs / λ=0",
            "ratio",
            "Counted training FLOPs a step, relative to the same run with λ=0 and the same [CLS].",
        ),
    ),
    RunQuantity(
        "timings",
        "train_seconds",
        _of_run("train_seconds", "Train time", "duration", "Training time."),
    ),
    RunQuantity(
        "timings",
        "images_per_s",
        _of_run("images_per_s", "Images /s", "rate", "Training throughput in images per second."),
    ),
)


def interval_of(result: Result, reading: Reading) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval over images, in the value's unit: the stored one, else Wilson's.

    Which of them a quantity has is its contract's to say; Wilson's is of a share of n images.
    """
    if reading.quantity.interval is None:
        return None, None
    low, high = (result.metrics.get(f"{reading.metric}/{end}") for end in ("low", "high"))
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

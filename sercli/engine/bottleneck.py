"""Which part of loading images holds a training up, and what may help; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sercli.data.cores import most_loaders
from sercli.data.spent import PARTS, shares
from sercli.recipe.schema import Data

NOTICEABLE = 0.05  # share of the time that a step waits
_WORTH_ADVICE = 0.2
_BUSY = tuple(part for part in PARTS if part != "idle")
_CALLED = {"read": "reading files", "decode": "decoding", "crop": "cropping"}


def row_of(seconds: Sequence[float]) -> dict[str, float]:
    """What loader processes spent, as metrics.jsonl has it: shares by part.

    Args:
        seconds: Of each of `spent.PARTS`; empty where nothing was measured.
    """
    return {f"data_{part}": share for part, share in shares(seconds).items()}


def bottleneck(row: Mapping[str, Any]) -> str | None:
    """The part that loader processes spend most on, if a step waits for it.

    Where they were idle for more than half of the time, it is none of theirs.
    """
    if row["data_wait"] < NOTICEABLE or "data_idle" not in row or row["data_idle"] > 0.5:
        return None
    return max(_BUSY, key=lambda part: float(row[f"data_{part}"]))


def advice(row: Mapping[str, Any], data: Data, *, workers: int, rendered: bool) -> str | None:
    """One line on what may help, of a row that tells of long waits.

    Args:
        row: Of metrics.jsonl.
        data: The run's settings.
        workers: Its loader processes.
        rendered: Whether there are no files: images are drawn as they are needed.
    """
    part = bottleneck(row)
    if part is None or row["data_wait"] <= _WORTH_ADVICE:
        return None
    most = most_loaders()
    remedies = []
    if workers < most:
        remedies.append(f"more data.workers ({workers} now, {most} at most here)")
    if part == "read":
        remedies.append("a faster disk")
    elif data.decoder == "pil" and not rendered:
        remedies.append("data.decoder=fast")
    remedies = remedies or ["more cores"]
    doing = "rendering" if rendered and part == "decode" else _CALLED[part]
    return (
        f"note: {row['data_wait']:.0%} of the time is spent waiting for images, whose loaders are "
        f"busy with {doing} most; what may help is {' or '.join(remedies)}"
    )

"""A number of a row, as charts need it: a run's with its interval, or the mean over seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sercli.protocols import Reading
from sercli.report.compare.runs import Entry
from sercli.report.compare.values import interval_of
from sercli.runs.result import Result
from sercli.statistics import mean_interval


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval and its floor, where there are any."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    partial: bool = False

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def measured(entry: Entry, source: str, protocol_id: str, reading: Reading) -> Measured:
    """What a row has of a metric, by one rule.

    Args:
        entry: A run, or the seeds of a recipe: then the mean over those that have a value, with
            Student's interval over seeds. One seed of a recipe has none, as in tables.
        source: Name of the result.
        protocol_id: Of its protocol; numbers of another are not looked at.
        reading: The metric.
    """
    results = [
        result
        for run in entry.runs
        if (result := run.results.get(source)) is not None and result.protocol_id == protocol_id
    ]
    found = [one for result in results if (one := _of(result, reading)).value is not None]
    if not entry.over:
        return found[0] if found else Measured()
    if len(found) < 2:
        return replace(found[0], low=None, high=None) if found else Measured()
    values = [one.value for one in found if one.value is not None]
    floors = [one.floor for one in found if one.floor is not None]
    interval = mean_interval(values)
    return Measured(
        value=sum(values) / len(values),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        floor=sum(floors) / len(floors) if floors else None,
        partial=any(one.partial for one in found),
    )


def _of(result: Result, reading: Reading) -> Measured:
    low, high = interval_of(result, reading)
    return Measured(
        value=result.metrics.get(reading.metric),
        low=low,
        high=high,
        floor=result.metrics.get(reading.floor) if reading.floor else None,
        partial=bool(result.data.get("partial")),
    )

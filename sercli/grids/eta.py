"""How long the rest of a grid takes: from jobs of the same kind, or else from FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sercli.grids.jobs import Job
from sercli.visible import duration


@dataclass(frozen=True)
class Timed:
    """A job that was done in one go.

    Attributes:
        kind: Of the job.
        seconds: It took.
        flops: That were counted of it; None: none.
    """

    kind: str
    seconds: float
    flops: float | None

    def to_json(self, name: str) -> dict[str, float | str | None]:
        """A row of the file that keeps them."""
        return {"job": name, "kind": self.kind, "seconds": self.seconds, "flops": self.flops}

    @classmethod
    def of_row(cls, row: Mapping[str, object]) -> Timed | None:
        """What a row says; None for any other than ours."""
        kind, seconds, flops = row.get("kind"), row.get("seconds"), row.get("flops")
        if not isinstance(kind, str) or not isinstance(seconds, int | float) or seconds < 0:
            return None
        known = isinstance(flops, int | float) and not isinstance(flops, bool) and flops > 0
        return cls(kind, float(seconds), float(flops) if known else None)  # type: ignore[arg-type]


@dataclass
class Estimator:
    """What jobs will take, by those that are done.

    Attributes:
        flops_of: FLOPs of a job; None where they are not counted.
        timed: What is known.
    """

    flops_of: Callable[[Job], float | None]
    timed: list[Timed] = field(default_factory=list)

    def seconds(self, job: Job) -> float | None:
        """What a job will take; None: nothing is known of its like.

        The median of its kind, by FLOPs where they are counted; where none of its kind is done,
        the FLOPs of the job by the rate of all others.
        """
        alike = [one for one in self.timed if one.kind == job.kind]
        flops = self.flops_of(job)
        rates = [one.seconds / one.flops for one in alike or self.timed if one.flops]
        if flops is not None and rates:
            return flops * statistics.median(rates)
        return statistics.median([one.seconds for one in alike]) if alike else None

    def left(self, jobs: Iterable[Job]) -> Left:
        """What jobs will take together."""
        known, unknown = 0.0, []
        for job in jobs:
            seconds = self.seconds(job)
            if seconds is None:
                unknown.append(job.kind)
            else:
                known += seconds
        return Left(known, tuple(dict.fromkeys(unknown)))


@dataclass(frozen=True)
class Left:
    """Time that is left.

    Attributes:
        seconds: Of the jobs of which something is known.
        unknown: Kinds of the others.
    """

    seconds: float
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.unknown and not self.seconds:
            return ""
        more = f" and {', '.join(self.unknown)}" if self.unknown else ""
        return f"about {duration(self.seconds)}{more} left"

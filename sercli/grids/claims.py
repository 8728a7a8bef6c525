"""What a grid's runs say of its claims: confirmed, refuted or open, in words and numbers.

A comparison is decided by the paired t test over seeds; with one seed by the paired test over
images, where both runs stored predictions of the same ones. A claim is of one or more comparisons:

- all of them point as claimed: its p value is the largest (all must hold: an intersection-union
  test needs no correction among them);
- one or more point the other way: its p value is the smallest of those, times how many they are.

The p values of all claims are corrected by Holm; below 0.05 a claim is confirmed, or refuted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sercli.errors import SerError
from sercli.grids.schema import Claim, Comparison, Grid
from sercli.protocols import contract_of
from sercli.report.compare.comparison import Options, compare_runs
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.statistics import Interval, holm_adjusted, paired_seeds, spread
from sercli.visible import counted

LEVEL = 0.05
Verdict = Literal["confirmed", "refuted", "open"]
Directory = Callable[[str, int], Path]


@dataclass(frozen=True)
class Compared:
    """A comparison with its numbers.

    Attributes:
        comparison: What was compared.
        means: Of the run and of the other, over seeds; None: one of them is not there.
        interval: 95 % of it, over seeds or (`over` says it) over images.
        p_value: Two-sided; None: nothing can be tested.
        over: "3 seeds", "512 images (one seed)".
        why: Why there is no test.
    """

    comparison: Comparison
    means: tuple[float, float] | None = None
    interval: Interval | None = None
    p_value: float | None = None
    over: str = ""
    why: str = ""

    @property
    def difference(self) -> float | None:
        """The run minus the other."""
        return None if self.means is None else self.means[0] - self.means[1]

    @property
    def as_claimed(self) -> bool:
        """Whether it points to where the claim does."""
        return self.difference is not None and self.difference * self.comparison.sign > 0

    def __str__(self) -> str:
        comparison = self.comparison
        name, _, metric = comparison.metric.partition("/")
        if self.means is None or self.difference is None:
            return f"{comparison.of} and {comparison.other}, {name} {metric}: {self.why}"
        plain, form = (_form(comparison.metric, sign) for sign in ("", "+"))
        text = (
            f"{comparison.of} {plain(self.means[0])}, {comparison.other} {plain(self.means[1])} "
            f"({name} {metric}): {form(self.difference)}"
        )
        if self.interval is not None:
            text += f" [{form(self.interval.low)}, {form(self.interval.high)}]"
        if self.p_value is not None:
            text += f", p = {self.p_value:.2g}"
        return f"{text} over {self.over}{f': {self.why}' if self.why else ''}"


@dataclass(frozen=True)
class Decided:
    """A claim, and what became of it.

    Attributes:
        name: In the grid.
        claim: What was claimed.
        verdict: What became of it.
        compared: Its comparisons.
        p_value: Of the claim; None: nothing was tested.
        adjusted_p: After Holm's correction over all claims that were tested.
    """

    name: str
    claim: Claim
    verdict: Verdict
    compared: tuple[Compared, ...]
    p_value: float | None = None
    adjusted_p: float | None = None

    @property
    def headline(self) -> str:
        """What became of it."""
        corrected = "" if self.adjusted_p is None else f" (corrected p = {self.adjusted_p:.2g})"
        return f"{self.claim.text}: {self.verdict}{corrected}"

    def __str__(self) -> str:
        return f"{self.headline}. {'; '.join(map(str, self.compared))}."

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "claim": self.name,
            "text": self.claim.text,
            "verdict": self.verdict,
            "p_value": self.p_value,
            "adjusted_p": self.adjusted_p,
            "comparisons": [
                {
                    "metric": one.comparison.metric,
                    "of": one.comparison.of,
                    "other": one.comparison.other,
                    "claimed": "above" if one.comparison.sign > 0 else "below",
                    "difference": one.difference,
                    "low": None if one.interval is None else one.interval.low,
                    "high": None if one.interval is None else one.interval.high,
                    "p_value": one.p_value,
                    "over": one.over,
                    "why": one.why,
                }
                for one in self.compared
            ],
        }


def decide(grid: Grid, directory: Directory) -> list[Decided]:
    """What the runs of a grid say of its claims.

    Args:
        grid: With the claims.
        directory: Where the run of a name and a seed is.
    """
    undecided = []
    for name, claim in grid.claims.items():
        compared = tuple(_compare(grid, one, directory) for one in claim.comparisons)
        undecided.append(Decided(name, claim, "open", compared, p_value=_p_value(compared)))
    tested = [one for one in undecided if one.p_value is not None]
    adjusted = holm_adjusted([one.p_value for one in tested if one.p_value is not None])
    corrected = dict(zip((one.name for one in tested), adjusted, strict=True))
    return [_decided(one, corrected) for one in undecided]


def _decided(one: Decided, corrected: Mapping[str, float]) -> Decided:
    adjusted = corrected.get(one.name)
    if adjusted is None or adjusted >= LEVEL:
        return replace(one, adjusted_p=adjusted)
    verdict: Verdict = "confirmed" if all(c.as_claimed for c in one.compared) else "refuted"
    return replace(one, verdict=verdict, adjusted_p=adjusted)


def _p_value(compared: Sequence[Compared]) -> float | None:
    """Of a claim: that all its comparisons hold, or that one does not."""
    against = [one.p_value for one in compared if one.p_value is not None and not one.as_claimed]
    if against:
        return min(1.0, len(against) * min(against))
    values = [one.p_value for one in compared]
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


# -- One comparison --------------------------------------------------------------------------------


def _compare(grid: Grid, comparison: Comparison, directory: Directory) -> Compared:
    """A comparison over the seeds that both runs have the number of."""
    seeds = [
        seed for seed in grid.seeds_of(comparison.of) if seed in grid.seeds_of(comparison.other)
    ]
    name, _, metric = comparison.metric.partition("/")
    pairs: list[tuple[float, float]] = []
    there: list[int] = []
    rules: set[str] = set()
    for seed in seeds:
        results = [_result(directory(run, seed), name) for run in (comparison.other, comparison.of)]
        values = [None if one is None else one.metrics.get(metric) for one in results]
        rules |= {one.protocol_id for one in results if one is not None}
        if values[0] is not None and values[1] is not None:
            pairs.append((values[0], values[1]))
            there.append(seed)
    if len(rules) > 1:
        return Compared(comparison, why="measured by different rules")
    if not pairs:
        return Compared(comparison, why="no number of both is there")
    if len(pairs) == 1:
        return _over_images(comparison, directory, there[0], pairs[0])
    other, own = ([pair[side] for pair in pairs] for side in (0, 1))
    found = paired_seeds(other, own)
    means = (spread(own).mean, spread(other).mean)
    why = "" if found.p_value is not None else "the differences do not vary"
    if len(pairs) < len(seeds):
        why = "; ".join(filter(None, [why, f"{counted(len(seeds) - len(pairs), 'seed')} missing"]))
    over = counted(found.seeds, "seed")
    return Compared(comparison, means, found.interval, found.p_value, over, why)


def _result(path: Path, name: str) -> Result | None:
    """A result on all images, if there is one and it can be read."""
    file = RunDir(path).result(name)
    try:
        result = Result.from_file(file) if file.is_file() else None
    except SerError:
        return None
    return None if result is None or result.data.get("partial") else result


def _over_images(
    comparison: Comparison, directory: Directory, seed: int, pair: tuple[float, float]
) -> Compared:
    """With one seed: of the same images, where there are predictions of them."""
    means = pair[1], pair[0]
    other, one = (directory(run, seed) for run in (comparison.other, comparison.of))
    try:
        table = compare_runs([other, one], Options(baseline=other, columns=(comparison.metric,)))
        found = [
            cell.difference for row in table.rows if (cell := row.cells.get(comparison.metric))
        ]
    except SerError:
        found = []
    for change in found:
        if change is not None and change.p_value is not None and change.images is not None:
            low, high = change.low, change.high
            interval = None if low is None or high is None else Interval(low, high)
            over = f"{counted(change.images, 'image')} of one seed"
            return Compared(comparison, means, interval, change.p_value, over)
    return Compared(comparison, means, over="one seed", why="nothing tells how seeds vary")


def _form(metric: str, sign: str) -> Callable[[float], str]:
    """How a metric is written, a percentage or a score; its differences with their sign."""
    name, _, rest = metric.partition("/")
    protocol, _, variant = name.partition("--")
    unit = contract_of(protocol).read(rest, variant).quantity.unit
    digits = 2 if unit == "percent" else 3
    return lambda value: format(value, f"{sign}.{digits}f")

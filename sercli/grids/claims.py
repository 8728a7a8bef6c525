"""What a grid's runs say of its claims: confirmed, refuted or open, in words and numbers.

A comparison is decided by the paired t test over seeds; with one seed by the paired test over
images, where both runs stored predictions or sums of the same ones. A claim is of one or more
comparisons:

- all of them point as claimed: its p value is the largest (all must hold: an intersection-union
  test needs no correction among them);
- one or more point the other way: its p value is the smallest of those, times how many they are.

The p values of all claims are corrected by Holm; below 0.05 a claim is confirmed, or refuted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sercli.errors import SerError
from sercli.grids.schema import Claim, Comparison, Grid
from sercli.protocols import contract_of
from sercli.report.compare.columns import Spec, result_spec
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
        over: "3 seeds", "512 images of one seed".
        why: Why there is no test, or what it lacks.
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
        spec = _spec(comparison.metric)
        unit = " in %" if spec.column.kind == "percent" else ""
        named = f"{spec.column.heading}{unit}"
        if self.means is None or self.difference is None:
            return f"{named}: {comparison.of} and {comparison.other} not compared ({self.why})"
        plain, form = (_form(spec, sign) for sign in ("", "+"))
        text = (
            f"{named}: {comparison.of} {plain(self.means[0])}, "
            f"{comparison.other} {plain(self.means[1])}, difference {form(self.difference)}"
        )
        if self.interval is not None:
            text += f" [{form(self.interval.low)}, {form(self.interval.high)}]"
        if self.p_value is not None:
            text += f", p = {self.p_value:.2g}"
        return f"{text} over {self.over}{f' ({self.why})' if self.why else ''}"


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
        tested: How many these are.
    """

    name: str
    claim: Claim
    verdict: Verdict
    compared: tuple[Compared, ...]
    p_value: float | None = None
    adjusted_p: float | None = None
    tested: int = 0

    @property
    def level(self) -> str:
        """Its p in words: by itself as well, where only the correction leaves the claim open."""
        if self.p_value is None or self.adjusted_p is None:
            return "not tested"
        if self.p_value < LEVEL <= self.adjusted_p:
            over = counted(self.tested, "claim")
            return f"p = {self.p_value:.2g} by itself, {self.adjusted_p:.2g} corrected for {over}"
        return f"corrected p = {self.adjusted_p:.2g}"

    @property
    def headline(self) -> str:
        """What became of it."""
        return f"{self.claim.text}: {self.verdict} ({self.level})"

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
            "level": self.level,
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
                    "text": str(one),
                }
                for one in self.compared
            ],
        }


def decide(grid: Grid, directory: Directory, *, foreign: Collection[Path] = ()) -> list[Decided]:
    """What the runs of a grid say of its claims.

    Args:
        grid: With the claims.
        directory: Where the run of a name and a seed is.
        foreign: Directories that hold something else: their numbers are none of these runs'.
    """
    undecided = []
    for name, claim in grid.claims.items():
        compared = tuple(_compare(grid, one, directory, foreign) for one in claim.comparisons)
        undecided.append(Decided(name, claim, "open", compared, p_value=_p_value(compared)))
    tested = [one for one in undecided if one.p_value is not None]
    adjusted = holm_adjusted([one.p_value for one in tested if one.p_value is not None])
    corrected = dict(zip((one.name for one in tested), adjusted, strict=True))
    return [_decided(one, corrected) for one in undecided]


def _decided(one: Decided, corrected: Mapping[str, float]) -> Decided:
    adjusted = corrected.get(one.name)
    one = replace(one, adjusted_p=adjusted, tested=len(corrected))
    if adjusted is None or adjusted >= LEVEL:
        return one
    verdict: Verdict = "confirmed" if all(c.as_claimed for c in one.compared) else "refuted"
    return replace(one, verdict=verdict)


def _p_value(compared: Sequence[Compared]) -> float | None:
    """Of a claim: that all its comparisons hold, or that one does not."""
    against = [one.p_value for one in compared if one.p_value is not None and not one.as_claimed]
    if against:
        return min(1.0, len(against) * min(against))
    values = [one.p_value for one in compared]
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


# -- One comparison --------------------------------------------------------------------------------


def _compare(
    grid: Grid, comparison: Comparison, directory: Directory, foreign: Collection[Path]
) -> Compared:
    """A comparison over the seeds that both runs have the number of."""
    seeds = [
        seed for seed in grid.seeds_of(comparison.of) if seed in grid.seeds_of(comparison.other)
    ]
    name, _, metric = comparison.metric.partition("/")
    pairs: list[tuple[float, float]] = []
    there: list[int] = []
    rules: set[str] = set()
    absent: list[tuple[str, str]] = []
    for seed in seeds:
        values = []
        for run in (comparison.other, comparison.of):
            path = directory(run, seed)
            result = None if path in foreign else _result(path, name)
            rules |= set() if result is None else {result.protocol_id}
            value = None if result is None else result.metrics.get(metric)
            if value is None:
                why = "of another recipe" if path in foreign else _absence(path, result)
                absent.append((run, why))
            values.append(value)
        if values[0] is not None and values[1] is not None:
            pairs.append((values[0], values[1]))
            there.append(seed)
    lacking = _lacking(absent)
    if len(rules) > 1:
        return Compared(comparison, why="they were measured by different rules")
    if not pairs:
        return Compared(comparison, why=lacking or "they share no seed")
    if len(pairs) == 1:
        found = _over_images(comparison, directory, there[0], pairs[0])
        return replace(found, why="; ".join(filter(None, [found.why, lacking])))
    other, own = ([pair[side] for pair in pairs] for side in (0, 1))
    found_over = paired_seeds(other, own)
    means = (spread(own).mean, spread(other).mean)
    level = "" if found_over.p_value is not None else "the differences do not vary"
    why = "; ".join(filter(None, [level, lacking]))
    over = counted(found_over.seeds, "seed")
    return Compared(comparison, means, found_over.interval, found_over.p_value, over, why)


def _absence(path: Path, result: Result | None) -> str:
    """Why a run has no number of a metric."""
    if result is not None:
        return "with no value of it"
    try:
        status = RunDir(path).read_run().get("status")
    except SerError:
        return "not trained"
    if status == "done":
        return "not measured"
    return "failed" if status == "failed" else "not trained to the end"


def _lacking(absent: Sequence[tuple[str, str]]) -> str:
    """Which runs lack the number, and why: "ser: 1 seed failed, 2 seeds not measured"."""
    texts = []
    for run in dict.fromkeys(name for name, _why in absent):
        whys = [why for name, why in absent if name == run]
        told = ", ".join(f"{counted(whys.count(why), 'seed')} {why}" for why in dict.fromkeys(whys))
        texts.append(f"{run}: {told}")
    return "; ".join(texts)


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
    """With one seed: of the same images, where runs stored what each of them counts for."""
    means = pair[1], pair[0]
    other, one = (directory(run, seed) for run in (comparison.other, comparison.of))
    why = "no test: nothing tells how seeds vary"
    try:
        table = compare_runs([other, one], Options(baseline=other, columns=(comparison.metric,)))
        found = [
            cell.difference for row in table.rows if (cell := row.cells.get(comparison.metric))
        ]
    except SerError as error:
        found, why = [], f"no test: {error}"
    for change in found:
        if change is not None and change.p_value is not None and change.images is not None:
            low, high = change.low, change.high
            interval = None if low is None or high is None else Interval(low, high)
            over = f"{counted(change.images, 'image')} of one seed"
            return Compared(comparison, means, interval, change.p_value, over)
    return Compared(comparison, means, over="one seed", why=why)


def _spec(metric: str) -> Spec:
    """A metric as tables have it: its heading, its unit."""
    name, _, rest = metric.partition("/")
    return result_spec(contract_of(name.partition("--")[0]), name, rest)


def _form(spec: Spec, sign: str) -> Callable[[float], str]:
    """How a metric is written, a percentage or a score; its differences with their sign."""
    digits = 2 if spec.column.kind == "percent" else 3
    return lambda value: format(value, f"{sign}.{digits}f")

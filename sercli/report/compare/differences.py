"""Differences to a baseline, and paired tests of them: across images, or over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sercli.data.registry import rendering_kind
from sercli.report.compare.baselines import Pair
from sercli.report.compare.cells import Grid, measure_run
from sercli.report.compare.columns import Spec
from sercli.report.compare.per_image import Known, Right, Sums, right_of, sums_of
from sercli.report.compare.repeats import Repeats
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import Difference, Scored
from sercli.statistics import holm_adjusted, paired_ratios, paired_seeds, paired_test
from sercli.visible import counted


@dataclass(frozen=True)
class _Tested:
    """A paired test of a cell.

    Attributes:
        difference: Without the correction for how many tests there are.
        name: Of the test.
        counts: What it is of, in words.
    """

    difference: Difference
    name: str
    counts: str


class PairedTests:
    """Paired tests of two runs across images, each made once for all tables that have it.

    Attributes:
        reads_sums: What each image adds to sums is read as well; a run's are some MB.
    """

    def __init__(self) -> None:
        self.reads_sums = True
        self._known = Known()
        self._made: dict[tuple[str, str, str, str], _Tested | None] = {}

    def reading(self, *, sums: bool) -> PairedTests:
        """These, for a table whose sums are read or not."""
        self.reads_sums = sums
        return self

    def of(self, baseline: Run, run: Run, spec: Spec) -> _Tested | None:
        """The test of a column; None where the runs did not store what it takes.

        Args:
            baseline: What `run` is compared with.
            run: The other.
            spec: The column.
        """
        if not spec.quantity.paired and not self.reads_sums:
            return None
        pair = (baseline.path, run.path, spec.source, spec.metric)
        if pair not in self._made:
            self._made[pair] = _across_images(baseline, run, spec, self._known)
        return self._made[pair]


def add_differences(
    grid: Grid,
    specs: Sequence[Spec],
    entries: Sequence[Entry],
    pairs: Sequence[Pair],
    repeats: Repeats | None = None,
    paired: PairedTests | None = None,
) -> tuple[Grid, list[str]]:
    """Put the difference to the baseline beside each value that has one.

    Only values of one column (hence one protocol) on equally many images are subtracted. All tests
    of a table are corrected together, be they across images or over seeds.

    Args:
        grid: The cells, by row.
        specs: The columns.
        entries: The rows.
        pairs: Which of them are compared.
        repeats: The numbers of all runs, where rows are means over seeds.
        paired: Tests across images that were made, and which of them are to be.

    Returns:
        The cells, and one sentence for each paired test.
    """
    grid = [dict(row) for row in grid]
    tests: list[tuple[Pair, Spec, _Tested]] = []
    paired = paired or PairedTests()
    for pair in pairs:
        for spec in specs:
            key = spec.column.key
            cell, base = grid[pair.row][key], grid[pair.baseline][key]
            # A column without a better end (raw cosine, costs) has no difference worth a sign.
            if spec.column.direction == "none" or cell.value is None or base.value is None:
                continue
            if not _same_images(cell.data, base.data):
                continue
            test = _test(entries[pair.baseline], entries[pair.row], spec, repeats, paired)
            change = Difference(cell.value - base.value) if test is None else test.difference
            grid[pair.row][key] = replace(cell, difference=change)
            if test is not None and test.difference.p_value is not None:
                tests.append((pair, spec, test))
    adjusted = holm_adjusted([test.difference.p_value or 0.0 for _, _, test in tests])
    sentences = []
    for (pair, spec, test), p_value in zip(tests, adjusted, strict=True):
        difference = replace(test.difference, adjusted_p=p_value)
        cell = grid[pair.row][spec.column.key]
        grid[pair.row][spec.column.key] = replace(cell, difference=difference)
        names = (entries[pair.row].name, entries[pair.baseline].name)
        sentences.append(_sentence(names, spec, test, difference))
    return grid, sentences


def _same_images(one: Scored | None, other: Scored | None) -> bool:
    """Equally many images; a path may differ between machines (a footnote says what differs)."""
    if one is None or other is None or one.mixed or other.mixed:
        return False
    return (one.images, one.partial) == (other.images, other.partial)


def _sentence(names: tuple[str, str], spec: Spec, test: _Tested, change: Difference) -> str:
    ends = ", ".join(
        spec.column.signed(end) for end in (change.low, change.high) if end is not None
    )
    return (
        f"{names[0]} against {names[1]}, {spec.column.heading}: "
        f"{spec.column.signed(change.value)}{'*' if change.significant else ''} [{ends}], "
        f"{test.name} p = {change.p_value:.2g}, corrected {change.adjusted_p:.2g} ({test.counts})."
    )


def _test(
    baseline: Entry, entry: Entry, spec: Spec, repeats: Repeats | None, paired: PairedTests
) -> _Tested | None:
    """The paired test of two rows: over seeds where both have several, else across images."""
    baseline, entry = baseline.at(spec.where), entry.at(spec.where)
    if len(baseline.runs) > 1 and len(entry.runs) > 1 and repeats is not None:
        return _over_seeds(baseline, entry, spec, repeats)
    if len(baseline.runs) == len(entry.runs) == 1:
        return paired.of(baseline.run, entry.run, spec)
    return None


def _over_seeds(baseline: Entry, entry: Entry, spec: Spec, repeats: Repeats) -> _Tested | None:
    """The paired t test over the seeds that both rows have; None where they share but one."""
    pairs = repeats.shared(baseline, entry, spec)
    if len(pairs) < 2 or not all(
        _same_images(measure_run(one, spec).data, measure_run(two, spec).data)
        for one, two in repeats.runs_shared(baseline, entry, pairs.index)
    ):
        return None
    test = paired_seeds(pairs["first"].tolist(), pairs["second"].tolist())
    difference = Difference(
        value=test.difference,
        low=None if test.interval is None else test.interval.low,
        high=None if test.interval is None else test.interval.high,
        p_value=test.p_value,
        seeds=test.seeds,
    )
    return _Tested(difference, "paired t", counted(test.seeds, "seed"))


def _across_images(baseline: Run, run: Run, spec: Spec, known: Known) -> _Tested | None:
    """The paired test of two runs that stored what each of the same images counts for."""
    if not _same_world(baseline, run, spec):
        return None
    if spec.quantity.paired:
        return _of_predictions(known.right(baseline, spec), right_of(run, spec, known))
    if spec.quantity.per_image is not None:
        one, two = known.sums(baseline, spec), sums_of(run, spec, known)
        return _of_sums(one, two, 100 if spec.column.kind == "percent" else 1)
    return None


def _of_predictions(one: Right | None, two: Right | None) -> _Tested | None:
    """McNemar's test."""
    if one is None or two is None or one.images != two.images:
        return None
    test = paired_test(one.right, two.right)
    difference = Difference(
        value=100 * test.difference,
        low=100 * test.interval.low,
        high=100 * test.interval.high,
        p_value=test.p_value,
        images=test.images,
        discordant=test.only_first + test.only_second,
    )
    counts = f"{counted(test.only_second, 'image')} only the first has right, "
    counts += f"{test.only_first} only the second, of {test.images}"
    return _Tested(difference, "McNemar", counts)


def _of_sums(one: Sums | None, two: Sums | None, scale: float) -> _Tested | None:
    """The jackknife's test of two means of ratios."""
    if one is None or two is None or one.images != two.images:
        return None
    if one.mean.numerators.shape != two.mean.numerators.shape:
        return None
    test = paired_ratios(one.mean, two.mean)
    difference = Difference(
        value=scale * test.difference,
        low=None if test.interval is None else scale * test.interval.low,
        high=None if test.interval is None else scale * test.interval.high,
        p_value=test.p_value,
        images=test.images,
    )
    return _Tested(difference, "jackknife", counted(test.images, "image"))


def _same_world(one: Run, other: Run, spec: Spec) -> bool:
    """Whether equal image ids mean equal images: those of a rendered set follow from the seed."""
    sets = [run.scored[spec.source] for run in (one, other)]
    rendered = any(rendering_kind(data.path) is not None for data in sets)
    return sets[0].other == sets[1].other and (not rendered or one.seed == other.seed)

"""Differences to a baseline, and paired tests of them: across images, or over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.registry import rendering_kind
from sercli.errors import UserError
from sercli.report.compare.baselines import Pair
from sercli.report.compare.cells import Grid, measure_run, scored
from sercli.report.compare.columns import Spec
from sercli.report.compare.repeats import Repeats
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import Difference, Scored
from sercli.runs.arrays import read_arrays
from sercli.statistics import holm_adjusted, paired_seeds, paired_test
from sercli.visible import counted

_REPRODUCED = 0.006  # percent: predictions must give the stored top-1 at its printed precision
_ARRAYS = ("image_ids", "labels", "predictions")


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


def add_differences(
    grid: Grid,
    specs: Sequence[Spec],
    entries: Sequence[Entry],
    pairs: Sequence[Pair],
    repeats: Repeats | None = None,
    known: Known | None = None,
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
        known: What other tables of these runs have read and tested.

    Returns:
        The cells, and one sentence for each paired test.
    """
    grid = [dict(row) for row in grid]
    tests: list[tuple[Pair, Spec, _Tested]] = []
    known = known or Known()
    for pair in pairs:
        for spec in specs:
            key = spec.column.key
            cell, base = grid[pair.row][key], grid[pair.baseline][key]
            # A column without a better end (raw cosine, costs) has no difference worth a sign.
            if spec.column.direction == "none" or cell.value is None or base.value is None:
                continue
            if not _same_images(cell.data, base.data):
                continue
            test = _test(entries[pair.baseline], entries[pair.row], spec, repeats, known)
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
    if one is None or other is None:
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
    baseline: Entry, entry: Entry, spec: Spec, repeats: Repeats | None, known: Known
) -> _Tested | None:
    """The paired test of two rows: over seeds where both have several, else across images."""
    baseline, entry = baseline.at(spec.where), entry.at(spec.where)
    if len(baseline.runs) > 1 and len(entry.runs) > 1 and repeats is not None:
        return _over_seeds(baseline, entry, spec, repeats)
    if len(baseline.runs) == len(entry.runs) == 1:
        return _across_images(baseline.run, entry.run, spec, known)
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
    """McNemar's test of two runs that stored predictions of the same images.

    Args:
        baseline: What `run` is compared with.
        run: The other.
        spec: The column.
        known: What was read of baselines, which several rows share.
    """
    if not spec.quantity.paired or not _same_world(baseline, run, spec):
        return None
    pair = (baseline.path, run.path, spec.source, spec.metric)
    if pair not in known.tests:
        known.tests[pair] = _of_predictions(baseline, run, spec, known)
    return known.tests[pair]


def _of_predictions(baseline: Run, run: Run, spec: Spec, known: Known) -> _Tested | None:
    place = (baseline.path, spec.source, spec.metric)
    if place not in known.predictions:
        known.predictions[place] = _correctness(baseline, spec, known)
    one, two = known.predictions[place], _correctness(run, spec, known)
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


def _same_world(one: Run, other: Run, spec: Spec) -> bool:
    """Whether equal image ids mean equal images: those of a rendered set follow from the seed."""
    sets = [scored(run.results[spec.source]) for run in (one, other)]
    rendered = any(rendering_kind(data.path) is not None for data in sets)
    return sets[0].other == sets[1].other and (not rendered or one.seed == other.seed)


@dataclass(frozen=True)
class _Predictions:
    """Which images a run has right, in the order of their ids.

    Attributes:
        images: Stands for the ids and labels: runs with another scored other images.
        right: bool [n].
    """

    images: str
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class _Images:
    """Images in the order of their ids: a thousand runs have scored the same few sets.

    Attributes:
        name: Stands for ids and labels; None where an id stands twice.
        order: int [n], of the ids as they were stored.
    """

    name: str | None
    order: NDArray[np.int64]


@dataclass
class Known:
    """What was read and tested, of tables of the same runs.

    Attributes:
        predictions: Of baselines, by run, result and metric.
        images: By the bytes of their arrays.
        tests: Across images, by baseline, run, result and metric.
    """

    predictions: dict[tuple[str, str, str], _Predictions | None] = field(default_factory=dict)
    images: dict[str, _Images] = field(default_factory=dict)
    tests: dict[tuple[str, str, str, str], _Tested | None] = field(default_factory=dict)

    def images_of(self, identities: NDArray[Any], labels: NDArray[Any]) -> _Images:
        stored = sha256(f"{identities.dtype} {labels.dtype}".encode())
        stored.update(identities.tobytes())
        stored.update(labels.tobytes())
        place = stored.hexdigest()
        if place not in self.images:
            self.images[place] = _in_order(list(map(str, identities.tolist())), labels)
        return self.images[place]


def _in_order(keys: Sequence[str], labels: NDArray[Any]) -> _Images:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    told = repr([(keys[index], int(labels[index])) for index in order])
    twice = len(set(keys)) != len(keys)
    return _Images(None if twice else sha256(told.encode()).hexdigest(), np.array(order))


def _correctness(run: Run, spec: Spec, known: Known) -> _Predictions | None:
    """Which images a run has right; None where it stored none, or not those of the result."""
    path = run.directory.predictions(spec.source)
    if not path.is_file():
        return None
    result = run.results[spec.source]
    arrays = read_arrays(path, _ARRAYS, sha256=result.predictions_sha256)
    if arrays is None:
        return None
    identities, labels, predictions = (arrays[name] for name in _ARRAYS)
    if labels.size == 0 or predictions.ndim != 1:  # of a grid of test sets
        return None
    if any(array.shape != (labels.size,) for array in arrays.values()) or any(
        array.dtype.kind not in "iu" for array in (labels, predictions)
    ):
        raise UserError(
            f"{path}: image ids, labels and predictions do not belong together",
            "there is a whole number of each for every image",
            "repeat the evaluation or remove the file",
        )
    right: NDArray[np.bool_] = predictions == labels
    value = result.metrics[spec.metric]
    stale = value is None or abs(100 * float(right.mean()) - value) > _REPRODUCED
    if stale or (images := known.images_of(identities, labels)).name is None:
        return None
    return _Predictions(images.name, right[images.order])

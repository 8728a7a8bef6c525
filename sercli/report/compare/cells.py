"""From runs to cells: values and intervals, differences to a baseline, paired tests, footnotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sercli.data.registry import rendering_kind
from sercli.errors import UserError
from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import PARTIAL, Cell, Difference, Note, Scored
from sercli.report.compare.values import interval_of
from sercli.runs.arrays import read_arrays
from sercli.runs.result import Result
from sercli.statistics import PairedTest, holm_adjusted, paired_test, spread
from sercli.visible import counted

_REPRODUCED = 0.006  # percent: predictions must give the stored top-1 at its printed precision
_ARRAYS = ("image_ids", "labels", "predictions")
Grid = list[dict[str, Cell]]


def measure(entry: Entry, spec: Spec) -> Cell:
    """The cell of one row and column: one run's number, or the mean over seeds."""
    if len(entry.runs) == 1:
        return _measure_run(entry.run, spec)
    cells = [_measure_run(run, spec) for run in entry.runs]
    values = [cell.value for cell in cells if cell.value is not None]
    if not values:
        return replace(cells[0], undefined=any(cell.undefined for cell in cells))
    over_seeds = spread(values)
    floors = [cell.floor for cell in cells if cell.floor is not None]
    return Cell(
        value=over_seeds.mean,
        std=over_seeds.std,
        # A row's label says how many seeds it has; a cell with fewer says so itself.
        seeds=over_seeds.count if over_seeds.count < len(entry.runs) else None,
        floor=spread(floors).mean if floors else None,
        data=_common_data(cells),
        weights=cells[0].weights,
        loaded=next((cell.loaded for cell in cells if cell.loaded), None),
        warnings=tuple(dict.fromkeys(text for cell in cells for text in cell.warnings)),
        precision=" and ".join(sorted({cell.precision for cell in cells if cell.precision}))
        or None,
    )


def _measure_run(run: Run, spec: Spec) -> Cell:
    if spec.of_run is not None:
        return Cell(value=spec.of_run.of(run))
    result = run.results.get(spec.source)
    column_id = spec.column.protocol_id
    if result is None or spec.metric not in result.metrics or result.protocol_id != column_id:
        return Cell()
    value = result.metrics[spec.metric]
    low, high = interval_of(result, spec.reading)
    return Cell(
        value=value,
        undefined=value is None,
        low=low,
        high=high,
        floor=result.metrics.get(floor) if (floor := spec.reading.floor) else None,
        data=_scored(result),
        weights=str(key) if (key := result.model.get("key")) else None,
        loaded=_partly_loaded(result),
        warnings=_warnings(result),
        precision=str(key) if (key := result.model.get("precision")) else None,
    )


def _scored(result: Result) -> Scored:
    images = result.data.get("n")
    others = sorted(
        f"{key} {value}"
        for key, value in result.data.items()
        if key not in {"path", "n", "partial"} and isinstance(value, str | int | float)
    )
    return Scored(
        path=str(result.data.get("path")),
        images=images if isinstance(images, int) else None,
        partial=bool(result.data.get("partial")),
        other=", ".join(others),
    )


def _common_data(cells: Sequence[Cell]) -> Scored | None:
    """What all seeds were scored on; the embedded world is another for each seed."""
    data = [cell.data for cell in cells if cell.data is not None]
    if not data:
        return None
    others = {scored.other for scored in data}
    return replace(
        max(data, key=lambda scored: scored.partial),
        other=others.pop() if len(others) == 1 else "differing by seed",
    )


def _warnings(result: Result) -> tuple[str, ...]:
    """What the evaluator warned of; results of earlier versions do not say."""
    stored = result.data.get("warnings")
    return tuple(map(str, stored)) if isinstance(stored, list) else ()


def _partly_loaded(result: Result) -> str | None:
    """ "150 of 152" where tensors of the encoder were missing, else None."""
    matched, expected = result.model.get("matched"), result.model.get("expected")
    if isinstance(matched, int) and isinstance(expected, int) and matched < expected:
        return f"{matched} of {expected}"
    return None


# -- differences and paired tests -----------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A row with its baseline, as positions in the table."""

    row: int
    baseline: int


def add_differences(
    grid: Grid, specs: Sequence[Spec], entries: Sequence[Entry], pairs: Sequence[Pair]
) -> tuple[Grid, list[str]]:
    """Put the difference to the baseline beside each value that has one.

    Only values of one column (hence one protocol) on equally many images are subtracted.

    Returns:
        The cells, and one sentence for each paired test.
    """
    grid = [dict(row) for row in grid]
    tests: list[tuple[Pair, Spec, PairedTest]] = []
    for pair in pairs:
        for spec in specs:
            key = spec.column.key
            cell, base = grid[pair.row][key], grid[pair.baseline][key]
            # A column without a better end (raw cosine, costs) has no difference worth a sign.
            if spec.column.direction == "none" or cell.value is None or base.value is None:
                continue
            if not _same_images(cell.data, base.data):
                continue
            grid[pair.row][key] = replace(cell, difference=Difference(cell.value - base.value))
            test = _test(entries[pair.baseline], entries[pair.row], spec)
            if test is not None:
                tests.append((pair, spec, test))
    adjusted = holm_adjusted([test.p_value for _, _, test in tests])
    sentences = []
    for (pair, spec, test), p_value in zip(tests, adjusted, strict=True):
        cell = grid[pair.row][spec.column.key]
        difference = Difference(
            value=100 * test.difference,
            low=100 * test.interval.low,
            high=100 * test.interval.high,
            p_value=test.p_value,
            adjusted_p=p_value,
            images=test.images,
        )
        grid[pair.row][spec.column.key] = replace(cell, difference=difference)
        names = (entries[pair.row].name, entries[pair.baseline].name)
        sentences.append(_sentence(names, spec, test, difference))
    return grid, sentences


def _same_images(one: Scored | None, other: Scored | None) -> bool:
    """Equally many images; a path may differ between machines (a footnote says what differs)."""
    if one is None or other is None:
        return False
    return (one.images, one.partial) == (other.images, other.partial)


def _sentence(names: tuple[str, str], spec: Spec, test: PairedTest, change: Difference) -> str:
    low, high = (spec.column.signed(100 * end) for end in (test.interval.low, test.interval.high))
    return (
        f"{names[0]} against {names[1]}, {spec.column.heading}: "
        f"{spec.column.signed(change.value)}{'*' if change.significant else ''} "
        f"[{low}, {high}], McNemar p = {test.p_value:.2g}, corrected {change.adjusted_p:.2g} "
        f"({counted(test.only_second, 'image')} only the first has right, "
        f"{test.only_first} only the second, of {test.images})."
    )


def _test(baseline: Entry, entry: Entry, spec: Spec) -> PairedTest | None:
    """The paired test of two runs that stored predictions of the same images."""
    if not spec.quantity.paired or len(baseline.runs) + len(entry.runs) > 2:
        return None
    if not _same_world(baseline.run, entry.run, spec):
        return None
    one, two = (_correctness(member.run, spec) for member in (baseline, entry))
    if one is None or two is None or one.labels != two.labels:
        return None
    images = sorted(one.labels)
    return paired_test(
        [one.right[image] for image in images], [two.right[image] for image in images]
    )


def _same_world(one: Run, other: Run, spec: Spec) -> bool:
    """Whether equal image ids mean equal images: those of a rendered set follow from the seed."""
    scored = [_scored(run.results[spec.source]) for run in (one, other)]
    rendered = any(rendering_kind(data.path) is not None for data in scored)
    return scored[0].other == scored[1].other and (not rendered or one.seed == other.seed)


@dataclass(frozen=True)
class _Predictions:
    labels: Mapping[str, int]
    right: Mapping[str, bool]


def _correctness(run: Run, spec: Spec) -> _Predictions | None:
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
    keys: list[str] = [str(identity) for identity in identities.tolist()]
    right: NDArray[np.bool_] = predictions == labels
    value = result.metrics[spec.metric]
    stale = value is None or abs(100 * float(right.mean()) - value) > _REPRODUCED
    if stale or len(set(keys)) != len(keys):
        return None
    return _Predictions(
        dict(zip(keys, map(int, labels.tolist()), strict=True)),
        dict(zip(keys, map(bool, right.tolist()), strict=True)),
    )


# -- footnotes ------------------------------------------------------------------------------------


def footnote_marks() -> Iterator[str]:
    """a, b, …, z, aa, ab, …"""
    letters = "abcdefghijklmnopqrstuvwxyz"
    yield from letters
    for first in footnote_marks():
        for letter in letters:
            yield first + letter


class Footnotes:
    """Gives equal texts one mark, in the order in which they are met."""

    def __init__(self) -> None:
        self._free = footnote_marks()
        self._marks: dict[str, str] = {}

    def mark(self, text: str) -> str:
        if text not in self._marks:
            self._marks[text] = next(self._free)
        return self._marks[text]

    def notes(self) -> list[Note]:
        return [Note(mark, text) for text, mark in self._marks.items()]


def add_footnotes(grid: Grid, specs: Sequence[Spec], footnotes: Footnotes) -> Grid:
    """Mark what a column's rows differ in: data, weights, precision; and what warned itself."""
    grid = [dict(row) for row in grid]
    for spec in specs:
        cells = [row[spec.column.key] for row in grid]
        data = Counter(cell.data for cell in cells if cell.data is not None and not cell.partial)
        weights = Counter(cell.weights for cell in cells if cell.weights)
        mixed = len({cell.precision for cell in cells if cell.precision}) > 1
        for row, cell in zip(grid, cells, strict=True):
            marks = [PARTIAL] if cell.partial else []
            marks += [footnotes.mark(text) for text in _remarks(cell, data, weights)]
            if mixed and cell.precision not in (None, "fp32"):
                marks.append(footnotes.mark(f"The encoder ran in {cell.precision}."))
            row[spec.column.key] = replace(cell, marks=tuple(marks))
    return grid


def _remarks(cell: Cell, data: Counter[Scored], weights: Counter[str]) -> Iterator[str]:
    usual = data.most_common(1)[0][0] if data else cell.data
    if cell.data is not None and usual is not None and not cell.partial and cell.data != usual:
        equal = cell.data.images == usual.images
        verdict = "comparable only if both hold the same images" if equal else "not comparable"
        yield f"Scored on {cell.data}, the column on {usual}: {verdict}."
    if cell.weights and cell.weights != weights.most_common(1)[0][0]:
        yield f"Weights scored: {cell.weights}."
    if cell.loaded:
        yield f"Only {cell.loaded} tensors of the encoder were loaded."
    for text in cell.warnings:
        yield f"{text[:1].upper()}{text[1:]}."

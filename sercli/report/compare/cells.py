"""From runs to cells: values, intervals over images or over seeds, and footnotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from sercli.report.compare.columns import Spec
from sercli.report.compare.repeats import Repeats
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import PARTIAL, Cell, Note, Scored
from sercli.report.compare.values import interval_of
from sercli.runs.result import Result
from sercli.statistics import mean_interval

Grid = list[dict[str, Cell]]


def measure(entry: Entry, spec: Spec, repeats: Repeats | None = None) -> Cell:
    """The cell of one row and column: one run's number, or the mean over seeds.

    Args:
        entry: The row's.
        spec: The column's.
        repeats: The numbers of all runs, where rows are means over seeds. An interval is one over
            seeds then, in each row, and a row of one seed has none.
    """
    entry = entry.at(spec.where)
    if not entry.runs:
        return Cell()
    if repeats is None:
        return measure_run(entry.run, spec)
    cells = [measure_run(run, spec) for run in entry.runs]
    values = repeats.of(entry, spec)
    if values.empty:
        return _without_values(cells)
    count, std = len(values), float(values.std())
    # What was counted is the same for each seed, and no sample of anything.
    counted = spec.of_run is not None and not std > 0
    interval = None if counted else mean_interval(values.tolist())
    floors = [cell.floor for cell in cells if cell.floor is not None]
    return Cell(
        value=float(values.mean()),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        std=std if count > 1 else None,
        # A row's label says how many seeds it has; a cell with fewer says so itself.
        seeds=count if count < len(entry.runs) or entry.spread else None,
        averaged=count,
        floor=fmean(floors) if floors else None,
        data=_common_data(cells),
        weights=_joined(cell.weights for cell in cells),
        loaded=next((cell.loaded for cell in cells if cell.loaded), None),
        warnings=tuple(
            dict.fromkeys(
                [text for cell in cells for text in cell.warnings] + _mixed_weights(cells)
            )
        ),
        precision=_joined(cell.precision for cell in cells),
    )


def _without_values(cells: Sequence[Cell]) -> Cell:
    """Of runs without a number to average: a setting that all have alike, or what is undefined."""
    alike = len({cell.value for cell in cells}) == 1
    told = next((cell for cell in cells if cell.data is not None), cells[0])
    undefined = any(cell.undefined for cell in cells)
    return replace(told, value=told.value if alike else None, undefined=undefined)


def _joined(words: Iterable[str | None]) -> str | None:
    """What runs of a row say, each once; None where they say nothing."""
    return " and ".join(sorted({word for word in words if word})) or None


def measure_run(run: Run, spec: Spec) -> Cell:
    """One run's number, with its interval over images."""
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
        data=run.scored[spec.source],
        weights=str(key) if (key := result.model.get("key")) else None,
        loaded=_partly_loaded(result),
        warnings=_warnings(result),
        precision=str(key) if (key := result.model.get("precision")) else None,
    )


def _common_data(cells: Sequence[Cell]) -> Scored | None:
    """What all seeds were scored on; the embedded world is another for each seed."""
    data = [cell.data for cell in cells if cell.data is not None and cell.value is not None]
    if not data:
        return None
    others = {one.other for one in data}
    mixed = len({(one.images, one.partial) for one in data}) > 1
    first = max(data, key=lambda one: one.partial)
    return replace(
        first,
        path=" and ".join(dict.fromkeys(one.path for one in data)),
        images=None if mixed else first.images,
        mixed=mixed,
        other=others.pop() if len(others) == 1 else "differing by seed",
    )


def _mixed_weights(cells: Sequence[Cell]) -> list[str]:
    """That runs of a mean were scored with different weights, the student's and the teacher's."""
    weights = sorted({cell.weights for cell in cells if cell.weights})
    if len(weights) < 2:
        return []
    return [f"its runs were scored with different weights, {' and '.join(weights)}"]


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
        data = Counter(
            cell.data for cell in cells if cell.data and not cell.partial and not cell.data.mixed
        )
        weights = Counter(cell.weights for cell in cells if cell.weights)
        mixed = len({cell.precision for cell in cells if cell.precision}) > 1
        for row, cell in zip(grid, cells, strict=True):
            marks = [PARTIAL] if cell.partial else []
            marks += [footnotes.mark(text) for text in _remarks(cell, data, weights)]
            if mixed and cell.precision not in (None, "fp32"):
                marks.append(footnotes.mark(f"The encoder ran in {cell.precision}."))
            if marks:
                row[spec.column.key] = replace(cell, marks=tuple(marks))
    return grid


def _remarks(cell: Cell, data: Counter[Scored], weights: Counter[str]) -> Iterator[str]:
    usual = data.most_common(1)[0][0] if data else cell.data
    if cell.data is not None and cell.data.mixed:
        yield f"A mean over runs that scored different numbers of images: {cell.data}."
    elif cell.data is not None and usual is not None and not cell.partial and cell.data != usual:
        equal = cell.data.images == usual.images
        verdict = "comparable only if both hold the same images" if equal else "not comparable"
        yield f"Scored on {cell.data}, the column on {usual}: {verdict}."
    if cell.weights and cell.weights != weights.most_common(1)[0][0]:
        yield f"Weights scored: {cell.weights}."
    if cell.loaded:
        yield f"Only {cell.loaded} tensors of the encoder were loaded."
    for text in cell.warnings:
        yield f"{text[:1].upper()}{text[1:]}."

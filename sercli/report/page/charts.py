"""The charts of a page, from what runs logged and measured; which there are, contracts say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sercli.protocols import Protocol, Reading, contract_of
from sercli.report.compare.runs import Entry
from sercli.report.figures.curves import Line, lines_figure
from sercli.report.page.measures import measured
from sercli.runs.logged import LOGGED, Logged
from sercli.runs.reading import Scalar
from sercli.visible import counted

Rows = Sequence[Mapping[str, Scalar]]


@dataclass(frozen=True)
class Chart:
    """A figure with what it shows.

    Attributes:
        name: Of its files; letters, digits and hyphens.
        title: Above it.
        description: For who cannot see it; below it, too.
        figure: In the colours of `figures.style`.
        heads, rows: Its data.
    """

    name: str
    title: str
    description: str
    figure: Figure
    heads: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


# -- Training -------------------------------------------------------------------------------------


def training_charts(entries: Sequence[Entry], logs: Mapping[str, Rows]) -> Iterator[Chart]:
    """A chart for each quantity that some run logged, by step.

    Args:
        entries: Rows of the tables: a run each, or the seeds of a recipe.
        logs: Rows of metrics.jsonl by the run's path.
    """
    for quantity in LOGGED:
        lines: list[Line] = []
        rows: list[tuple[object, ...]] = []
        for series, entry in enumerate(entries):
            for run in entry.runs:
                told = [row for row in logs.get(run.path, ()) if quantity.key in row]
                steps = [int(row["step"] or 0) for row in told]
                values = [_number(row[quantity.key]) for row in told]
                if any(value is not None for value in values):
                    first = run is entry.run
                    lines.append(Line(entry.name if first else "", series, steps, values))
                    rows += [
                        (entry.label, run.path, step, value)
                        for step, value in zip(steps, values, strict=True)
                    ]
        if lines:
            yield _training_chart(quantity, lines, rows)


def _training_chart(
    quantity: Logged, lines: Sequence[Line], rows: Sequence[tuple[object, ...]]
) -> Chart:
    ends = [
        f"{line.label} {value:.4g}"
        for line in lines
        if line.label and (value := next((v for v in reversed(line.y) if v is not None), None))
    ]
    return Chart(
        name=f"training-{quantity.key.replace('_', '-')}",
        title=f"{capital(quantity.title)} by step",
        description=f"{capital(quantity.title)} by step of training, "
        f"{counted(len(lines), 'run')}. Last values: {listed(ends)}.",
        figure=lines_figure(
            lines, xlabel="step", ylabel=quantity.title, log=quantity.scale == "log"
        ),
        heads=("label", "run", "step", quantity.key),
        rows=rows,
    )


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def capital(text: str) -> str:
    """With a capital at its beginning, but for names such as kNN."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def slug(text: str) -> str:
    """A name for a file, of plain letters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50] or "figure"


def listed(words: Sequence[str], most: int = 12) -> str:
    """The first of them, and how many more there are."""
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


# -- By block -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """What one chart over blocks is of: a result, its rule, and a metric with its block open."""

    source: str
    protocol_id: str
    metric: str


def block_charts(entries: Sequence[Entry]) -> Iterator[Chart]:
    """A chart over blocks for each quantity that its contract wants drawn so."""
    families: dict[_Family, dict[int, Reading]] = defaultdict(dict)
    for entry in entries:
        for run in entry.runs:
            for name, result in run.results.items():
                protocol = contract_of(str(result.protocol["name"]))
                for reading in _drawn(protocol, name, result.metrics):
                    family = _Family(name, result.protocol_id, reading.of_any_block)
                    assert reading.block is not None
                    families[family][reading.block] = reading
    rules = Counter((family.source, family.metric) for family in families)
    drawn = sorted(families.items(), key=_as_in_contract)
    for index, (family, readings) in enumerate(drawn):
        mixed = rules[family.source, family.metric] > 1
        suffix = f" (protocol {family.protocol_id})" if mixed else ""
        yield _block_chart(entries, family, readings, index, suffix)


def _drawn(protocol: Protocol, name: str, metrics: Mapping[str, object]) -> Iterator[Reading]:
    if any(quantity.by_block for quantity in protocol.quantities):
        for metric in metrics:
            reading = protocol.read(metric, name.partition("--")[2])
            if reading.quantity.by_block and reading.block is not None:
                yield reading


def _as_in_contract(one: tuple[_Family, Mapping[int, Reading]]) -> tuple[str, int, str]:
    """By result, in the order of its quantities."""
    family, readings = one
    quantities = contract_of(family.source.partition("--")[0]).quantities
    quantity = next(iter(readings.values())).quantity
    return family.source, quantities.index(quantity), family.protocol_id


def _block_chart(
    entries: Sequence[Entry],
    family: _Family,
    readings: Mapping[int, Reading],
    index: int,
    suffix: str,
) -> Chart:
    blocks = sorted(readings)
    lines: list[Line] = []
    floors: dict[tuple[float | None, ...], Line] = {}
    rows: list[tuple[object, ...]] = []
    for series, entry in enumerate(entries):
        values = [
            measured(entry, family.source, family.protocol_id, readings[block]) for block in blocks
        ]
        if all(one.value is None for one in values):
            continue
        has_ends = any(one.low is not None for one in values)
        lines.append(
            Line(
                entry.name,
                series,
                blocks,
                [one.value for one in values],
                [one.low for one in values] if has_ends else (),
                [one.high for one in values] if has_ends else (),
            )
        )
        floor = tuple(None if one.floor is None else round(one.floor, 6) for one in values)
        if any(value is not None for value in floor):
            # One label is enough for twins that hardly differ.
            floors.setdefault(floor, Line("" if floors else "random twin", None, blocks, floor))
        rows += [
            (entry.label, block, one.value, one.low, one.high, one.floor)
            for block, one in zip(blocks, values, strict=True)
        ]
    heading = readings[blocks[0]].heading
    what = heading.replace(f" block {blocks[0]}", "").strip()
    return Chart(
        name=f"blocks-{index + 1}-{slug(what)}",
        title=f"{capital(what)} by block{suffix}",
        description=_said_of_blocks(what, lines, bool(floors)),
        figure=lines_figure(
            [*lines, *floors.values()], xlabel="block (0: embedding)", ylabel=what, whole=True
        ),
        heads=("label", "block", "value", "low", "high", "random_twin"),
        rows=rows,
    )


def _said_of_blocks(what: str, lines: Sequence[Line], has_floor: bool) -> str:
    peaks = []
    for line in lines:
        known = [(value, x) for x, value in zip(line.x, line.y, strict=True) if value is not None]
        if known:
            value, block = max(known)
            peaks.append(f"{line.label} {value:.3f} at block {block:g}")
    bars = " Bars are 95 % intervals." if any(line.low for line in lines) else ""
    floor = " Dotted: the untrained twins." if has_floor else ""
    return (
        f"{capital(what)} by block, {counted(len(lines), 'row')} of the tables.{bars}{floor} "
        f"Greatest values: {listed(peaks)}."
    )

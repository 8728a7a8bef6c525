"""The paper's picture: accuracy against equivariance, a point a row, at which block it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sercli.protocols import Reading, contract_of
from sercli.protocols.contract import Axis
from sercli.report.compare.runs import Entry
from sercli.report.figures.curves import Point, points_figure
from sercli.report.page.charts import Chart, listed, slug
from sercli.report.page.measures import Measured, measured

_MOST_ACCURACIES = 2


@dataclass(frozen=True)
class _Source:
    """One quantity of an axis, by one rule.

    Attributes:
        heading: Of its column, with a block's number left out.
        place: Of its protocol among those of the paper's tables.
    """

    name: str
    protocol_id: str
    heading: str
    place: int


@dataclass(frozen=True)
class _Placed:
    """A row with its numbers at a block."""

    entry: Entry
    series: int
    block: int
    x: Measured
    y: Measured


def trade_off_charts(entries: Sequence[Entry], block: int | None) -> Iterator[Chart]:
    """Accuracy against equivariance: at the block that each add-on taps, at `block`, at the last.

    At tapped blocks, a row without add-on has a hollow point for each block that another taps.

    Args:
        entries: Rows of the tables.
        block: The one that tables show; None where that is open.
    """
    scores = _readings(entries, "equivariance")
    if not scores:
        return
    equivariance, by_block = max(scores.items(), key=lambda one: (len(one[1]), one[0].name))
    equivariances = {number: reading for number, (reading, _) in by_block.items()}
    accuracies = _readings(entries, "accuracy")
    ranked = sorted(
        accuracies, key=lambda one: (accuracies[one][-1][1], one.place, one.name), reverse=True
    )
    number = 0
    for accuracy in ranked[:_MOST_ACCURACIES]:
        drawn: list[set[tuple[str, int]]] = []
        for title, placed in _choices(
            entries, equivariance, equivariances, accuracy, accuracies[accuracy][-1][0], block
        ):
            shown = {(one.entry.name, one.block) for one in placed}
            if len(shown) > 1 and shown not in drawn:
                drawn.append(shown)
                number += 1
                yield _chart(number, title, placed, equivariance, accuracy)


def _readings(
    entries: Sequence[Entry], axis: Axis
) -> dict[_Source, dict[int, tuple[Reading, int]]]:
    """What can be on an axis: by block (-1: of none) the reading, and in how many runs it is."""
    found: dict[_Source, dict[int, tuple[Reading, int]]] = {}
    for run in (run for entry in entries for run in entry.runs):
        for name, result in run.results.items():
            protocol, variant = contract_of(str(result.protocol["name"])), name.partition("--")[2]
            if not any(quantity.axis == axis for quantity in protocol.quantities):
                continue
            for metric, value in result.metrics.items():
                reading = protocol.read(metric, variant)
                if reading.quantity.axis != axis or value is None:
                    continue
                heading = protocol.title_of(reading.heading, variant)
                if reading.block is not None:
                    heading = heading.replace(f" block {reading.block}", "")
                source = _Source(name, result.protocol_id, heading, protocol.place)
                blocks = found.setdefault(source, {})
                place = -1 if reading.block is None else reading.block
                _, count = blocks.get(place, (reading, 0))
                blocks[place] = (reading, count + 1)
    return found


def _choices(
    entries: Sequence[Entry],
    equivariance: _Source,
    readings: dict[int, Reading],
    accuracy: _Source,
    accurate: Reading,
    block: int | None,
) -> Iterator[tuple[str, list[_Placed]]]:
    def placed(series: int, at: int) -> list[_Placed]:
        entry = entries[series]
        x = measured(entry, equivariance.name, equivariance.protocol_id, readings[at])
        y = measured(entry, accuracy.name, accuracy.protocol_id, accurate)
        missing = x.value is None or y.value is None
        return [] if missing else [_Placed(entry, series, at, x, y)]

    tapped = sorted(
        {layer for entry in entries if (layer := entry.run.tapped_layer) is not None} & {*readings}
    )
    own = [
        one
        for series, entry in enumerate(entries)
        for at in ([entry.run.tapped_layer] if entry.run.tapped_layer is not None else tapped)
        if at in readings
        for one in placed(series, at)
    ]
    if tapped:
        yield "the tapped block", own
    for at in dict.fromkeys([block, max(readings)]):
        if at in readings:
            yield (
                f"block {at}",
                [one for series in range(len(entries)) for one in placed(series, at)],
            )


def _chart(
    number: int, where: str, placed: Sequence[_Placed], equivariance: _Source, accuracy: _Source
) -> Chart:
    own = where == "the tapped block"
    first: dict[str, int] = {}
    for one in placed:
        first[_path(one)] = min(one.series, first.get(_path(one), one.series))
    ordered = sorted(placed, key=lambda one: (first[_path(one)], one.block, one.series))
    points = [
        Point(
            label=_label(one, own=own),
            series=one.series,
            x=one.x.value or 0.0,
            y=one.y.value or 0.0,
            x_ends=one.x.ends,
            y_ends=one.y.ends,
            path=_path(one) if own else "",
            hollow=one.entry.run.tapped_layer is None,
        )
        for one in ordered
    ]
    said = [f"{point.label} {point.y:.2f} at {point.x:.3f}" for point in points]
    paths = Counter(path for path, _ in {(_path(one), one.block) for one in ordered})
    joined = own and max(paths.values()) > 1
    partial = any(one.x.partial or one.y.partial for one in placed)
    sentences = [
        f"{accuracy.heading} against {equivariance.heading} at {where}, a point a row.",
        "Crosses are 95 % intervals." if any(p.x_ends or p.y_ends for p in points) else "",
        "A line joins the same training at different blocks." if joined else "",
        "Some numbers are of a part of their set." if partial else "",
        f"{listed(said)}.",
    ]
    return Chart(
        name=f"trade-off-{number}-{slug(accuracy.heading)}",
        title=f"{accuracy.heading} against {equivariance.heading} at {where}",
        description=" ".join(filter(None, sentences)),
        figure=points_figure(
            points, xlabel=f"{equivariance.heading} at {where}", ylabel=f"{accuracy.heading} (%)"
        ),
        heads=(
            *("label", "block", "equivariance", "equivariance_low", "equivariance_high"),
            *("accuracy", "accuracy_low", "accuracy_high"),
        ),
        rows=[
            (
                *(one.entry.label, one.block, one.x.value, one.x.low, one.x.high),
                *(one.y.value, one.y.low, one.y.high),
            )
            for one in ordered
        ],
    )


def _label(one: _Placed, *, own: bool) -> str:
    bare = own and one.entry.run.tapped_layer is None
    return f"{one.entry.name} at block {one.block}" if bare else one.entry.name


def _path(one: _Placed) -> str:
    """What was trained, but for the layer."""
    run = one.entry.run
    return "|".join((run.name("method"), run.views, run.addon, str(run.weight == 0)))

"""Heat maps of a page: a number for each row and column of a grid, as contracts name them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli.protocols import Reading, contract_of
from sercli.report.compare.runs import Entry
from sercli.report.figures.curves import short
from sercli.report.figures.tiles import Tiles, heat_tiles
from sercli.report.page.measures import measured
from sercli.runs.result import Result

LEVELS = 10  # of colour, from 0 to 100 %


@dataclass(frozen=True)
class HeatMap:
    """A grid of numbers of one row of the tables.

    Attributes:
        name: Of its files.
        title: Above it.
        row_head, column_head: What rows and columns are.
        columns: Headings.
        rows: A heading each, with the values (None: not measured) and their mean.
        description: For who cannot see it.
        drawn: The picture that the evaluator left of it, PNG; None: there is none of this row.
    """

    name: str
    title: str
    row_head: str
    column_head: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None], float | None]]
    description: str
    drawn: Path | None = None

    def picture(self) -> Tiles:
        """The same as a picture."""
        rows = [(short(name), values, mean) for name, values, mean in self.rows]
        below = f"{self.column_head}; colours are top-1 accuracy (%)"
        return heat_tiles(rows, self.columns, title=short(self.title, 80), below=below)


def level(value: float | None) -> int | None:
    """The colour of a value in percent: 0…9."""
    return None if value is None else min(LEVELS - 1, max(0, int(value / 100 * LEVELS)))


def heat_maps(entries: Sequence[Entry]) -> Iterator[HeatMap]:
    """A map for each result with a grid that some row has, the rows in their order."""
    number = 0
    for name in sorted({name for entry in entries for run in entry.runs for name in run.results}):
        for entry in entries:
            found = [run.results[name] for run in entry.runs if name in run.results]
            if found and (made := _map(entry, name, found[0], number + 1)) is not None:
                number += 1
                yield made


def _map(entry: Entry, name: str, result: Result, number: int) -> HeatMap | None:
    protocol, variant = contract_of(str(result.protocol["name"])), name.partition("--")[2]
    if not any(quantity.grid for quantity in protocol.quantities):
        return None
    cells: dict[str, dict[str, Reading]] = {}
    slots = ("", "")
    for metric in result.metrics:
        reading = protocol.read(metric, variant)
        if reading.quantity.grid is not None:
            slots = reading.quantity.grid
            row, column = (reading.slots[slot] for slot in slots)
            cells.setdefault(row, {})[column] = reading
    if not cells:
        return None
    columns = sorted({column for row in cells.values() for column in row}, key=_in_order)
    rows = []
    for row, readings in cells.items():
        values = [
            measured(entry, name, result.protocol_id, readings[column]).value
            if column in readings
            else None
            for column in columns
        ]
        known = [value for value in values if value is not None]
        mean = sum(known) / len(known) if len(known) == len(columns) else None
        rows.append((row.replace("_", " "), values, mean))
    ranked = sorted((mean, row) for row, _, mean in rows if mean is not None)
    ends = (
        f" Lowest mean: {ranked[0][1]}, {ranked[0][0]:.1f} %; highest: {ranked[-1][1]}, "
        f"{ranked[-1][0]:.1f} %."
        if ranked
        else ""
    )
    what = protocol.title_of("", variant).strip()
    own = entry.run.directory.figures / f"{name}.png"
    return HeatMap(
        name=f"grid-{number}",
        title=f"{what}: {entry.label}",
        row_head=slots[0],
        column_head=slots[1],
        columns=columns,
        rows=rows,
        description=f"{what} of {entry.label}: accuracy in percent by {slots[0]} and {slots[1]}."
        f"{ends}",
        drawn=own if own.is_file() and len(entry.runs) == 1 else None,
    )


def _in_order(text: str) -> tuple[int, str]:
    return (int(text) if text.isdecimal() and len(text) < 9 else 0, text)

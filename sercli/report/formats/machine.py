"""The table for machines: CSV and JSON, numbers at full precision, nothing marked up."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from sercli.report.compare.tables import Cell, Column, Table
from sercli.visible import json_text as json_of
from sercli.visible import visible

SCHEMA = 1
Value = float | int | str | None


def _difference(key: str) -> Callable[[Cell], Value]:
    def get(cell: Cell) -> Value:
        value: Value = getattr(cell.difference, key) if cell.difference is not None else None
        return value

    return get


def _images(cell: Cell) -> Value:
    return cell.data.images if cell.data is not None else None


def _partial(cell: Cell) -> Value:
    return int(cell.partial) if cell.data is not None else None


_ALWAYS: tuple[tuple[str, Callable[[Cell], Value]], ...] = (
    ("/low", lambda cell: cell.low),
    ("/high", lambda cell: cell.high),
)
_WHERE_ANY: tuple[tuple[str, Callable[[Cell], Value]], ...] = (
    ("/std", lambda cell: cell.std),
    ("/seeds", lambda cell: cell.averaged),
    ("/floor", lambda cell: cell.floor),
    ("/difference", _difference("value")),
    ("/difference/low", _difference("low")),
    ("/difference/high", _difference("high")),
    ("/difference/p", _difference("p_value")),
    ("/difference/p_adjusted", _difference("adjusted_p")),
    ("/difference/seeds", _difference("seeds")),
    ("/n", _images),
    ("/partial", _partial),
)


def csv_text(table: Table) -> str:
    """RFC 4180: one line a row; value, low and high in a column each, and what else there is.

    The interval is over images; where runs are averaged it is Student's t over `/seeds` of them,
    and `/std` is their sample standard deviation.

    Undefined and missing values are empty. Where an encoder ran in less than fp32, a column says in
    what each did, as tables for people say in a footnote. Percent, scores in 0…1, seconds and
    images/s. Texts are in one line, and no text is a formula; see `no_formula`.
    """
    table = table.with_texts(visible)
    fields = [field for column in table.columns for field in _fields(table, column)]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    own = ["method", "views", "run", "status", "published", "baseline"]
    writer.writerow([*own, *(no_formula(visible(name)) for name, _, _ in fields)])
    for row in table.rows:
        runs = row.provenance.get("runs", [])
        paths = " ".join(run["path"] for run in runs)
        states = " ".join(dict.fromkeys(str(run.get("status", "done")) for run in runs))
        paths, states = visible(paths), visible(states)
        own = [row.label, row.views, paths, states, str(row.published).lower(), row.baseline or ""]
        values = [get(row.cell(column)) for _, column, get in fields]
        writer.writerow(
            [*map(no_formula, own), *("" if value is None else str(value) for value in values)]
        )
    return stream.getvalue()


def no_formula(text: str) -> str:
    """A cell of text that a spreadsheet shows and does not compute: a formula gets an apostrophe.

    `=1+1`, `@SUM(A1)`, `+1`, `-x` are names here; only cells of numbers are numbers.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _fields(table: Table, column: Column) -> list[tuple[str, Column, Callable[[Cell], Value]]]:
    cells = [row.cell(column) for row in table.rows]
    parts: list[tuple[str, Callable[[Cell], Value]]] = [("", lambda cell: cell.value)]
    if not column.key.startswith("run/") or any(cell.low is not None for cell in cells):
        parts += _ALWAYS
    parts += [
        (part, get) for part, get in _WHERE_ANY if any(get(cell) is not None for cell in cells)
    ]
    if any(cell.precision not in (None, "fp32") for cell in cells):
        parts.append(("/precision", lambda cell: cell.precision))
    return [(f"{column.key}{part}", column, get) for part, get in parts]


def json_text(table: Table) -> str:
    """One object: columns with protocol ids, rows with nested cells, notes, provenance."""
    return json_of({"schema": SCHEMA, **_json_table(table)}, indent=1) + "\n"


def tables_json(tables: Sequence[Table]) -> str:
    """One object with a list of such tables."""
    value = {"schema": SCHEMA, "tables": [_json_table(table) for table in tables]}
    return json_of(value, indent=1) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": [{**vars(column)} for column in table.columns],
        "rows": [
            {
                "label": row.label,
                "views": row.views,
                "published": row.published,
                "baseline": row.baseline,
                "cells": {
                    column.key: _json_cell(row.cells[column.key], column)
                    for column in table.columns
                    if column.key in row.cells
                },
                **row.provenance,
            }
            for row in table.rows
        ],
        "notes": [{**vars(note)} for note in table.notes],
        "paired_tests": list(table.comparisons),
        "provenance": table.provenance,
    }


def _json_cell(cell: Cell, column: Column) -> dict[str, Any]:
    difference = None
    if cell.difference is not None:
        difference = {**vars(cell.difference), "significant": cell.difference.significant}
    return {
        "value": cell.value,
        "undefined": cell.undefined,
        "low": cell.low,
        "high": cell.high,
        "std": cell.std,
        "seeds": cell.averaged,
        "floor": cell.floor,
        "difference": difference,
        "best": cell.best,
        "protocol_id": column.protocol_id if cell.data is not None else None,
        "data": {**vars(cell.data)} if cell.data is not None else None,
        "weights": cell.weights,
        "marks": list(cell.marks),
    }

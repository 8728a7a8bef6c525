"""Tables as templates write them: texts in their parts, and what a click on a heading sorts by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sercli.report.compare.tables import ARROWS, CellText, Column, Note, Row, Table, cell_text
from sercli.report.formats.text import arrows_sentence, best_sentence

_LONGEST = 400  # characters of a name


def clipped(text: object, longest: int = _LONGEST) -> str:
    """A text that is no longer than a reader reads."""
    whole = str(text)
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}…"


@dataclass(frozen=True)
class CellView:
    """A cell: its text in parts, the class of its difference, and its value for sorting."""

    text: CellText
    tone: str
    value: float | None


@dataclass(frozen=True)
class RowView:
    left: Sequence[str]
    cells: Sequence[CellView]
    published: bool


@dataclass(frozen=True)
class HeadView:
    """A column's heading with its arrow apart, so that no line breaks between them."""

    heading: str
    arrow: str


@dataclass(frozen=True)
class TableView:
    """A table as a section of a page; `key` is its id."""

    key: str
    title: str
    caption: str
    left: Sequence[str]
    columns: Sequence[HeadView]
    rows: Sequence[RowView]
    notes: Sequence[Note]
    comparisons: Sequence[str]


@dataclass(frozen=True)
class WordsView:
    """A table of words: headings, and rows whose first cell is their name."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def table_view(table: Table, key: str) -> TableView:
    """A table for `parts.html.j2`."""
    return TableView(
        key=key,
        title=clipped(table.title),
        caption=" ".join(
            filter(
                None,
                [arrows_sentence(table), best_sentence(styled=True) if table.has_best else ""],
            )
        )
        or clipped(table.title),
        left=["Method", *(["Views"] if table.has_views else [])],
        columns=[HeadView(_heading(column), ARROWS[column.direction]) for column in table.columns],
        rows=[_row(table, row) for row in table.rows],
        notes=table.notes,
        comparisons=table.comparisons,
    )


def _heading(column: Column) -> str:
    """A narrow column does not break names such as ImageNet-C."""
    return clipped(column.heading).replace("-", "\N{NON-BREAKING HYPHEN}")


def _row(table: Table, row: Row) -> RowView:
    return RowView(
        left=[clipped(row.label), *([clipped(row.views)] if table.has_views else [])],
        cells=[
            CellView(
                cell_text(column, row.cell(column)), _tone(column, row), row.cell(column).value
            )
            for column in table.columns
        ],
        published=row.published,
    )


def _tone(column: Column, row: Row) -> str:
    """Colour is only a hint beside the sign: towards better, towards worse, or neither."""
    difference = row.cell(column).difference
    shown = float(column.signed(difference.value)) if difference is not None else 0.0
    if shown == 0 or column.direction == "none":
        return "flat"
    return "rise" if (shown > 0) == (column.direction == "up") else "fall"


def columns_of(tables: Sequence[Table]) -> list[Column]:
    """The columns of all tables, each once."""
    return list({column.key: column for table in tables for column in table.columns}.values())


def provenance_of(runs: Sequence[Mapping[str, Any]]) -> WordsView:
    """What made the numbers: a row a run, as tables have it in their `provenance`."""
    rows = []
    for run in runs:
        rules = ", ".join(
            f"{name} {result['protocol_id']}" for name, result in run["results"].items()
        )
        told = (run.get(key) for key in ("recipe_name", "status", "git_commit", "device"))
        rows.append([clipped(run["path"]), *(clipped(one or "–") for one in told), rules or "–"])
    heads = ("Run directory", "Recipe", "Status", "Commit", "Device", "Protocols")
    return WordsView(heads, rows)

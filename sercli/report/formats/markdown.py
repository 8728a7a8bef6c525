"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from sercli.report.compare.tables import CellText, Table, cell_text
from sercli.report.formats.text import best_sentence, caption_lines, superscript
from sercli.visible import visible


def markdown(table: Table) -> str:
    """A GitHub-flavoured table with aligned pipes, the notes as a list below."""
    table = table.with_texts(visible)
    header = ["Method", *(["Views"] if table.has_views else [])]
    header += [_escape_markdown(column.title) for column in table.columns]
    body = [
        [
            _escape_markdown(row.label),
            *([_escape_markdown(row.views)] if table.has_views else []),
            *(_markdown_cell(cell_text(column, row.cell(column))) for column in table.columns),
        ]
        for row in table.rows
    ]
    widths = [max(cell_len(line[i]) for line in [header, *body]) for i in range(len(header))]
    widths = [max(width, 3) for width in widths]
    left = 2 if table.has_views else 1
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [_markdown_line(cells, widths, left) for cells in (header, rule, *body)]
    notes = caption_lines(table, best_sentence(styled=True))
    listed = [f"- {_escape_markdown(line.strip())}" for line in notes if line != "Paired tests:"]
    return "\n".join([*lines, "", *listed]) + "\n"


def _markdown_line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        padded.append(cell + space if index < left else space + cell)
    return f"| {' | '.join(padded)} |"


def _escape_markdown(text: str) -> str:
    for sign in "\\|*_`<>[]&$~":
        text = text.replace(sign, f"\\{sign}")
    return text


def _markdown_cell(text: CellText) -> str:
    value = f"**{text.value}**" if text.best else text.value
    star = r"\*" if text.star else ""
    parts = [
        value,
        text.spread,
        text.seeds,
        f"({text.difference}{star})" if text.difference else "",
    ]
    parts += [f"(floor {text.floor})" if text.floor else "", superscript(text.marks)]
    return " ".join(part for part in parts if part)

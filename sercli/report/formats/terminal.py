"""Tables for a terminal, in colour or plain."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from sercli.report.compare.tables import Cell, Column, Table, cell_text
from sercli.report.formats.text import (
    BEST_PLAIN,
    COLUMN_GAP,
    best_sentence,
    caption_lines,
    pack,
    superscript,
    width_of,
    wrapped,
)
from sercli.screen import Screen
from sercli.visible import spelled, visible

PLAIN_WIDTH = 100
_LABEL_HEADING = "Method"
_LABEL_WIDTH = 34
_VIEWS_WIDTH = 9


def terminal(
    table: Table, *, width: int = PLAIN_WIDTH, styled: bool = True, encoding: str | None = None
) -> RenderableType:
    """The table for a rich console, cut into panels that fit `width` columns of text.

    Args:
        width: Columns of the terminal.
        styled: Bold and dim text; otherwise the best values carry a sign instead.
        encoding: Of where it is shown; what it lacks is spelled in ASCII. None: it has everything.
    """
    table = table.with_texts(lambda text: spelled(visible(text), encoding))
    labels = [textwrap.wrap(row.label, _LABEL_WIDTH) or [""] for row in table.rows]
    shown = [_LABEL_HEADING, *(line for lines in labels for line in lines)]
    label_width = max(map(cell_len, shown))
    taken = label_width + (COLUMN_GAP + _VIEWS_WIDTH if table.has_views else 0)
    texts = {
        column.key: [
            [spelled(line, encoding) for line in _cell_lines(column, row.cell(column), styled)]
            for row in table.rows
        ]
        for column in table.columns
    }
    widths = {column.key: width_of(column, texts[column.key]) for column in table.columns}
    panels = pack(table.columns, widths, width - taken)
    parts: list[RenderableType] = [Text(table.title, style="bold" if styled else "")]
    for panel in panels:
        parts += [Text(), _panel(table, labels, panel, texts, widths, styled)]
    parts += [Text(), *(Text(line) for line in caption_lines(table, best_sentence(styled)))]
    return Group(*parts)


def plain(table: Table, *, width: int = PLAIN_WIDTH, encoding: str | None = None) -> str:
    """The terminal's table as plain text, without control sequences."""
    stream = io.StringIO()
    console = Screen(file=stream, width=width, color_system=None, force_terminal=False)
    console.print(terminal(table, width=width, styled=False, encoding=encoding))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _cell_lines(column: Column, cell: Cell, styled: bool) -> list[str]:
    text = cell_text(column, cell)
    best = f"{BEST_PLAIN} " if text.best and not styled else ""
    star = "*" if text.star else ""
    value = " ".join(part for part in (text.value, text.spread, text.seeds) if part)
    lines = [best + value, text.difference + star, f"floor {text.floor}" if text.floor else ""]
    lines = [line for line in lines if line]
    lines[0] += superscript(text.marks)
    return lines


def _panel(
    table: Table,
    labels: Sequence[Sequence[str]],
    columns: Sequence[Column],
    texts: Mapping[str, Sequence[Sequence[str]]],
    widths: Mapping[str, int],
    styled: bool,
) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    grid.add_column(_LABEL_HEADING, no_wrap=True)
    if table.has_views:
        grid.add_column("Views", no_wrap=True)
    for column in columns:
        heading = "\n".join(wrapped(column.title, widths[column.key]))
        grid.add_column(heading, justify="right", no_wrap=True, vertical="top")
    for index, row in enumerate(table.rows):
        cells: list[RenderableType] = [Text("\n".join(labels[index]))]
        if table.has_views:
            cells.append(Text("\n".join(textwrap.wrap(row.views, _VIEWS_WIDTH))))
        for column in columns:
            cells.append(_styled_cell(texts[column.key][index], row.cell(column).best and styled))
        last_own = index + 1 < len(table.rows) and table.rows[index + 1].published
        dim = "dim" if row.published and styled else ""
        grid.add_row(*cells, style=dim, end_section=last_own and not row.published)
    return grid


def _styled_cell(lines: Sequence[str], bold: bool) -> Text:
    text = Text(lines[0], style="bold" if bold else "")
    for line in lines[1:]:
        text.append(f"\n{line}", style="not bold")
    return text

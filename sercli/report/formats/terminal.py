"""Tables for a terminal, in colour or plain."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
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
_RULE = "─"
_Line = list[tuple[str, str]]  # texts, each with its style


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
    names = [_column(_LABEL_HEADING, [textwrap.wrap(r.label, _LABEL_WIDTH) for r in table.rows])]
    if table.has_views:
        names.append(_column("Views", [textwrap.wrap(r.views, _VIEWS_WIDTH) for r in table.rows]))
    taken = names[0].width + (COLUMN_GAP + _VIEWS_WIDTH if table.has_views else 0)
    columns = {one.key: _numbers(table, one, styled, encoding) for one in table.columns}
    widths = {key: one.room for key, one in columns.items()}
    parts: list[RenderableType] = [Text(table.title, style="bold" if styled else "")]
    for panel in pack(table.columns, widths, width - taken):
        parts += [Text(), _panel(table, names, [columns[one.key] for one in panel], styled)]
    parts += [Text(), *(Text(line) for line in caption_lines(table, best_sentence(styled)))]
    return Group(*parts)


def plain(table: Table, *, width: int = PLAIN_WIDTH, encoding: str | None = None) -> str:
    """The terminal's table as plain text, without control sequences."""
    stream = io.StringIO()
    console = Screen(file=stream, width=width, color_system=None, force_terminal=False)
    console.print(terminal(table, width=width, styled=False, encoding=encoding), crop=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


@dataclass(frozen=True)
class _Column:
    """A column in lines of text.

    Attributes:
        heading: Its lines.
        cells: A row's lines each; none of them is empty.
        bold: Which cells begin with the best value.
        room: What is kept for it, at least.
        right: Texts stand at its right.
    """

    heading: Sequence[str]
    cells: Sequence[Sequence[str]]
    bold: Sequence[bool]
    room: int = 0
    right: bool = False

    @cached_property
    def width(self) -> int:
        """Of its longest line."""
        lines = [*self.heading, *(line for cell in self.cells for line in cell)]
        return max(map(cell_len, lines), default=0)


def _column(heading: str, cells: Sequence[Sequence[str]]) -> _Column:
    """A column of names."""
    return _Column([heading], [cell or [""] for cell in cells], [False] * len(cells))


def _numbers(table: Table, column: Column, styled: bool, encoding: str | None) -> _Column:
    """A column of the table's."""
    cells = [
        [spelled(line, encoding) for line in _cell_lines(column, row.cell(column), styled)]
        for row in table.rows
    ]
    room = width_of(column, cells)
    best = [row.cell(column).best and styled for row in table.rows]
    return _Column(wrapped(column.title, room), cells, best, room, right=True)


def _cell_lines(column: Column, cell: Cell, styled: bool) -> list[str]:
    text = cell_text(column, cell)
    best = f"{BEST_PLAIN} " if text.best and not styled else ""
    star = "*" if text.star else ""
    value = " ".join(part for part in (text.value, text.spread, text.seeds) if part)
    lines = [best + value, text.difference + star, f"floor {text.floor}" if text.floor else ""]
    lines = [line for line in lines if line]
    lines[0] += superscript(text.marks)
    return lines


@dataclass(frozen=True)
class _Panel:
    """Columns beside each other, with the rows' names: lines of texts, each with its style.

    Everything is broken into lines before, so that a table of rich's, which lays out each cell
    anew, would find nothing to do; of a thousand rows it took two thirds of the time.
    """

    lines: Sequence[_Line]

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            for text, style in line:
                yield Segment(text, console.get_style(style) if style else None)
            yield Segment.line()


def _panel(
    table: Table,
    names: Sequence[_Column],
    columns: Sequence[_Column],
    styled: bool,
) -> _Panel:
    shown = [*names, *columns]
    height = max(len(one.heading) for one in shown)
    lines = list(_across(shown, [one.heading for one in shown], height, "bold" if styled else ""))
    lines.append([(_RULE * (sum(one.width for one in shown) + COLUMN_GAP * (len(shown) - 1)), "")])
    for index, row in enumerate(table.rows):
        cells = [one.cells[index] for one in shown]
        dim = "dim" if row.published and styled else ""
        bold = [one.bold[index] for one in shown]
        lines += _across(shown, cells, max(map(len, cells)), dim, bold)
        last_own = index + 1 < len(table.rows) and table.rows[index + 1].published
        if last_own and not row.published:
            lines.append([])
    return _Panel(lines)


def _across(
    columns: Sequence[_Column],
    cells: Sequence[Sequence[str]],
    height: int,
    style: str,
    bold: Sequence[bool] | None = None,
) -> Iterator[_Line]:
    """The lines of a row: of headings, which stand on the rule below, or of cells from the top."""
    for number in range(height):
        line: _Line = []
        plain = ""  # up to here, in the row's own style
        for place, (column, texts) in enumerate(zip(columns, cells, strict=True)):
            at = number if bold is not None else number - height + len(texts)
            text = texts[at] if 0 <= at < len(texts) else ""
            gap = " " * (column.width - cell_len(text))
            plain += (" " * COLUMN_GAP if place else "") + (gap if column.right else "")
            if bold is not None and bold[place] and number == 0:  # the value, not what is below it
                line += [(plain, style), (text, f"{style} bold".strip())]
                plain = ""
            else:
                plain += text
            plain += "" if column.right else gap
        yield [part for part in (*line, (plain, style)) if part[0]]

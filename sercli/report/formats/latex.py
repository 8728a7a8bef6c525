"""Tables in LaTeX that fit a text width: what is laid out here is measured by `latex_text`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sercli.errors import UserError
from sercli.report.compare.tables import ARROWS, CellText, Column, Table, cell_text
from sercli.report.formats.latex_floats import document
from sercli.report.formats.latex_text import escaped, raised_width, width, wrapped
from sercli.visible import visible

_LABEL, _LABEL_AT_LEAST, _VIEWS = 0.4, 60.0, 55.0  # of the text width; points
_HEADING = 70.0  # points that a single word of a heading may widen a column to
_NARROWEST, _WIDEST = 160.0, 5000.0
_SPARE = 1.0  # points


@dataclass(frozen=True)
class TextWidth:
    """Where a table goes, in TeX's points of 1/72.27 inch.

    Attributes:
        name: What it was asked for as.
        column: Width of a column of text, which `table` has.
        page: Of two columns and the gap, which `table*` has; None: there is one column.
        height: Of the text; a float that is higher runs off the page.
    """

    name: str
    column: float
    page: float | None = None
    height: float = 550.0


WIDTHS = {
    "article": TextWidth("article", 345.0),
    "neurips": TextWidth("neurips", 397.5, height=650.0),
    "iclr": TextWidth("iclr", 397.5, height=650.0),
    "cvpr": TextWidth("cvpr", 237.0, 496.9, height=641.0),
}


def text_width(asked: str) -> TextWidth:
    r"""The width of a class, or of a number of points as `\the\textwidth` says it.

    Raises:
        UserError: It is neither.
    """
    if asked in WIDTHS:
        return WIDTHS[asked]
    try:
        points = float(asked.removesuffix("pt"))
    except ValueError:
        points = math.nan
    if not _NARROWEST <= points <= _WIDEST:
        raise UserError(
            f"--latex-width {asked}",
            f"it must be {', '.join(WIDTHS)} or {_NARROWEST:g} to {_WIDEST:g} points",
            r"\the\textwidth in a document says its own",
        )
    return TextWidth(f"{points:g}", points)


@dataclass(frozen=True)
class Style:
    """How tightly a table is set.

    Attributes:
        size: Points of the font.
        gap: Points between two columns, half of which are at each end too.
        stacked: Differences and floors stand below the values instead of beside them.
    """

    size: float
    gap: float
    stacked: bool


# From the most pleasant to the narrowest.
STYLES = (Style(9.0, 8.0, False), Style(9.0, 8.0, True), Style(8.0, 6.0, True))


@dataclass(frozen=True)
class Piece:
    """A line of a cell, in the two halves between which columns are aligned.

    Attributes:
        left, right: LaTeX: the number, and all the rest.
        widths: Points of both.
        whole: The line is not aligned with others, and is all in `left`.
    """

    left: str
    right: str
    widths: tuple[float, float]
    whole: bool = False

    def alone(self) -> Piece:
        """The same, not aligned with others."""
        return Piece(self.left + self.right, "", (sum(self.widths), 0.0), True)

    @property
    def source(self) -> str:
        if self.whole:
            return rf"\multicolumn{{2}}{{c}}{{{self.left}}}"
        # TeX passes over a space behind the sign between cells.
        space = "\\" if self.right.startswith(" ") else ""
        return f"{self.left}&{space}{self.right}"


@dataclass(frozen=True)
class Layout:
    """Columns side by side, by lines.

    Attributes:
        label, views: Points of the two columns in front.
        columns: What is beside them.
        heads: Lines of each column's heading.
        bodies: Lines of each column's cells, by row.
    """

    style: Style
    label: float
    views: float
    columns: Sequence[Column]
    heads: Mapping[str, Sequence[str]]
    bodies: Mapping[str, Sequence[Sequence[Piece]]]


def latex(table: Table, width: TextWidth = WIDTHS["article"]) -> str:
    r"""A booktabs table: `\usepackage{booktabs}` is all it needs.

    The first of `STYLES` in which all columns fit is taken; where they do in none, they go into as
    few floats as hold them. Rows that are more than a page holds go into several as well; the last
    has the notes. Paired tests are comments: the stars say what a reader of the paper needs.
    """
    table = table.with_texts(visible)
    rooms = [(room, star) for room, star in ((width.column, ""), (width.page, "*")) if room]
    for room, star in rooms:
        for style in STYLES:
            layout = _layout(table, style, room)
            if len(panels := _panels(layout, room)) == 1:
                return document(table, layout, panels, width, star)
    room, star = rooms[-1]
    layout = _layout(table, STYLES[-1], room)
    return document(table, layout, _panels(layout, room), width, star)


# -- Layout ---------------------------------------------------------------------------------------


def _layout(table: Table, style: Style, room: float) -> Layout:
    labels = max((width(row.label, style.size) for row in table.rows), default=0.0)
    views = max((width(row.views, style.size) for row in table.rows), default=0.0)
    views = max(min(views, _VIEWS), width("Views", style.size)) if table.has_views else 0.0
    label = max(min(labels, _LABEL * room), width("Method", style.size))
    least = room - _LABEL_AT_LEAST - views - 3 * style.gap - _SPARE
    heads, bodies = {}, {}
    for column in table.columns:
        cells = [cell_text(column, row.cell(column)) for row in table.rows]
        lines = [_lines(cell, style, least) for cell in cells]
        if (body := _body_width(lines)) > least:  # each fits, but not aligned with the others
            lines = [[piece.alone() for piece in row] for row in lines]
            body = _body_width(lines)
        title = _title(column)
        words = max((width(word, style.size) for word in title.split(" ")), default=0.0)
        heads[column.key] = wrapped(title, max(body, min(words, _HEADING)) + 0.01, style.size)
        heading = max(width(line, style.size) for line in heads[column.key])
        bodies[column.key] = _centred(lines, max(heading, body))
    return Layout(style, label, views, table.columns, heads, bodies)


def _title(column: Column) -> str:
    """The heading, whose arrow does not begin a line."""
    arrow = ARROWS[column.direction]
    return f"{column.heading}\N{NO-BREAK SPACE}{arrow}" if arrow else column.heading


def _body_width(rows: Sequence[Sequence[Piece]]) -> float:
    pieces = [piece for lines in rows for piece in lines]
    halves = [piece.widths for piece in pieces if not piece.whole]
    left, right = (max((half[side] for half in halves), default=0.0) for side in (0, 1))
    return max(left + right, *(piece.widths[0] for piece in pieces if piece.whole), 0.0)


def _centred(rows: list[list[Piece]], wide: float) -> list[list[Piece]]:
    """Aligned lines in the middle of a column that a heading or another line makes wider."""
    aligned = [piece.widths for row in rows for piece in row if not piece.whole]
    left, right = (max((halves[side] for halves in aligned), default=0.0) for side in (0, 1))
    free = (wide - left - right) / 2
    if not aligned or free < 1:
        return rows
    for row in rows:
        for place, piece in enumerate(row):
            if not piece.whole:  # one box makes room for all halves below and above it
                box = f"\\makebox[{left + free:.1f}pt][r]{{{piece.left}}}"
                row[place] = Piece(box, piece.right, (left + free, piece.widths[1]))
                return rows
    return rows


def _column_width(layout: Layout, column: Column) -> float:
    head = max((width(line, layout.style.size) for line in layout.heads[column.key]), default=0.0)
    return max(head, _body_width(layout.bodies[column.key]))


def _panels(layout: Layout, room: float) -> list[Layout]:
    """As few as hold all columns; a label is wrapped before a second one is begun."""
    gap = layout.style.gap
    front = gap + layout.views + (gap if layout.views else 0.0) + _SPARE
    widths = [gap + _column_width(layout, column) for column in layout.columns]
    if (left := room - front - sum(widths)) >= min(layout.label, _LABEL_AT_LEAST):
        return [_part(layout, layout.columns, min(layout.label, left))]
    label = min(layout.label, max(_LABEL_AT_LEAST, room / 4))
    parts: list[list[Column]] = [[]]
    used = front + label
    for column, wide in zip(layout.columns, widths, strict=True):
        if parts[-1] and used + wide > room:
            parts.append([])
            used = front + label
        parts[-1].append(column)
        used += wide
    taken = [sum(gap + _column_width(layout, column) for column in part) for part in parts]
    return [
        _part(layout, part, min(label, room - front - wide))
        for part, wide in zip(parts, taken, strict=True)
    ]


def _part(layout: Layout, columns: Sequence[Column], label: float) -> Layout:
    return Layout(layout.style, label, layout.views, columns, layout.heads, layout.bodies)


# -- Cells ----------------------------------------------------------------------------------------


def _lines(text: CellText, style: Style, room: float) -> list[Piece]:
    """The lines of a cell: its value, and below it or beside it what is compared."""
    size = style.size
    first, wide = _value(text, size)
    beside = " ".join(part for part in (text.spread, text.seeds) if part)
    others = []
    if text.difference:
        change = f"${text.difference}{'^{*}' if text.star else ''}$"
        others.append((f"({change})", width(f"({text.difference}+*)", size)))
    if text.floor:
        others.append((f"(floor {text.floor})", width(f"(floor {text.floor})", size)))
    if beside:
        first = (first[0], f"{first[1]} {escaped(beside)}")
        wide = (wide[0], wide[1] + width(f" {beside}", size))
    if others and not (style.stacked and text.value):
        separate = " " if text.value else ""
        first = (first[0], first[1] + separate + " ".join(source for source, _ in others))
        wide = (wide[0], wide[1] + sum(w + width(" ", size) for _, w in others))
        others = []
    if text.marks:
        marks = ",".join(text.marks)
        first = (first[0], f"{first[1]}\\textsuperscript{{{escaped(marks)}}}")
        wide = (wide[0], wide[1] + raised_width(marks))
    if sum(wide) > room:  # no number that a model scores
        shown = " ".join(part for part in (text.value, beside) if part)
        pieces = [_whole(line, size) for line in wrapped(shown, room, size)]
    else:
        whole = not re.match(r"[-+0-9]", text.value) and not text.difference
        pieces = [Piece(*first, wide).alone() if whole else Piece(*first, wide)]
    return [*pieces, *(Piece(source, "", (w, 0.0), True) for source, w in others)]


def _whole(line: str, size: float) -> Piece:
    return Piece(escaped(line), "", (width(line, size), 0.0), True)


def _value(text: CellText, size: float) -> tuple[tuple[str, str], tuple[float, float]]:
    """The number, whose column is right-aligned for points to stand below each other; its unit."""
    number, space, unit = text.value.partition(" ")
    halves = (number, space + unit)
    if text.best:
        sources = [f"\\textbf{{{escaped(half)}}}" if half else "" for half in halves]
    else:
        sources = [re.sub(r"^-(?=\d)", "$-$", escaped(half)) for half in halves]
    left, right = (width(half.replace("-", "−"), size, bold=text.best) for half in halves)
    return (sources[0], sources[1]), (left, right)

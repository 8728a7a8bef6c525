"""Floats of a table in LaTeX, none of them higher than a page: from a layout to source."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sercli.report.compare.tables import Row, Table
from sercli.report.formats.latex_text import escaped, running, width, wrapped
from sercli.report.formats.text import best_sentence, caption_lines, note_text

if TYPE_CHECKING:
    from sercli.report.formats.latex import Layout, TextWidth

_INDENT = 6.0  # points of a label's further lines
_NOTE, _NOTE_LINE, _RAGGED = 8.0, 9.5, 1.1  # points; how much more room lines of one length take
_CAPTION, _CAPTION_LINE = 10.0, 12.0
_RULES, _BETWEEN = 22.0, 2.0  # points of all rules of a table, and between rows of several lines
_LEADING = 1.2


def document(
    table: Table, layout: Layout, panels: Sequence[Layout], asked: TextWidth, star: str
) -> str:
    """All floats of a table, and its paired tests as comments.

    Args:
        table: With texts made visible.
        layout: What all panels share.
        panels: Columns that go below each other, each into floats of its own.
        asked: The text width.
        star: "*" for floats over both columns.
    """
    name = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:40] or "runs"
    room = asked.page if star and asked.page else asked.column
    lines = [
        f"% Needs \\usepackage{{booktabs}}. Laid out for a text width of {room:g}pt"
        f"{' (table*: both columns)' if star else ''}: ser compare --latex-width {asked.name}",
    ]
    title = _CAPTION + _CAPTION_LINE * _lines_of(table.title + " (10 of 10)", 10.0, room)
    floats, left = [], asked.height
    for panel in panels:
        heights = [_height(table, panel, index) for index in range(len(table.rows))]
        fixed = title + _RULES + _line(layout) * _heading_lines(panel)
        for rows in dealt(heights, asked.height - fixed):
            floats.append((panel, rows))
            left = asked.height - fixed - sum(heights[index] for index in rows)
    notes = _caption_parts(table)
    told = [_NOTE_LINE * _lines_of(f"{mark or ''} {text}", _NOTE, room) for mark, text in notes]
    parts = dealt(told, asked.height - _NOTE_LINE, first=left - _NOTE_LINE)
    for number, (panel, rows) in enumerate(floats, 1):
        several = f" ({number} of {len(floats)})" if len(floats) > 1 else ""
        place = f"-{number}" if number > 1 else ""
        size = layout.style.size
        lines += [
            f"\\begin{{table{star}}}",
            "\\centering",
            f"\\caption{{{running(table.title)}{several}}}",
            f"\\label{{tab:{name}{place}}}",
            f"\\fontsize{{{size:g}}}{{{_LEADING * size:g}}}\\selectfont"
            f"\\setlength{{\\tabcolsep}}{{{layout.style.gap / 2:g}pt}}",
            *_tabular(table, panel, rows),
        ]
        if number == len(floats):
            lines += ["", "\\smallskip", *_notes([notes[index] for index in parts[0]])]
        lines.append(f"\\end{{table{star}}}")
    for part in parts[1:]:
        inside = _notes([notes[index] for index in part])
        lines += [f"\\begin{{table{star}}}", *inside, f"\\end{{table{star}}}"]
    if table.comparisons:
        lines += ["% Paired tests:", *(f"%   {sentence}" for sentence in table.comparisons)]
    return "\n".join(lines) + "\n"


# -- Heights --------------------------------------------------------------------------------------


def dealt(heights: Sequence[float], room: float, *, first: float | None = None) -> list[list[int]]:
    """Places in their order, as many in a part as it has room for, and one where it has less.

    Args:
        heights: Of what is dealt.
        room: Of a part.
        first: Of the first, which stays empty where it holds nothing; None: as much.
    """
    parts: list[list[int]] = [[]]
    left = room if first is None else first
    for place, height in enumerate(heights):
        if height > left and (parts[-1] or (first is not None and len(parts) == 1)):
            parts.append([])
            left = room
        parts[-1].append(place)
        left -= height
    return parts


def _lines_of(text: str, size: float, room: float) -> int:
    return max(1, math.ceil(_RAGGED * width(text, size) / room))


def _line(layout: Layout) -> float:
    return _LEADING * layout.style.size


def _height(table: Table, layout: Layout, index: int) -> float:
    return _line(layout) * len(_row(table, layout, index)) + _BETWEEN


def _heading_lines(layout: Layout) -> int:
    return max((len(layout.heads[column.key]) for column in layout.columns), default=1)


# -- Source ---------------------------------------------------------------------------------------


def _tabular(table: Table, layout: Layout, rows: Sequence[int]) -> list[str]:
    columns = ("ll" if table.has_views else "l") + "r@{}l" * len(layout.columns)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *_heading(table, layout), "\\midrule"]
    tall = any(len(_row(table, layout, index)) > 1 for index in range(len(table.rows)))
    for place, index in enumerate(rows):
        if table.rows[index].published and place and not table.rows[index - 1].published:
            lines.append("\\midrule")
        elif place and tall:
            lines.append(f"\\addlinespace[{_BETWEEN:g}pt]")
        lines += _row(table, layout, index)
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _heading(table: Table, layout: Layout) -> list[str]:
    """Headings, the last line of each above its column."""
    heads = [layout.heads[column.key] for column in layout.columns]
    height = _heading_lines(layout)
    lines = []
    for line in range(height):
        last = line == height - 1
        cells = [["Method"], ["Views"]][: 1 + table.has_views] if last else [[""], [""]]
        texts = [cell[0] for cell in cells[: 1 + table.has_views]]
        for head in heads:
            text = head[line - height] if height - line <= len(head) else ""
            texts.append(rf"\multicolumn{{2}}{{c}}{{{escaped(text)}}}")
        lines.append(" & ".join(texts) + r" \\")
    return lines


def _row(table: Table, layout: Layout, index: int) -> list[str]:
    row: Row = table.rows[index]
    size = layout.style.size
    labels = wrapped(row.label, layout.label + 0.01, size, indent=_INDENT)
    labels = [
        f"\\hspace{{{_INDENT:g}pt}}{escaped(line)}" if number else escaped(line)
        for number, line in enumerate(labels)
    ]
    fronts = [labels]
    if table.has_views:
        fronts.append([escaped(line) for line in wrapped(row.views, layout.views + 0.01, size)])
    cells = [layout.bodies[column.key][index] for column in layout.columns]
    height = max(map(len, (*fronts, *cells)))
    lines = []
    for line in range(height):
        texts = [lines_of[line] if line < len(lines_of) else "" for lines_of in fronts]
        texts += [cell[line].source if line < len(cell) else "&" for cell in cells]
        lines.append(" & ".join(texts) + r" \\")
    return lines


def _caption_parts(table: Table) -> list[tuple[str | None, str]]:
    marked: dict[str, str | None] = {note_text(note): note.mark for note in table.notes}
    plain_text = {note_text(note): note.text for note in table.notes}
    return [
        (marked.get(line), plain_text.get(line, line.strip()))
        for line in caption_lines(replace(table, comparisons=()), best_sentence(styled=True))
    ]


def _notes(parts: Sequence[tuple[str | None, str]]) -> Iterator[str]:
    yield f"{{\\fontsize{{{_NOTE:g}}}{{{_NOTE_LINE:g}}}\\selectfont\\raggedright"
    yield from map(_note, parts)
    yield "}"


def _note(part: tuple[str | None, str]) -> str:
    mark, text = part
    prefix = f"\\textsuperscript{{{escaped(mark)}}} " if mark else ""
    return f"{prefix}{running(text)}\\par"

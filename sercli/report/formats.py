"""One function a format for people to read or typeset: terminal, plain text, Markdown, LaTeX.

The HTML page is in `page`, CSV and JSON are in `exports`; `RENDERERS` lists all of them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from sercli.report.exports import csv_text, json_text
from sercli.report.page import html
from sercli.report.tables import Cell, CellText, Column, Note, Table, cell_text

PLAIN_WIDTH = 100
_LABEL_WIDTH = 34
_MIN_HEADING = 8
_VIEWS_WIDTH = 9
_LATEX_WIDTH = 110
_LATEX_HEADING = 12
_COLUMN_GAP = 3
_BEST_PLAIN = "•"
_SUPERSCRIPTS = str.maketrans("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")


# -- terminal and plain text ----------------------------------------------------------------------


def terminal(table: Table, *, width: int = PLAIN_WIDTH, styled: bool = True) -> RenderableType:
    """The table for a rich console, cut into panels that fit `width` columns of text.

    Args:
        width: Columns of the terminal.
        styled: Bold and dim text; otherwise the best values carry a sign instead.
    """
    labels = [textwrap.wrap(row.label, _LABEL_WIDTH) or [""] for row in table.rows]
    label_width = max((cell_len(line) for lines in labels for line in lines), default=0)
    taken = label_width + (_COLUMN_GAP + _VIEWS_WIDTH if table.has_views else 0)
    texts = {
        column.key: [_cell_lines(column, row.cell(column), styled) for row in table.rows]
        for column in table.columns
    }
    widths = {column.key: _width(column, texts[column.key]) for column in table.columns}
    panels = _pack(table.columns, widths, width - taken)
    parts: list[RenderableType] = [Text(table.title, style="bold" if styled else "")]
    for panel in panels:
        parts += [Text(), _panel(table, labels, panel, texts, widths, styled)]
    parts += [Text(), *(Text(line) for line in _caption(table, _best_sentence(styled)))]
    return Group(*parts)


def plain(table: Table, *, width: int = PLAIN_WIDTH) -> str:
    """The terminal's table as plain text, without control sequences."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False)
    console.print(terminal(table, width=width, styled=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _best_sentence(styled: bool) -> str:
    sign = "bold" if styled else f"marked {_BEST_PLAIN}"
    return f"The best value of a column is {sign}; equal printed values share it."


def _cell_lines(column: Column, cell: Cell, styled: bool) -> list[str]:
    text = cell_text(column, cell)
    best = f"{_BEST_PLAIN} " if text.best and not styled else ""
    star = "*" if text.star else ""
    value = " ".join(part for part in (text.value, text.spread, text.seeds) if part)
    lines = [best + value, text.difference + star, f"floor {text.floor}" if text.floor else ""]
    lines = [line for line in lines if line]
    lines[0] += _superscript(text.marks)
    return lines


def _superscript(marks: Sequence[str]) -> str:
    return " ".join(mark.translate(_SUPERSCRIPTS) for mark in marks)


def _words(heading: str, width: int) -> list[str]:
    """Lines of a heading; names such as ImageNet-C and top-1 stay whole."""
    return textwrap.wrap(heading, width, break_long_words=False, break_on_hyphens=False)


def _width(column: Column, texts: Sequence[Sequence[str]]) -> int:
    longest = max((cell_len(line) for lines in texts for line in lines), default=0)
    words = max(cell_len(word) for word in column.title.split())
    return max(longest, words, _MIN_HEADING)


def _pack(columns: Sequence[Column], widths: Mapping[str, int], room: int) -> list[list[Column]]:
    """Columns in order, as many a panel as fit (at least one)."""
    panels: list[list[Column]] = []
    used = 0
    for column in columns:
        needed = widths[column.key] + _COLUMN_GAP
        if not panels or used + needed > room:
            panels.append([])
            used = 0
        panels[-1].append(column)
        used += needed
    return panels or [[]]


def _panel(
    table: Table,
    labels: Sequence[Sequence[str]],
    columns: Sequence[Column],
    texts: Mapping[str, Sequence[Sequence[str]]],
    widths: Mapping[str, int],
    styled: bool,
) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    grid.add_column("Method", no_wrap=True)
    if table.has_views:
        grid.add_column("Views", no_wrap=True)
    for column in columns:
        heading = "\n".join(_words(column.title, widths[column.key]))
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


def _caption(table: Table, best: str) -> list[str]:
    lines = [best] if table.has_best else []
    if any(column.direction != "none" for column in table.columns):
        lines.insert(0, "↑ higher is better, ↓ lower is better.")
    lines += [_note_text(note) for note in table.notes]
    if table.comparisons:
        lines += ["Paired tests:", *(f"  {sentence}" for sentence in table.comparisons)]
    return lines


def _note_text(note: Note) -> str:
    return f"{_superscript([note.mark])} {note.text}" if note.mark else note.text


# -- Markdown -------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A GitHub-flavoured table with aligned pipes, the notes as a list below."""
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
    notes = _caption(table, _best_sentence(styled=True))
    listed = [f"- {_escape_markdown(line.strip())}" for line in notes if line != "Paired tests:"]
    return "\n".join([*lines, "", *listed]) + "\n"


def _markdown_line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        padded.append(cell + space if index < left else space + cell)
    return f"| {' | '.join(padded)} |"


def _escape_markdown(text: str) -> str:
    for sign in "\\|*_`<[]":
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
    parts += [f"(floor {text.floor})" if text.floor else "", _superscript(text.marks)]
    return " ".join(part for part in parts if part)


# -- LaTeX ----------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"\textdagger{}",
    "…": r"\ldots{}",
    "—": "---",
    "–": "--",
}


def latex(table: Table) -> str:
    """A booktabs table: `\\usepackage{booktabs}` is all it needs.

    Columns that no page holds side by side go into several floats; the last has the notes.
    """
    widths = {
        column.key: max(
            *map(cell_len, _words(column.title, _LATEX_HEADING)),
            *(_latex_length(cell_text(column, row.cell(column))) for row in table.rows),
        )
        for column in table.columns
    }
    label = max(cell_len(row.label) + cell_len(row.views) for row in table.rows)
    panels = _pack(table.columns, widths, _LATEX_WIDTH - label)
    begin = ["\\begin{table}", "\\centering", "\\small", "\\setlength{\\tabcolsep}{4pt}"]
    lines = ["% needs \\usepackage{booktabs}"]
    for panel in panels[:-1]:
        lines += [*begin, *_tabular(table, panel), "\\end{table}"]
    lines += [*begin, *_tabular(table, panels[-1]), "", "\\smallskip"]
    lines += ["{\\footnotesize\\raggedright", *map(_latex_note, _caption_parts(table)), "}"]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _tabular(table: Table, columns: Sequence[Column]) -> list[str]:
    left = ["Method", *(["Views"] if table.has_views else [])]
    heads = [*left, *(_latex_heading(column) for column in columns)]
    lines = [
        f"\\begin{{tabular}}{{{'l' * len(left)}{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(heads) + r" \\",
        "\\midrule",
    ]
    for index, row in enumerate(table.rows):
        if row.published and index and not table.rows[index - 1].published:
            lines.append("\\midrule")
        cells = [_escape_latex(row.label), *([_escape_latex(row.views)] if table.has_views else [])]
        cells += [_latex_cell(cell_text(column, row.cell(column))) for column in columns]
        lines.append(" & ".join(cells) + r" \\")
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _caption_parts(table: Table) -> list[tuple[str | None, str]]:
    marked: dict[str, str | None] = {_note_text(note): note.mark for note in table.notes}
    plain_text = {_note_text(note): note.text for note in table.notes}
    return [
        (marked.get(line), plain_text.get(line, line.strip()))
        for line in _caption(table, _best_sentence(styled=True))
    ]


def _latex_note(part: tuple[str | None, str]) -> str:
    mark, text = part
    prefix = f"\\textsuperscript{{{_escape_latex(mark)}}} " if mark else ""
    return f"{prefix}{_escape_latex(text)}\\par"


def _escape_latex(text: str) -> str:
    # Two hyphens in a row would become a dash: --limit.
    parts = text.split("--")
    return "-{}-".join("".join(_LATEX.get(sign, sign) for sign in part) for part in parts)


def _latex_heading(column: Column) -> str:
    lines = r" \\ ".join(_escape_latex(line) for line in _words(column.title, _LATEX_HEADING))
    return rf"\shortstack[r]{{{lines}}}"


def _latex_length(text: CellText) -> int:
    """About how many characters wide a cell is set."""
    parts = (text.value, text.spread, text.seeds, text.difference, text.floor and "(floor 0.00)")
    return sum(len(part) + 1 for part in parts if part) + len(text.marks)


def _latex_cell(text: CellText) -> str:
    value = _escape_latex(text.value)
    parts = [f"\\textbf{{{value}}}" if text.best else value, _escape_latex(text.spread), text.seeds]
    if text.difference:
        parts.append(f"(${text.difference}{'^{*}' if text.star else ''}$)")
    if text.floor:
        parts.append(f"(floor {text.floor})")
    marks = ",".join(map(_escape_latex, text.marks))
    return "~".join(part for part in parts if part) + (
        f"\\textsuperscript{{{marks}}}" if marks else ""
    )


# -- all formats ----------------------------------------------------------------------------------

RENDERERS: Mapping[str, Callable[[Table], str]] = {
    "terminal": plain,
    "markdown": markdown,
    "latex": latex,
    "csv": csv_text,
    "html": html,
    "json": json_text,
}

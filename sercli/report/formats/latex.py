"""Tables in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from sercli.report.compare.tables import CellText, Column, Table, cell_text
from sercli.report.formats.text import best_sentence, caption_lines, note_text, pack, wrapped
from sercli.visible import visible

_LATEX_WIDTH = 110
_LATEX_HEADING = 12


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
    "|": r"\textbar{}",
    "`": "{`}",
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
    table = table.with_texts(visible)
    widths = {
        column.key: max(
            *map(cell_len, wrapped(column.title, _LATEX_HEADING)),
            *(_latex_length(cell_text(column, row.cell(column))) for row in table.rows),
        )
        for column in table.columns
    }
    label = max(cell_len(row.label) + cell_len(row.views) for row in table.rows)
    panels = pack(table.columns, widths, _LATEX_WIDTH - label)
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
    marked: dict[str, str | None] = {note_text(note): note.mark for note in table.notes}
    plain_text = {note_text(note): note.text for note in table.notes}
    return [
        (marked.get(line), plain_text.get(line, line.strip()))
        for line in caption_lines(table, best_sentence(styled=True))
    ]


def _latex_note(part: tuple[str | None, str]) -> str:
    mark, text = part
    prefix = f"\\textsuperscript{{{_escape_latex(mark)}}} " if mark else ""
    return f"{prefix}{_escape_latex(text)}\\par"


def _escape_latex(text: str) -> str:
    # Two hyphens in a row would become a dash: --limit.
    parts = text.split("--")
    escaped = "-{}-".join("".join(_LATEX.get(sign, sign) for sign in part) for part in parts)
    # Behind the end of a line or a rule these would be an argument of it.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def _latex_heading(column: Column) -> str:
    lines = r" \\ ".join(_escape_latex(line) for line in wrapped(column.title, _LATEX_HEADING))
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

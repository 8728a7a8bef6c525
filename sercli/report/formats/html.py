"""The table as one self-contained HTML page: inline CSS, no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sercli.report.compare.tables import ARROWS, CellText, Column, Note, Row, Table, cell_text
from sercli.report.formats.text import arrows_sentence
from sercli.visible import visible

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d6570; --line: #d5d9df;
  --paper: #ffffff; --band: #f4f6f8; --up: #0b6e3b; --down: #a3341f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a0a8b3; --line: #3a4048;
  --paper: #15181c; --band: #1e2329; --up: #6fd39c; --down: #f0937f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 110rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .875rem;
  padding-top: .6rem; }
th, td { padding: .45rem .6rem; text-align: right; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); font-weight: 600; vertical-align: bottom;
  min-width: 4.5rem; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; min-width: 13rem; }
th.text, td.text { text-align: left; }
tbody th.text { position: sticky; left: 0; background: var(--paper); }
tr.published, tr.published th.text { color: var(--soft); background: var(--band); }
.spread, .floor, .difference { display: block; font-size: .85em; white-space: nowrap; }
.spread, .floor { color: var(--soft); }
sup { line-height: 0; }
.rise { color: var(--up); } .fall { color: var(--down); } .flat { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
ul { margin: 0; padding-left: 1.2rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .875rem; }
footer td, footer th { padding: .3rem .8rem .3rem 0; text-align: left; font-weight: 400; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1rem; } dl { display: block; }
  dd { margin: 0 0 .6rem; } }
""".strip()


def html(table: Table) -> str:
    """The whole page, readable in a light and in a dark scheme."""
    table = table.with_texts(visible)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(table.title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(table.title)}</h1>",
        '<div class="wide">',
        *_table(table),
        "</div>",
        *_notes(table.notes),
        *_comparisons(table.comparisons),
        *_columns(table.columns),
        *_footer(table),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    heads = ["Method", *(["Views"] if table.has_views else [])]
    cells = [f'<th class="text" scope="col">{head}</th>' for head in heads]
    cells += [
        f'<th scope="col" title="{escape(column.explanation)}">{_heading(column)}</th>'
        for column in table.columns
    ]
    return [
        "<table>",
        f"<caption>{_caption(table)}</caption>",
        f"<thead><tr>{''.join(cells)}</tr></thead>",
        "<tbody>",
        *(_row(table, row) for row in table.rows),
        "</tbody>",
        "</table>",
    ]


def _heading(column: Column) -> str:
    """The title; a narrow column does not break names such as ImageNet-C, nor before an arrow."""
    arrow = f"&nbsp;{ARROWS[column.direction]}" if column.direction != "none" else ""
    return escape(column.heading).replace("-", "&#8209;") + arrow


def _caption(table: Table) -> str:
    sentences = [arrows] if (arrows := arrows_sentence(table)) else []
    if table.has_best:
        sentences.append("The best value of a column is bold; equal printed values share it.")
    return " ".join(sentences)


def _row(table: Table, row: Row) -> str:
    views = f'<td class="text">{escape(row.views)}</td>' if table.has_views else ""
    cells = (_cell(column, cell_text(column, row.cell(column)), row) for column in table.columns)
    kind = ' class="published"' if row.published else ""
    label = f'<th class="text" scope="row">{escape(row.label)}</th>'
    return f"<tr{kind}>{label}{views}{''.join(cells)}</tr>"


def _cell(column: Column, text: CellText, row: Row) -> str:
    marks = f"<sup>{escape(' '.join(text.marks))}</sup>" if text.marks else ""
    value = f"<strong>{escape(text.value)}</strong>" if text.best else escape(text.value)
    parts = [value + marks] if value else []
    spread = " ".join(part for part in (text.spread, text.seeds) if part)
    if spread:
        parts.append(f'<span class="spread">{spread}</span>')
    if text.difference:
        star = "*" if text.star else ""
        shown = f"{text.difference}{star}{'' if value else marks}"
        parts.append(f'<span class="difference {_tone(column, row)}">{shown}</span>')
    if text.floor:
        parts.append(f'<span class="floor">floor {text.floor}</span>')
    return f"<td>{''.join(parts)}</td>"


def _tone(column: Column, row: Row) -> str:
    """Colour is only a hint beside the sign: towards better, towards worse, or neither."""
    difference = row.cell(column).difference
    shown = float(column.signed(difference.value)) if difference is not None else 0.0
    if shown == 0 or column.direction == "none":
        return "flat"
    return "rise" if (shown > 0) == (column.direction == "up") else "fall"


def _notes(notes: Sequence[Note]) -> list[str]:
    if not notes:
        return []
    items = [
        f"<li>{f'<sup>{escape(note.mark)}</sup> ' if note.mark else ''}{escape(note.text)}</li>"
        for note in notes
    ]
    return ["<h2>How to read it</h2>", "<ul>", *items, "</ul>"]


def _comparisons(sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    items = [f"<li>{escape(sentence)}</li>" for sentence in sentences]
    return ["<h2>Paired tests</h2>", "<ul>", *items, "</ul>"]


def _columns(columns: Sequence[Column]) -> list[str]:
    items = []
    for column in columns:
        key = escape(visible(column.key))
        identity = f" Protocol <code>{column.protocol_id}</code>." if column.protocol_id else ""
        items.append(
            f"<dt>{escape(column.title)}</dt>"
            f"<dd>{escape(column.explanation)}{identity} <code>{key}</code></dd>"
        )
    return ["<h2>Columns</h2>", "<dl>", *items, "</dl>"] if items else []


def _footer(table: Table) -> list[str]:
    runs: Sequence[Mapping[str, Any]] = table.provenance.get("runs", [])
    lines = [
        "<footer>",
        "<h2>Provenance</h2>",
        '<div class="wide"><table>',
        "<thead><tr><th>Run directory</th><th>Recipe</th><th>Status</th><th>Commit</th>"
        "<th>Device</th><th>Protocols</th></tr></thead>",
        "<tbody>",
    ]
    for run in runs:
        protocols = ", ".join(
            f"{escape(name)} <code>{result['protocol_id']}</code>"
            for name, result in run["results"].items()
        )
        cells = [f"<code>{escape(run['path'])}</code>"]
        cells += [
            escape(str(run.get(key) or "—"))
            for key in ("recipe_name", "status", "git_commit", "device")
        ]
        lines.append(
            f"<tr>{''.join(f'<td>{cell}</td>' for cell in (*cells, protocols or '—'))}</tr>"
        )
    version = escape(str(table.provenance.get("ser", "")))
    return [*lines, "</tbody>", "</table></div>", f"<p>Made by ser {version}.</p>", "</footer>"]

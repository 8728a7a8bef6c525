"""What tables in a terminal, in Markdown and in LaTeX share: captions, notes, line breaks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

from sercli.report.compare.tables import ARROWS, Column, Direction, Note, Table

MIN_HEADING = 8
COLUMN_GAP = 3
BEST_PLAIN = "•"
_SUPERSCRIPTS = str.maketrans("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")


def best_sentence(styled: bool) -> str:
    sign = "bold" if styled else f"marked {BEST_PLAIN}"
    return f"The best value of a column is {sign}; equal printed values share it."


def arrows_sentence(table: Table) -> str:
    """What the arrows of the headings mean; nothing of one that is not there."""
    shown = {column.direction for column in table.columns}
    words: dict[Direction, str] = {"up": "higher", "down": "lower"}
    known = [f"{ARROWS[way]} {word} is better" for way, word in words.items() if way in shown]
    return f"{', '.join(known)}." if known else ""


def superscript(marks: Sequence[str]) -> str:
    return " ".join(mark.translate(_SUPERSCRIPTS) for mark in marks)


def wrapped(heading: str, width: int) -> list[str]:
    """Lines of a heading; names such as ImageNet-C and top-1 stay whole."""
    return textwrap.wrap(heading, width, break_long_words=False, break_on_hyphens=False)


def width_of(column: Column, texts: Sequence[Sequence[str]]) -> int:
    longest = max((cell_len(line) for lines in texts for line in lines), default=0)
    words = max((cell_len(word) for word in column.title.split()), default=0)
    return max(longest, words, MIN_HEADING)


def pack(columns: Sequence[Column], widths: Mapping[str, int], room: int) -> list[list[Column]]:
    """Columns in order, as many a panel as fit (at least one)."""
    panels: list[list[Column]] = []
    used = 0
    for column in columns:
        needed = widths[column.key] + COLUMN_GAP
        if not panels or used + needed > room:
            panels.append([])
            used = 0
        panels[-1].append(column)
        used += needed
    return panels or [[]]


def caption_lines(table: Table, best: str) -> list[str]:
    lines = [best] if table.has_best else []
    if arrows := arrows_sentence(table):
        lines.insert(0, arrows)
    lines += [note_text(note) for note in table.notes]
    if table.comparisons:
        lines += ["Paired tests:", *(f"  {sentence}" for sentence in table.comparisons)]
    return lines


def note_text(note: Note) -> str:
    return f"{superscript([note.mark])} {note.text}" if note.mark else note.text

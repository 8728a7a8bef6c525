"""Several tables together: what stands under one of them alone, and what under the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from sercli.report.compare.comparison import Options, compare_tables, papers_tables
from sercli.report.compare.notes import with_notes_once
from sercli.report.compare.runs import read_runs
from sercli.report.compare.tables import Note, Table
from tests.support.run_grid import make_runs


def table(*texts: str, marked: str = "") -> Table:
    marks = [Note("a", marked)] if marked else []
    return Table("A table", [], [], [*marks, *(Note(None, text) for text in texts)], [], {})


def texts(tables: list[Table]) -> list[list[str]]:
    return [[note.text for note in one.notes] for one in tables]


def test_what_stands_under_several_stands_under_the_last() -> None:
    shown = with_notes_once(
        {
            "main": table("Of all.", "Of two.", "Of one.", marked="Of a cell."),
            "ablation": table("Of all.", marked="Of a cell."),
            "cost": table("Of all.", "Of two.", "Of the last."),
        }
    )
    assert texts(shown) == [
        ["Of a cell.", "Of one."],
        ["Of a cell."],
        ["Of the last.", "All tables: Of all.", "main and cost: Of two."],
    ]


def test_a_table_alone_keeps_its_notes() -> None:
    one = table("Twice.", "Twice.")
    assert with_notes_once({"main": one}) == [one]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("grid"), 12, images=40, rows=2)


def test_no_note_of_all_tables_is_repeated_and_none_is_lost(runs: list[Path]) -> None:
    options = Options(table="all")
    alone, without = papers_tables(read_runs(runs), options)
    together = compare_tables(runs, options)
    assert len(together) == len(alone) > 2
    plain = [note.text for one in together for note in one.notes if note.mark is None]
    said = [text.partition(": ")[2] if text.startswith("All tables: ") else text for text in plain]
    assert len(set(said)) == len(said)
    whole = "\n".join(plain)
    for one in alone.values():
        assert all(note.text in whole for note in one.notes)
    assert sum("± is half" in text for text in said) == 1
    assert sum(text.startswith("Not shown: ") for text in plain) == len(without)

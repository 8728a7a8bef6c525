"""The paper's numbers as rows beside one's own: which, and in which columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from sercli.protocols import PROTOCOLS
from sercli.report.compare import published as paper
from sercli.report.compare.cells import Footnotes
from sercli.report.compare.columns import Spec, catalogue, result_spec, run_spec
from sercli.report.compare.entries import known_title, trained_label
from sercli.report.compare.named import fits
from sercli.report.compare.papers_tables import PAPERS_TABLES, PaperTable
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import Cell, Difference, Row
from sercli.report.compare.values import RUN_QUANTITIES


def rows_for(entries: Sequence[Entry]) -> tuple[paper.PublishedRow, ...]:
    """The paper's rows that belong to some rows."""
    runs = [entry.run for entry in entries]
    identities = [
        paper.Identity(run.name("method"), run.addon, run.views, run.tapped_layer, run.weight == 0)
        for run in runs
    ]
    return paper.matching(identities).rows


def with_published_columns(
    specs: Sequence[Spec],
    runs: Sequence[Run],
    rows: Sequence[paper.PublishedRow],
    block: int | None,
    table: str | None,
) -> list[Spec]:
    """Add the paper's columns that no run has a number for, and those beside others of a result.

    Args:
        specs: The columns that there are.
        runs: Of the table.
        rows: The paper's.
        block: The one that is compared.
        table: Of the paper's: all of its columns that `rows` fill; None: the main one only.
    """
    keys = paper.Matching(tuple(rows)).keys
    chosen = list(specs)
    wanted = [paper.LINEAR] if table is None else _keys_of(PAPERS_TABLES[table], keys, specs)
    there = [spec.column.key for spec in chosen]
    for place, pattern in enumerate(wanted):
        if pattern in keys and pattern not in there:
            chosen.insert(_place(place, wanted, chosen), _published_spec(pattern))
    for beside in catalogue(runs, block):
        places = [index for index, spec in enumerate(chosen) if spec.source == beside.source]
        if places and beside.open_key in keys and beside.reading.block == block is not None:
            chosen.insert(places[-1] + 1, beside)
    return chosen


def _keys_of(table: PaperTable, keys: Collection[str], specs: Sequence[Spec]) -> list[str]:
    """The columns of a table that the paper has numbers for, in order: one that runs have, too."""
    there = {spec.column.key for spec in specs}
    fitting = [
        sorted(
            (key for key in keys if fits(key, wanted.pattern)),
            key=lambda key: (key not in there, key),
        )
        for wanted in table.columns
    ]
    return [found[0] for found in fitting if found]


def _place(place: int, wanted: Sequence[str], chosen: Sequence[Spec]) -> int:
    """Where a column goes in: behind the last that stands before it in the paper's table."""
    before = [i for i, spec in enumerate(chosen) if spec.column.key in wanted[:place]]
    return before[-1] + 1 if before else 0


def _published_spec(key: str) -> Spec:
    """A column of the paper's alone."""
    of_runs = {one.key: one for one in RUN_QUANTITIES}
    if key in of_runs:
        return run_spec(of_runs[key])
    name, _, metric = key.partition("/")
    spec = result_spec(PROTOCOLS[name.partition("--")[0]], name, metric)
    column = replace(spec.column, explanation=paper.ALONE, ranked=False)
    return replace(spec, column=column)


def published_rows(
    published: Sequence[paper.PublishedRow],
    specs: Sequence[Spec],
    footnotes: Footnotes,
    block: int | None,
) -> list[Row]:
    rows = []
    for row in published:
        cells = {
            spec.column.key: _published_cell(number, footnotes)
            for spec in specs
            if (number := _published_number(row, spec, block)) is not None
        }
        if cells:
            rows.append(
                Row(
                    label=f"{_published_label(row)} [published]",
                    views=row.views,
                    cells=cells,
                    published=True,
                    provenance={"published": paper.PAPER, "source": row.source},
                )
            )
    return rows


def _published_label(row: paper.PublishedRow) -> str:
    addon = None if row.addon == "none" else known_title("addon", row.addon)
    return trained_label(
        known_title("method", row.method), addon, layer=row.layer, weight_zero=row.weight_zero
    )


def _published_number(
    row: paper.PublishedRow, spec: Spec, block: int | None
) -> paper.Number | None:
    of_block = spec.reading.block is not None and spec.reading.block == block
    return row.numbers.get(spec.open_key if of_block else spec.column.key)


def _published_cell(number: paper.Number, footnotes: Footnotes) -> Cell:
    return Cell(
        value=number.value,
        difference=None if number.difference is None else Difference(number.difference),
        marks=(footnotes.mark(number.note),) if number.note else (),
    )

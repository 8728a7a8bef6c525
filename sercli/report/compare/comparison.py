"""Build the table of `ser compare` from run directories: one row a run, one column a quantity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sercli import __version__
from sercli.errors import UserError
from sercli.protocols import PROTOCOLS
from sercli.report.compare import published as paper
from sercli.report.compare.cells import (
    Footnotes,
    Grid,
    Pair,
    add_differences,
    add_footnotes,
    measure,
)
from sercli.report.compare.columns import Spec, catalogue, choose, compared_block, result_spec
from sercli.report.compare.mixing import by_protocol, mixed_protocols
from sercli.report.compare.notes import (
    changed_notes,
    context_notes,
    data_notes,
    precision_notes,
    reading_notes,
)
from sercli.report.compare.runs import (
    Entry,
    Run,
    baseline_candidates,
    known_title,
    read_runs,
    seed_entries,
    single_entries,
    trained_label,
    training_differences,
)
from sercli.report.compare.tables import (
    Cell,
    Column,
    Difference,
    Note,
    Row,
    Table,
    best_labels,
)
from sercli.runs.finding import Skipped
from sercli.visible import counted


@dataclass(frozen=True)
class Options:
    """What a comparison shows.

    Attributes:
        baseline: Run directory that all others are compared with; None finds each its own.
        block: Block whose equivariance is shown; None is 3, or the only one there is.
        columns: Keys, beginnings of keys or wildcards; none is the default choice.
        allow_mixed: Give different protocols a column each instead of refusing.
        published: Add the paper's matching rows.
        group_seeds: One row for all seeds of a recipe, mean ± sample standard deviation.
    """

    baseline: Path | None = None
    block: int | None = None
    columns: tuple[str, ...] = ()
    allow_mixed: bool = False
    published: bool = False
    group_seeds: bool = False


def compare_runs(paths: Sequence[Path], options: Options | None = None) -> Table:
    """Compare run directories.

    Args:
        paths: Run directories, in any order; the rows come in the paper's order.
        options: Baseline, block, columns and rows to show; None: the defaults.

    Raises:
        UserError: A path is no run directory, no run has a number, a column or block does not
            exist, or one column would mix protocols.
    """
    options = options or Options()
    skipped: list[Skipped] = []
    named = [*paths, *([options.baseline] if options.baseline else [])]
    return compare_read(read_runs(named, skipped), options, skipped)


def compare_read(runs: Sequence[Run], options: Options, skipped: Sequence[Skipped] = ()) -> Table:
    """Compare runs that were read, the baseline among them, if there is one.

    Args:
        runs: Read.
        options: Baseline, block, columns and rows to show.
        skipped: What was found and could not be read, for a note.

    Raises:
        UserError: As `compare_runs`.
    """
    entries = seed_entries(runs) if options.group_seeds else single_entries(runs)
    block = compared_block(runs, options.block)
    specs = choose(catalogue(runs, block), options.columns)
    _require_used(options, specs)
    rows_of_paper = _paper_rows(entries) if options.published else ()
    if options.published and not options.columns:
        specs = _with_published_columns(specs, runs, rows_of_paper, block)
    specs = by_protocol(specs, runs, allow_mixed=options.allow_mixed)
    pairs, remarks = _pairs(entries, options.baseline)

    grid: Grid = [{spec.column.key: measure(entry, spec) for spec in specs} for entry in entries]
    grid, comparisons = add_differences(grid, specs, entries, pairs)
    footnotes = Footnotes()
    grid = add_footnotes(grid, specs, footnotes)
    rows = _rows(entries, grid, pairs)
    rows += _published_rows(rows_of_paper, specs, footnotes, block)
    columns = [spec.column for spec in specs]
    rows = _with_best(rows, columns)
    notes = [
        *reading_notes(rows, pairs, entries, len(comparisons)),
        *(Note(None, text) for text in (*remarks, *mixed_protocols(specs, runs))),
        *context_notes(
            rows,
            specs,
            runs,
            open_block=block is None and not options.columns,
            published=options.published,
        ),
        *changed_notes(entries),
        *data_notes(specs, runs),
        *precision_notes(rows, specs),
        *footnotes.notes(),
        *(Note(None, f"Passed over: {one.why}.") for one in skipped),
    ]
    title = f"{counted(len(runs), 'run')} compared"
    return Table(title, columns, rows, notes, comparisons, _provenance(runs))


def _require_used(options: Options, specs: Sequence[Spec]) -> None:
    """A block that no column is of was named in vain."""
    if options.block is None or any(_has_blocks(spec) for spec in specs):
        return
    fitting = [protocol for protocol in PROTOCOLS.values() if protocol.has_blocks]
    raise UserError(
        f"--block {options.block} with --columns {','.join(options.columns)}",
        f"no {' or '.join(protocol.title for protocol in fitting)} column is chosen",
        f"add {' or '.join(protocol.name for protocol in fitting)} to --columns or leave --block "
        "out",
    )


def _has_blocks(spec: Spec) -> bool:
    return spec.protocol is not None and spec.protocol.has_blocks


# -- rows -----------------------------------------------------------------------------------------


def _rows(entries: Sequence[Entry], grid: Grid, pairs: Sequence[Pair]) -> list[Row]:
    baselines = {pair.row: entries[pair.baseline].name for pair in pairs}
    return [
        Row(
            label=entry.label,
            views=entry.views,
            cells=cells,
            baseline=baselines.get(index),
            provenance={"runs": [_run_provenance(run) for run in entry.runs]},
        )
        for index, (entry, cells) in enumerate(zip(entries, grid, strict=True))
    ]


def _with_best(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    best = {column.key: best_labels(column, rows) for column in columns}
    return [
        replace(
            row,
            cells={
                key: replace(cell, best=index in best.get(key, ()))
                for key, cell in row.cells.items()
            },
        )
        for index, row in enumerate(rows)
    ]


def _pairs(entries: Sequence[Entry], baseline: Path | None) -> tuple[list[Pair], list[str]]:
    """Who is compared with whom, and remarks on pairs that were not or hardly comparable."""
    if baseline is not None:
        place = os.path.realpath(baseline)
        base = next(
            index
            for index, entry in enumerate(entries)
            if any(os.path.realpath(run.directory.path) == place for run in entry.runs)
        )
        pairs = [Pair(row, base) for row in range(len(entries)) if row != base]
        return pairs, _training_remarks(entries, pairs)
    pairs, remarks = [], []
    for row, entry in enumerate(entries):
        candidates = baseline_candidates(entry, entries)
        if len(candidates) == 1:
            pairs.append(Pair(row, entries.index(candidates[0])))
        elif candidates:
            listed = ", ".join(candidate.run.path for candidate in candidates)
            remarks.append(
                f"{entry.name} has several possible baselines ({listed}) and no difference is "
                "shown; name one with --baseline."
            )
    return pairs, [*remarks, *_training_remarks(entries, pairs)]


def _training_remarks(entries: Sequence[Entry], pairs: Sequence[Pair]) -> list[str]:
    remarks = []
    for pair in pairs:
        entry, base = entries[pair.row], entries[pair.baseline]
        if entry.run.recipe and base.run.recipe:
            differences = training_differences(base.run, entry.run)
            if differences:
                remarks.append(
                    f"{base.name} (baseline) and {entry.name} were trained differently: "
                    f"{', '.join(differences)}."
                )
    return remarks


# -- published numbers ----------------------------------------------------------------------------


def _paper_rows(entries: Sequence[Entry]) -> tuple[paper.PublishedRow, ...]:
    runs = [entry.run for entry in entries]
    identities = [
        paper.Identity(run.name("method"), run.addon, run.views, run.tapped_layer, run.weight == 0)
        for run in runs
    ]
    return paper.matching(identities).rows


def _with_published_columns(
    specs: Sequence[Spec],
    runs: Sequence[Run],
    rows: Sequence[paper.PublishedRow],
    block: int | None,
) -> list[Spec]:
    """Add the paper's main column, and those of blocks beside others of the same result."""
    chosen = list(specs)
    keys = paper.Matching(tuple(rows)).keys
    if paper.LINEAR in keys and all(spec.column.key != paper.LINEAR for spec in chosen):
        name, _, metric = paper.LINEAR.partition("/")
        spec = result_spec(PROTOCOLS[name.partition("--")[0]], name, metric)
        column = replace(spec.column, explanation=paper.LINEAR_ALONE, ranked=False)
        chosen.insert(0, replace(spec, column=column))
    for beside in catalogue(runs, block):
        places = [index for index, spec in enumerate(chosen) if spec.source == beside.source]
        if places and beside.open_key in keys and beside.reading.block == block is not None:
            chosen.insert(places[-1] + 1, beside)
    return chosen


def _published_rows(
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


# -- provenance -----------------------------------------------------------------------------------


def _provenance(runs: Sequence[Run]) -> dict[str, Any]:
    return {"ser": __version__, "runs": [_run_provenance(run) for run in runs]}


def _run_provenance(run: Run) -> dict[str, Any]:
    """Where a row comes from: the directory, what made it, and each result's protocol."""
    recorded = ("status", "recipe_name", "git_commit", "device", "versions", "command")
    return {
        "path": run.path,
        "seed": run.seed,
        **{key: run.record[key] for key in recorded if key in run.record},
        "results": {
            name: {
                "protocol_id": result.protocol_id,
                "model": result.model,
                "data": result.data,
                "created": result.created,
            }
            for name, result in run.results.items()
        },
    }

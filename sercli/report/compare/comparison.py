"""Build the tables of `ser compare` from run directories: a row a run, a column a quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sercli import __version__
from sercli.errors import UserError
from sercli.protocols import PROTOCOLS
from sercli.report.compare.baselines import Pair, find_pairs
from sercli.report.compare.cells import Footnotes, Grid, add_footnotes, measure
from sercli.report.compare.columns import Spec, catalogue, choose, compared_block
from sercli.report.compare.differences import PairedTests, add_differences
from sercli.report.compare.entries import grouped_entries, renamed, single_entries
from sercli.report.compare.mixing import by_protocol, mixed_protocols
from sercli.report.compare.named import (
    NothingToShow,
    belonging,
    filled,
    remarks_on,
    table_named,
    without_numbers,
)
from sercli.report.compare.notes import (
    changed_notes,
    context_notes,
    data_notes,
    power_notes,
    precision_notes,
    reading_notes,
    untested_notes,
    width_notes,
    with_notes_once,
)
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES
from sercli.report.compare.per_image import READ_UNASKED
from sercli.report.compare.published import PublishedRow
from sercli.report.compare.published_rows import published_rows, rows_for, with_published_columns
from sercli.report.compare.repeats import Repeats
from sercli.report.compare.runs import SEED, Entry, Run, read_runs
from sercli.report.compare.selection import (
    UnknownSort,
    column_fields,
    is_at,
    kept,
    places,
    relabelled,
    require_fields,
    require_labels_used,
    row_fields,
    spread_over,
)
from sercli.report.compare.tables import Column, Note, Row, Table, best_labels
from sercli.runs.finding import Skipped
from sercli.visible import counted


@dataclass(frozen=True)
class Options:
    """What a comparison shows.

    Attributes:
        table: One of the paper's tables; None: what there is.
        baseline: Run directory that all others are compared with; None finds each its own.
        block: Block whose equivariance is shown; None is 3, or the only one there is.
        columns: Keys, beginnings of keys or wildcards; none is the default choice. A field splits
            each into one for every value of it.
        rows: Fields that make a row, or FIELD=VALUE, which keeps runs with that value.
        group_by: Fields in which the runs of a row may differ: a row is their mean.
        sort: Columns or fields that order the rows; with - before it, the other way round.
        labels: Texts for runs (by directory or its name) and for columns (by key).
        labels_of_file: The same, of which some may be of other runs.
        allow_mixed: Give different protocols a column each instead of refusing.
        published: Add the paper's matching rows.
        group_seeds: The same as the field `seed` in `group_by`.
    """

    table: str | None = None
    baseline: Path | None = None
    block: int | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    labels_of_file: Mapping[str, str] = field(default_factory=dict)
    allow_mixed: bool = False
    published: bool = False
    group_seeds: bool = False

    @property
    def over(self) -> tuple[str, ...]:
        """What rows average over."""
        return tuple(dict.fromkeys([*self.group_by, *([SEED] if self.group_seeds else [])]))


def compare_runs(paths: Sequence[Path], options: Options | None = None) -> Table:
    """Compare run directories.

    Args:
        paths: Run directories, in any order; the rows come in the paper's order.
        options: Baseline, block, columns and rows to show; None: the defaults.

    Raises:
        UserError: A path is no run directory, no run has a number, a column, table, field or block
            does not exist, or one column would mix protocols.
    """
    options = options or Options()
    skipped: list[Skipped] = []
    return compare_read(_read(paths, options, skipped), options, skipped)


def compare_tables(paths: Sequence[Path], options: Options) -> list[Table]:
    """The table that `options` name; of `all` each of the paper's that these runs fill.

    Raises:
        UserError: As `compare_runs`, or there is no number for any table.
    """
    skipped: list[Skipped] = []
    return tables_of(_read(paths, options, skipped), options, skipped)


def tables_of(
    runs: Sequence[Run],
    options: Options,
    skipped: Sequence[Skipped] = (),
    tests: PairedTests | None = None,
) -> list[Table]:
    """The tables of runs that were read, as `compare_tables`: what they do not fill is a note.

    Args:
        runs: Read, the baseline among them, if there is one.
        options: What is shown.
        skipped: What was found and could not be read, for a note.
        tests: As of `compare_read`.

    Raises:
        UserError: As `compare_runs`, there is no number for any table, or columns were named for
            all of them.
    """
    if options.table != ALL:
        return [compare_read(runs, options, skipped, tests)]
    tables, without = papers_tables(runs, options, skipped, tests)
    shown = with_notes_once(tables)
    notes = [Note(None, f"Not shown: {line}.") for line in without]
    return [*shown[:-1], replace(shown[-1], notes=[*shown[-1].notes, *notes])]


def papers_tables(
    runs: Sequence[Run],
    options: Options,
    skipped: Sequence[Skipped] = (),
    tests: PairedTests | None = None,
) -> tuple[dict[str, Table], list[str]]:
    """The paper's tables that runs fill, by name, each with all its notes.

    Args:
        runs: As of `tables_of`, and so are the others.

    Returns:
        The tables, and for each of the others a line on what it lacks.

    Raises:
        UserError: As `compare_runs`, there is no number for any table, or columns were named for
            all of them.
    """
    if options.columns:
        raise UserError(
            f"--table {ALL} with --columns {','.join(options.columns)}",
            "each of these tables has its own columns",
            "name one of them with --table, or leave one of the two out",
        )
    tests = tests or PairedTests()
    tables: dict[str, Table] = {}
    without: list[str] = []
    unsorted: list[UnknownSort] = []
    for name in PAPERS_TABLES:
        # A table without columns of blocks has no use for one.
        block = options.block if PAPERS_TABLES[name].has_blocks else None
        try:
            own = replace(options, table=name, block=block)
            tables[name] = _sorted_by_what_it_has(runs, own, skipped, tests, unsorted)
        except NothingToShow as nothing:
            without.append(nothing.line)
    if not tables:
        raise UserError(
            "no number for any table", "the paper's are of probes, sets, detectors and costs"
        )
    for unknown in unsorted:
        if [one.asked for one in unsorted].count(unknown.asked) == len(tables):
            raise unknown
    return tables, without


def _sorted_by_what_it_has(
    runs: Sequence[Run],
    options: Options,
    skipped: Sequence[Skipped],
    tests: PairedTests,
    unsorted: list[UnknownSort],
) -> Table:
    """One of several tables: what others are sorted by and it has not goes to `unsorted`."""
    try:
        return compare_read(runs, options, skipped, tests)
    except UnknownSort as unknown:
        unsorted.append(unknown)
        left = tuple(one for one in options.sort if one != unknown.asked)
        return _sorted_by_what_it_has(runs, replace(options, sort=left), skipped, tests, unsorted)


def _read(paths: Sequence[Path], options: Options, skipped: list[Skipped]) -> list[Run]:
    return read_runs([*paths, *([options.baseline] if options.baseline else [])], skipped)


@dataclass(frozen=True)
class _Choice:
    """What a table is made of.

    Attributes:
        runs: In it.
        block: The one that is compared; None: open, or there is none.
        specs: Its columns.
        fields: By whose values they are split.
        remarks: What it lacks.
    """

    runs: Sequence[Run]
    block: int | None
    specs: Sequence[Spec]
    fields: Sequence[str] = ()
    remarks: Sequence[str] = ()


def _choose(everyone: Sequence[Run], options: Options) -> _Choice:
    """Choose the runs and columns of a table.

    Raises:
        UserError: There are none, or something that was named does not exist.
    """
    runs = kept(everyone, options.rows, always=options.baseline)
    named = None if options.table is None else table_named(options.table)
    base = {one.path for one in runs if is_at(one, options.baseline)}
    if named is not None:
        belong = base | {one.path for one in belonging(runs, named)}
        runs = [one for one in runs if one.path in belong]
    block = compared_block(runs, options.block)
    known = catalogue(runs, block)
    fields, patterns = column_fields(options.columns, runs)
    if named is None or patterns:
        return _Choice(runs, block, choose(known, patterns), fields)
    found = filled(named, known, runs, asked=options.block, block=block)
    bare = without_numbers(runs, found.specs)
    if len(bare) == len(runs):
        raise NothingToShow(options.table or "", found.missing)
    inside, without = {one.path for one in runs}, {one.path for one in bare} - base
    elsewhere = [one for one in everyone if one.path not in inside]
    shown = [one for one in runs if one.path not in without]
    return _Choice(shown, block, found.specs, fields, remarks_on(found, elsewhere, bare))


def compare_read(
    everyone: Sequence[Run],
    options: Options,
    skipped: Sequence[Skipped] = (),
    tests: PairedTests | None = None,
) -> Table:
    """Compare runs that were read, the baseline among them, if there is one.

    Args:
        everyone: Read.
        options: What is shown.
        skipped: What was found and could not be read, for a note.
        tests: Those made for other tables of these runs; it takes those of this one.

    Raises:
        UserError: As `compare_runs`.
    """
    choice = _choose(everyone, options)
    runs, block = choice.runs, choice.block
    _require_used(options, choice.specs)
    labels = {**options.labels_of_file, **options.labels}
    entries = renamed(_entries(runs, options), labels)
    rows_of_paper = rows_for(entries) if options.published else ()
    specs = _columns(choice, options, rows_of_paper)
    specs = relabelled(specs, labels)
    require_labels_used(options.labels, everyone, specs)
    pairs, remarks = find_pairs(entries, options.baseline)

    repeats = Repeats(entries, specs) if any(entry.over for entry in entries) else None
    grid: Grid = [
        {spec.column.key: measure(entry, spec, repeats) for spec in specs} for entry in entries
    ]
    sums = options.baseline is not None or len(pairs) <= READ_UNASKED
    tests = (tests or PairedTests()).reading(sums=sums)
    grid, comparisons = add_differences(grid, specs, entries, pairs, repeats, tests)
    footnotes = Footnotes()
    grid = add_footnotes(grid, specs, footnotes)
    order = places(entries, grid, specs, options.sort)
    rows = _rows(entries, grid, pairs)
    rows = [rows[place] for place in order]
    rows += published_rows(rows_of_paper, specs, footnotes, block)
    columns = [spec.column for spec in specs]
    rows = _with_best(rows, columns)
    notes = [
        *reading_notes(rows, pairs, entries, comparisons),
        *power_notes(rows, columns),
        *(Note(None, text) for text in (*choice.remarks, *remarks, *mixed_protocols(specs, runs))),
        *([] if sums else untested_notes(specs, len(pairs))),
        *_context(rows, specs, choice, options),
        *changed_notes(entries),
        *data_notes(specs, runs),
        *precision_notes(rows, specs),
        *width_notes(columns),
        *footnotes.notes(),
        *(Note(None, f"Passed over: {one.why}.") for one in skipped),
    ]
    provenance = {"ser": __version__, "runs": [run.provenance for run in runs]}
    return Table(_title(options, runs), columns, rows, notes, comparisons, provenance)


def _columns(choice: _Choice, options: Options, paper: Sequence[PublishedRow]) -> Sequence[Spec]:
    """The columns as they are shown: the paper's beside them, one for each protocol and field."""
    specs = choice.specs
    if options.published and not options.columns:
        specs = with_published_columns(specs, choice.runs, paper, choice.block, options.table)
    specs = by_protocol(specs, choice.runs, allow_mixed=options.allow_mixed)
    return spread_over(specs, choice.fields, choice.runs)


def _context(
    rows: Sequence[Row], specs: Sequence[Spec], choice: _Choice, options: Options
) -> list[Note]:
    return context_notes(
        rows,
        specs,
        choice.runs,
        open_block=choice.block is None and not options.columns and options.table is None,
        published=options.published,
    )


def _title(options: Options, runs: Sequence[Run]) -> str:
    compared = f"{counted(len(runs), 'run')} compared"
    return compared if options.table is None else f"{table_named(options.table).title}: {compared}"


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


def entries_of(everyone: Sequence[Run], options: Options) -> list[Entry]:
    """The rows of a table of all runs, in the paper's order, without their numbers.

    Raises:
        UserError: A field does not exist, or runs that would share a row differ in more than it
            averages over.
    """
    runs = kept(everyone, options.rows, always=options.baseline)
    return renamed(_entries(runs, options), {**options.labels_of_file, **options.labels})


def _entries(runs: Sequence[Run], options: Options) -> list[Entry]:
    fields = row_fields(options.rows)
    require_fields((*fields, *options.over), runs)
    spread, _ = column_fields(options.columns, runs)
    if not fields and not options.over and not spread:
        return single_entries(runs)
    return grouped_entries(runs, options.over, fields, spread)


def _rows(entries: Sequence[Entry], grid: Grid, pairs: Sequence[Pair]) -> list[Row]:
    baselines = {pair.row: entries[pair.baseline].name for pair in pairs}
    return [
        Row(
            label=entry.label,
            views=entry.views,
            cells=cells,
            baseline=baselines.get(index),
            provenance={"runs": [run.provenance for run in entry.runs]},
        )
        for index, (entry, cells) in enumerate(zip(entries, grid, strict=True))
    ]


def _with_best(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    best = {column.key: best_labels(column, rows) for column in columns}
    return [
        replace(
            row,
            cells={
                key: replace(cell, best=True) if index in best.get(key, ()) else cell
                for key, cell in row.cells.items()
            },
        )
        for index, row in enumerate(rows)
    ]

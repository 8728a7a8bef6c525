"""The report: run directories in, a page and a folder of its figures out.

A section that has nothing to show is left out, with a line that says which command fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sercli.errors import UserError
from sercli.protocols import PROTOCOLS
from sercli.report.compare.columns import compared_block
from sercli.report.compare.comparison import Options, entries_of, papers_tables, tables_of
from sercli.report.compare.differences import PairedTests
from sercli.report.compare.notes import with_notes_once
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import Note, Table, duration
from sercli.report.page.charts import Chart, block_charts, training_charts
from sercli.report.page.claims import claims_of
from sercli.report.page.files import Folder
from sercli.report.page.gathering import Gathered, Problem, gather, logged, standing
from sercli.report.page.grids import HeatMap, heat_maps
from sercli.report.page.pictures import (
    BUDGET,
    Shown,
    find_pictures,
    missing_pictures,
    shown,
)
from sercli.report.page.recipes import differences
from sercli.report.page.rendering import render
from sercli.report.page.tradeoff import trade_off_charts
from sercli.report.page.vectors import Sheet, inline_svg
from sercli.report.page.views import (
    WordsView,
    clipped,
    columns_of,
    provenance_of,
    table_view,
)
from sercli.runs.facts import as_number
from sercli.runs.files import write_text
from sercli.visible import counted

_RUNS = ("runs", "Runs")
_MOST_DRAWN = 40  # rows in figures: lines of more are told apart by nobody
_SPELLED_OUT = 160  # rows of a chart's numbers, at most, that stand on the page


@dataclass(frozen=True)
class Written:
    """What a report became.

    Attributes:
        page: The file.
        folder: Of its figures; None where there is none.
        figures: How many.
        problems: What could not be read.
    """

    page: Path
    folder: Path | None
    figures: int
    problems: Sequence[Problem]


@dataclass
class _Parts:
    """What is on the page so far."""

    folder: Folder
    sheet: Sheet = field(default_factory=Sheet)
    context: dict[str, Any] = field(default_factory=dict)
    contents: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def write_report(
    paths: Sequence[Path],
    out: Path,
    options: Options | None = None,
    *,
    title: str | None = None,
    outcome: Path | None = None,
) -> Written:
    """Write a page about runs, and its figures into a folder beside it.

    Args:
        paths: Run directories.
        out: The page; an older one is replaced, and so are its figures.
        options: Of the tables; different protocols get columns of their own.
        title: Of the page; None says how many runs it is of.
        outcome: What became of claims about them, as `ser reproduce` writes it.

    Raises:
        UserError: A path does not exist, none is a run directory, or the options fit none.
        RunFailed: The disk is full.
    """
    options = replace(options or Options(), allow_mixed=True)
    gathered = gather([*paths, *([options.baseline] if options.baseline else [])])
    runs, problems = list(gathered.runs), list(gathered.problems)
    entries = entries_of(runs, options)
    parts = _Parts(Folder(out))
    if outcome is not None:
        parts.context["claims"] = claims_of(outcome)
        parts.contents.append(("claims", "Claims"))
    _add_runs(parts, entries)
    tables = _tables(gathered, options)
    _add_tables(parts, tables)
    drawn = entries[:_MOST_DRAWN]
    logs = {run.path: logged(run, problems) for entry in drawn for run in entry.runs}
    _add_charts(parts, drawn, logs, options)
    _add_maps(parts, list(heat_maps(drawn)))
    _add_pictures(parts, drawn, problems)
    _add_recipes(parts, drawn)
    if problems:
        parts.contents.insert(
            parts.contents.index(_RUNS) + 1, ("problems", "What could not be read")
        )
    text = render(
        {
            **parts.context,
            "title": clipped(title or f"Report of {counted(len(runs), 'run')}"),
            "summary": _summary(runs) + _not_drawn(len(drawn), len(entries)),
            "problems": [Problem(one.path, clipped(one.text)) for one in problems],
            "contents": parts.contents,
            "missing": parts.missing,
            "provenance": provenance_of([_provenance(run) for run in runs]),
            "folder": parts.folder.name if parts.folder.names else None,
        },
        styles=parts.sheet.css(),
    )
    parts.folder.close()
    write_text(out, text)
    made = parts.folder
    return Written(out, made.path if made.names else None, len(made.names), problems)


# -- Runs and tables ------------------------------------------------------------------------------


def _summary(runs: Sequence[Run]) -> str:
    """How the runs stand, and when they were made: no date of the page itself."""
    states = [standing(run) for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    dates = sorted(str(one)[:10] for run in runs if (one := run.record.get("created")))
    span = (
        ""
        if not dates
        else f" Started {dates[0]}" + (f" to {dates[-1]}." if dates[0] != dates[-1] else ".")
    )
    return f"{counted(len(runs), 'run')}: {counts}.{span}"


def _not_drawn(drawn: int, rows: int) -> str:
    """What figures leave out, where a picture of all rows could not be read."""
    if drawn == rows:
        return ""
    return (
        f" Tables have all {rows:,} rows; figures, pictures and recipes are of the first {drawn}, "
        "in the order of the tables. Fewer runs, or --group-by seed, show others."
    )


def _add_runs(parts: _Parts, entries: Sequence[Entry]) -> None:
    heads = ("Row", "Run directory", "Status", "Steps", "Seed", "Recipe", "Trained for", "Device")
    rows = []
    for entry in entries:
        for run in entry.runs:
            error = run.record.get("error")
            state = standing(run) + (f": {error}" if error else "")
            seconds = run.quantity("timings", "train_seconds")
            told = (
                *(entry.name, run.path, state, _steps(run), _said(run.seed)),
                *(
                    _said(run.record.get("recipe_name")),
                    "–" if seconds is None else duration(seconds),
                ),
                _said(run.record.get("device")),
            )
            rows.append([clipped(one) for one in told])
    parts.context["runs"] = WordsView(heads, rows)
    parts.contents.append(_RUNS)


def _said(value: object) -> str:
    return "–" if value is None else str(value)


def _steps(run: Run) -> str:
    done = run.quantity("timings", "steps")
    saved = as_number(run.record.get("saved_step"))
    told = done if done is not None else saved
    return "–" if told is None else f"{told:.0f}"


def _provenance(run: Run) -> dict[str, Any]:
    results = {name: {"protocol_id": one.protocol_id} for name, one in run.results.items()}
    return {"path": run.path, **run.record, "status": run.state, "results": results}


def _tables(gathered: Gathered, options: Options) -> list[Table]:
    """The tables asked for; else the paper's that these runs fill, and one of all there is.

    None where no run has a number yet.
    """
    if not any(run.has_numbers for run in gathered.runs):
        return []
    tests = PairedTests()
    everything = tables_of(gathered.runs, options, tests=tests)
    if options.table is not None or options.columns or options.rows or options.sort:
        return everything
    whole = replace(everything[0], title=f"All that was measured: {everything[0].title}")
    named, without = _papers_tables(gathered.runs, options, tests)
    shown = with_notes_once({**named, "all that was measured": whole})
    if named:
        lines = [Note(None, f"Not shown: {line}.") for line in without]
        shown[-1] = replace(shown[-1], notes=[*shown[-1].notes, *lines])
    return shown


def _papers_tables(
    runs: Sequence[Run], options: Options, tests: PairedTests
) -> tuple[dict[str, Table], list[str]]:
    """Those of the paper's tables that runs fill; with labels of one's own where all fit."""
    for labels in (options.labels, {}):
        try:
            return papers_tables(runs, replace(options, labels=labels), tests=tests)
        except UserError:  # a label of a row that a table has not, or no number for any
            continue
    return {}, []


def _add_tables(parts: _Parts, tables: Sequence[Table]) -> None:
    views = [
        table_view(table, f"table-{number}")
        for number, table in enumerate(tables, 1)
        if table.columns
    ]
    parts.context["tables"] = views
    parts.contents += [(view.key, view.title) for view in views]
    if not views:
        commands = " or ".join(f"ser {name} RUN" for name in list(PROTOCOLS)[:2])
        parts.missing.append(("A table, as no run has a number", commands))
    parts.context["columns"] = columns_of(tables)


# -- Charts ---------------------------------------------------------------------------------------


def _add_charts(
    parts: _Parts, entries: Sequence[Entry], logs: dict[str, Any], options: Options
) -> None:
    runs = [run for entry in entries for run in entry.runs]
    try:
        block = compared_block(runs, options.block)
    except UserError:
        block = options.block
    groups = [
        (
            *("training", "Training", "Each line is labelled where it ends."),
            training_charts(entries, logs),
            "ser pretrain",
        ),
        (
            *("blocks", "By block", "Against the dotted lines, which are untrained twins."),
            block_charts(entries),
            _commands("by_block"),
        ),
        (
            *("trade-off", "Accuracy against equivariance", ""),
            trade_off_charts(entries, block),
            _commands("axis", joined=" and "),
        ),
    ]
    made = []
    for key, title, text, charts, command in groups:
        views = [_chart_view(parts, chart) for chart in charts]
        if views:
            made.append({"key": key, "title": title, "text": text, "charts": views})
            parts.contents.append((key, title))
        else:
            parts.missing.append((title, command))
    parts.context["charts"] = made


def _commands(attribute: str, *, joined: str = " or ") -> str:
    """The commands of those protocols that have a quantity of that kind."""
    names = [
        protocol.name
        for protocol in PROTOCOLS.values()
        if any(getattr(quantity, attribute) for quantity in protocol.quantities)
    ]
    return joined.join(f"ser {name} RUN" for name in names)


def _chart_view(parts: _Parts, chart: Chart) -> dict[str, Any]:
    files = parts.folder.add_chart(chart.name, chart.figure, chart.description, chart)
    key = f"figure-{chart.name}"
    return {
        "title": clipped(chart.title),
        "description": clipped(chart.description, 1500),
        # Ours, with every text in it escaped.
        "svg": Markup(
            inline_svg(
                parts.folder.svg_of(chart.name),
                key=key,
                title=clipped(chart.title),
                description=clipped(chart.description, 1500),
                sheet=parts.sheet,
            )
        ),
        "heads": chart.heads,
        "rows": [
            [clipped(cell) if isinstance(cell, str) else cell for cell in row] for row in chart.rows
        ]
        if len(chart.rows) <= _SPELLED_OUT
        else [],
        "files": files,
    }


def _add_maps(parts: _Parts, maps: Sequence[HeatMap]) -> None:
    views = []
    for one in maps:
        files = parts.folder.add_map(one)
        views.append({**vars(one), "title": clipped(one.title), "files": files})
    if views:
        parts.contents.append(("grids", "Corruptions"))
    else:
        parts.missing.append(("Heat maps of corruptions", _commands("grid")))
    parts.context["heat_maps"] = views


# -- Pictures and recipes -------------------------------------------------------------------------


def _add_pictures(parts: _Parts, entries: Sequence[Entry], problems: list[Problem]) -> None:
    found = find_pictures(entries, problems)
    visible_ones = shown(found, problems, BUDGET)
    if visible_ones:
        parts.contents.append(("pictures", "Pictures"))
    parts.missing += missing_pictures(found)
    names = {id(one): parts.folder.add_picture(one) for one in found}
    parts.context["pictures"] = [
        {
            "heading": heading,
            "pictures": [_picture_view(one, names[id(one.picture)]) for one in group],
        }
        for heading, group in groupby(visible_ones, key=lambda one: one.picture.heading)
    ]
    left = len(found) - len(visible_ones)
    if left:
        parts.context["pictures_left"] = (
            f"{counted(left, 'picture')} more would not fit on this page."
        )


def _picture_view(one: Shown, files: Sequence[str]) -> dict[str, Any]:
    return {
        "uri": one.uri,
        "width": one.width,
        "height": one.height,
        "files": files,
        "alt": clipped(one.picture.alt, 1000),
        "label": clipped(one.picture.label),
    }


def _add_recipes(parts: _Parts, entries: Sequence[Entry]) -> None:
    found = differences(entries)
    if not found.rows:
        return
    parts.context["recipes"] = WordsView(
        heads=("Setting", *(clipped(label, 80) for label in found.labels)),
        rows=[[clipped(key), *(clipped(one) for one in values)] for key, values in found.rows],
        caption=f"{counted(found.shared, 'setting')} that all share are left out.",
    )
    parts.contents.append(("recipes", "Recipes"))

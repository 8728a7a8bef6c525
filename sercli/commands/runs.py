"""`ser runs`: how runs stand, everything of one, what of them can go."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sercli import signals
from sercli.commands.printing import aligned, shown, write_json
from sercli.commands.run_pages import (
    details_json,
    line_of,
    page,
    plan_lines,
    plans_json,
    row_of,
    standing_json,
    summary,
)
from sercli.errors import UserError
from sercli.visible import say

if TYPE_CHECKING:
    from rich.table import Table

    from sercli.runs.finding import Skipped
    from sercli.survey.pruning import Plan, Waste
    from sercli.survey.standing import Standing

app = typer.Typer(
    help="See how runs stand, look at one, watch them, and remove what none of them needs.",
    no_args_is_help=True,
)

_FOLDER = Path("runs")
_NUMBERS = range(2, 7)  # columns of a table of runs
_HEADINGS = ("run", "state", "step", "loss", "kNN", "left", "size")

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FOLDER",
        help="Run directories, and folders that are searched for them, whatever lies between.",
        show_default="runs",
    ),
]
_FormatOption = Annotated[
    Literal["terminal", "json"], typer.Option("--format", help="How it is written.")
]


@app.command("list")
def list_(folders: Folders = None, output_format: _FormatOption = "terminal") -> None:
    """List runs: running or dead, how far, how long still, last loss and kNN, size.

    A run is running while a process holds its lease, whatever `run.json` says: one that says so
    without is dead. "unseen" is one whose process, on another machine, has not been heard of for a
    minute. What cannot be read below a folder is passed over and said.
    """
    found, skipped = _look(folders)
    if output_format == "json":
        runs = [standing_json(one, results=True) for one in found]
        write_json({"runs": runs, "skipped": [str(one.path) for one in skipped]})
    else:
        _print_runs(found, _root(folders))
    _say_skipped(skipped)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    output_format: _FormatOption = "terminal",
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Read the checkpoints, to say which are whole."),
    ] = True,
) -> None:
    """Show everything of one run on a page.

    How it stands and who writes it, the settings in which it is not the recipe that it names, its
    results with 95 % intervals, its checkpoints, its files, and what `ser runs prune` would remove.
    """
    from sercli.runs.run_dir import RunDir
    from sercli.survey.details import details_of
    from sercli.survey.pruning import plan_for
    from sercli.survey.standing import standing_of

    details = details_of(standing_of(RunDir.open(run)), verify=verify)
    plan = plan_for(details.standing)
    if output_format == "json":
        write_json(details_json(details, plan))
    else:
        say(*page(details, plan))


@app.command()
def prune(
    folders: Folders = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; otherwise it is only said what would go.")
    ] = False,
    output_format: _FormatOption = "terminal",
) -> None:
    """Say what runs do not need, and with `--yes` remove it.

    Checkpoints older than the last two that verify (milestones of `train.keep_epochs` stay), the
    caches of features, halves of probes that nothing has written for a day, and what killed
    processes left. A run that is written, results, figures, heads and whatever it could go on from
    are not touched.
    """
    from sercli.survey.pruning import plan_for

    found, skipped = _look(folders)
    plans = [plan_for(one) for one in found]
    drafts = _drafts([one.facts.directory.path for one in found])
    freed, problems = _remove(plans, drafts) if yes else (None, [])
    if output_format == "json":
        write_json(plans_json(plans, drafts, freed))
    else:
        say(*plan_lines(plans, drafts, freed))
    _say_skipped(skipped)
    for problem in problems:
        say(f"not removed: {problem}", err=True)
    if problems:
        raise typer.Exit(3)


@app.command()
def watch(
    folders: Folders = None,
    every: Annotated[
        float, typer.Option(min=0.5, metavar="SECONDS", help="How often it is looked.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
) -> None:
    """Watch runs: a table that is kept up to date, until Ctrl-C, which ends it with status 0.

    Where standard output is no terminal, a line for each run that has changed.
    """
    if once:
        list_(folders)
        return
    try:
        if sys.stdout.isatty():
            _watch_screen(folders, every)
        else:
            _watch_lines(folders, every)
    except KeyboardInterrupt:
        if not signals.requested().interrupted:  # another signal: whoever sent it wants its status
            raise


def _look(folders: Sequence[Path] | None) -> tuple[list[Standing], list[Skipped]]:
    from sercli.runs.finding import find_runs
    from sercli.survey.standing import standings

    if not folders and not _FOLDER.is_dir():
        raise UserError("there is no folder runs here", "name one", "`ser runs list FOLDER`")
    return standings(find_runs(folders or [_FOLDER]))


def _root(folders: Sequence[Path] | None) -> Path | None:
    """The one folder that names of runs are told from; None where there are several."""
    given = folders or [_FOLDER]
    return given[0] if len(given) == 1 else None


def _say_skipped(skipped: Sequence[Skipped]) -> None:
    for one in skipped:
        say(f"passed over: {one.why}", err=True)


# -- Tables of runs --------------------------------------------------------------------------------


def _print_runs(found: Sequence[Standing], root: Path | None) -> None:
    rows = [row_of(one, root) for one in found]
    if not sys.stdout.isatty():
        say(summary(found, root), *aligned([_HEADINGS, *rows], right=_NUMBERS))
        return
    from sercli.screen import Screen

    Screen().print(_table(found, root))


def _table(found: Sequence[Standing], root: Path | None) -> Table:
    from rich.text import Text

    from sercli.commands.printing import ruled_table

    table = ruled_table()
    table.title, table.title_justify = Text(shown(summary(found, root))), "left"
    for index, heading in enumerate(_HEADINGS):
        right = index in _NUMBERS
        table.add_column(
            heading,
            justify="right" if right else "left",
            no_wrap=bool(index),
            overflow="ellipsis" if index else "fold",
        )
    for one in found:
        style = {"running": "green", "dead": "red", "failed": "red", "done": "dim"}.get(one.state)
        table.add_row(*map(shown, row_of(one, root)), style=style)
    return table


# -- Watching --------------------------------------------------------------------------------------


def _watch_screen(folders: Sequence[Path] | None, every: float) -> None:
    from rich.live import Live

    from sercli.screen import Screen

    found, skipped = _look(folders)
    _say_skipped(skipped)
    with Live(
        _table(found, _root(folders)),
        console=Screen(),
        auto_refresh=False,
        vertical_overflow="crop",
    ) as live:
        while True:
            live.update(_table(found, _root(folders)), refresh=True)
            time.sleep(every)
            found, _ = _look(folders)


def _watch_lines(folders: Sequence[Path] | None, every: float) -> None:
    told: dict[str, tuple[str, ...]] = {}
    said: set[str] = set()
    while True:
        found, skipped = _look(folders)
        for one in found:
            row = row_of(one, _root(folders))
            if told.get(one.facts.path) != row[:-1]:
                told[one.facts.path] = row[:-1]
                say(f"{time.strftime('%H:%M:%S')}  {line_of(row)}")
        news = [one for one in skipped if one.why not in said]
        said |= {one.why for one in news}
        _say_skipped(news)
        time.sleep(every)


# -- What can go -----------------------------------------------------------------------------------


def _drafts(paths: Sequence[Path]) -> list[Waste]:
    """Half-made directories in the folders that runs lie in."""
    from sercli.survey.pruning import drafts_in

    return [
        waste for folder in sorted({path.parent for path in paths}) for waste in drafts_in(folder)
    ]


def _remove(plans: Sequence[Plan], drafts: Sequence[Waste]) -> tuple[int, list[str]]:
    from sercli.survey.pruning import carry_out, remove_all

    done = [carry_out(plan) for plan in plans] + [remove_all(drafts)]
    return sum(freed for freed, _ in done), [line for _, lines in done for line in lines]

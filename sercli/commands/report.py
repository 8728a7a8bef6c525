"""`ser report`: run directories as one page to read, with every figure beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sercli.commands.compare import TableOptions
from sercli.commands.options import option_objects
from sercli.visible import counted, say


@option_objects
def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNDIR", help="Run directories, in any order and any state."),
    ],
    table: TableOptions,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.html",
            help="The page; an older one is replaced. Its figures, as PNG, SVG and CSV, go into "
            "FILE-figures beside it.",
        ),
    ] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the page is called.")
    ] = None,
    outcome: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="What became of claims about the runs: outcome.json of `ser reproduce`.",
        ),
    ] = None,
) -> None:
    """Write one page to read and to send: tables, curves, pictures, and what differs.

    It needs no network and no other file. Runs that still go on, failed or are damaged are shown
    as what they are.
    """
    from sercli.errors import UserError
    from sercli.report.page.building import write_report
    from sercli.runs.places import require_place

    require_place(out, "--out")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}", "its name must end in .html")
    written = write_report(run_dirs, out, table.options(), title=title, outcome=outcome)
    for problem in written.problems:
        say(f"left out: {problem.path}: {problem.text}", err=True)
    beside = (
        ""
        if written.folder is None
        else (f"; {counted(written.figures, 'figure')} in {written.folder}")
    )
    say(f"wrote {written.page} ({written.page.stat().st_size / 1e6:.1f} MB){beside}", err=True)

"""`ser compare`: run directories in one table, as in the paper."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.options import option_objects
from sercli.commands.printing import write
from sercli.report.formats.renderers import RENDERERS
from sercli.visible import say

if TYPE_CHECKING:
    from sercli.report.compare.comparison import Options
    from sercli.report.compare.tables import Table

    Format = str
else:
    Format = Literal[tuple(RENDERERS)]


@dataclass(frozen=True)
class TableOptions:
    """Which rows and columns the table has."""

    panel: ClassVar[str] = "The table"

    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNDIR",
            help="Run that all others are compared with. By default each run is compared with "
            "the one run without add-on of the same method, views, data, model and seed.",
        ),
    ] = None
    block: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Block whose equivariance is shown (default: 3, or the only one scored).",
        ),
    ] = None
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY,...",
            help="Columns, in order: knn, linear-eval, robustness, coco-detect, equiv-score, run, "
            "a key such as knn/top1, or wildcards such as `knn/*`. --format json lists the keys.",
        ),
    ] = None
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed",
            help="Show results of different protocols, each in a column of its own, instead of "
            "refusing them.",
        ),
    ] = False
    published: Annotated[
        bool,
        typer.Option("--published", help="Add the paper's matching rows, marked as published."),
    ] = False
    group_seeds: Annotated[
        bool,
        typer.Option(
            "--group-seeds",
            help="One row for all seeds of a recipe: mean ± sample standard deviation.",
        ),
    ] = False

    def options(self) -> Options:
        """What they ask for."""
        from sercli.report.compare.comparison import Options

        patterns = [part.strip() for group in self.columns or [] for part in group.split(",")]
        return Options(
            baseline=self.baseline,
            block=self.block,
            columns=tuple(part for part in patterns if part),
            allow_mixed=self.allow_mixed,
            published=self.published,
            group_seeds=self.group_seeds,
        )


@option_objects
def compare(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNDIR", help="Run directories, in any order."),
    ],
    table: TableOptions,
    output_format: Annotated[
        Format, typer.Option("--format", help="How the table is written.")
    ] = "terminal",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write to this file instead of the screen; an older one is replaced.",
        ),
    ] = None,
) -> None:
    """Show what runs have measured in one table, with differences to the baseline.

    Intervals, paired tests, and a refusal to mix protocols come with it.
    """
    from sercli.report.compare.comparison import compare_runs
    from sercli.runs.files import write_text
    from sercli.runs.places import require_place

    compared = compare_runs(run_dirs, table.options())
    if out is not None:
        require_place(out, "--out")
        write_text(out, RENDERERS[output_format](compared))
        say(f"wrote {out}", err=True)
    elif output_format == "terminal":
        _print_for_people(compared)
    else:
        write(RENDERERS[output_format](compared), end="")


def _print_for_people(compared: Table) -> None:
    """In colour and as wide as the terminal; elsewhere plain, in the encoding that is asked for."""
    from sercli.report.formats.terminal import plain, terminal
    from sercli.screen import Screen

    encoding = sys.stdout.encoding
    if sys.stdout.isatty():
        console = Screen()
        console.print(terminal(compared, width=console.width, encoding=encoding))
    else:
        say(*plain(compared, encoding=encoding).splitlines())

"""`ser compare`: run directories in one table, as in the paper."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.options import option_objects
from sercli.commands.printing import write
from sercli.errors import UserError
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES
from sercli.report.formats.renderers import FRAMES, RENDERERS
from sercli.visible import say

if TYPE_CHECKING:
    from sercli.report.compare.comparison import Options
    from sercli.report.compare.tables import Table

    Format = str
    Named = str
else:
    Format = Literal[(*RENDERERS, *FRAMES)]
    Named = Literal[(*PAPERS_TABLES, ALL)]


_COMMA = re.compile(r",(?![^\[\],]*(?:,[^\[\],]*)*\])")  # but in brackets


@dataclass(frozen=True)
class TableOptions:
    """Which rows and columns the table has."""

    panel: ClassVar[str] = "The table"

    table: Annotated[
        Named | None,
        typer.Option(help="One of the paper's tables, or all that these runs have numbers for."),
    ] = None
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
            "a key such as knn/top1, or wildcards such as `knn/*`; and fields as of --rows, each "
            "value a column. --format json lists the keys.",
        ),
    ] = None
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD|FIELD=VALUE,...",
            help="What makes a row: runs that agree in these fields are one, the mean over their "
            "seeds. FIELD=VALUE keeps runs with that value (wildcards; A|B). Fields are run, "
            "method, addon, layer, views, seed, and keys of recipes such as addon.weight.",
        ),
    ] = None
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD,...",
            help="One row for all runs that differ in these fields only: their mean with its 95 % "
            "interval (Student's t), and paired tests.",
        ),
    ] = None
    sort: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY|FIELD,...",
            help="Order of the rows: a column, best first, or a field; -KEY the other way round. "
            "By default the paper's.",
        ),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEXT",
            help="Text for a row (NAME is a run directory or its name) or a column (NAME is its "
            "key).",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Such texts in a YAML file, NAME: TEXT a line; some may be of other runs.",
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
            help="The same as --group-by seed.",
        ),
    ] = False

    def options(self) -> Options:
        """What they ask for."""
        from sercli.report.compare.comparison import Options

        return Options(
            table=self.table,
            baseline=self.baseline,
            block=self.block,
            columns=_parts(self.columns),
            rows=_parts(self.rows),
            group_by=_parts(self.group_by),
            sort=_parts(self.sort),
            labels=_labels(self.label or ()),
            labels_of_file={} if self.labels is None else _labels_of(self.labels),
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
    latex_width: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|PT",
            help="Text width that --format latex lays out for: article (345 points; the default), "
            "neurips, iclr (397.5), cvpr (237, or 496.9 over both columns), or a number of points.",
        ),
    ] = None,
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
    from sercli.report.compare.comparison import compare_tables
    from sercli.report.formats.renderers import render
    from sercli.runs.files import write_atomic
    from sercli.runs.places import require_place

    if out is not None:
        require_place(out, "--out")
    if latex_width is not None and output_format != "latex":
        raise UserError(
            f"--latex-width {latex_width} with --format {output_format}",
            "it is of tables in LaTeX",
            "take --format latex, or leave it out",
        )
    if output_format in FRAMES:
        content = _frame(run_dirs, table, output_format, out)
    else:
        tables = compare_tables(run_dirs, table.options())
        if output_format == "terminal" and out is None:
            for place, one in enumerate(tables):
                print_for_people(one, after=place > 0)
            return
        content = render(tables, output_format, latex_width=latex_width).encode()
    if out is None:
        write(content.decode(), end="")
    else:
        write_atomic(out, lambda file: file.write(content))
        say(f"wrote {out}", err=True)


def _parts(given: Sequence[str] | None) -> tuple[str, ...]:
    """What was given, be it in one option with commas or in several.

    A column of two fields has a comma in its key: `knn/top1[method=moco,layer=3]`.
    """
    parts = [part.strip() for group in given or () for part in _COMMA.split(group)]
    return tuple(part for part in parts if part)


def _labels(given: Sequence[str]) -> dict[str, str]:
    """Texts by the names that they are for.

    Raises:
        UserError: One has no `=`, or nothing on a side of it.
    """
    labels: dict[str, str] = {}
    for one in given:
        # A directory whose name has an `=` takes a file.
        name, _, text = one.partition("=")
        if not name or not text:
            raise UserError(f"--label {one!r}", "it takes NAME=TEXT", "--labels takes a file")
        labels[name] = text
    return labels


def _labels_of(file: Path) -> dict[str, str]:
    """The same of a file.

    Raises:
        UserError: It cannot be read, or is none of names and texts.
    """
    from sercli.runs.text import read_mapping

    labels = read_mapping(file)
    for name, text in labels.items():
        if isinstance(text, dict | list | bool | None):
            raise UserError(f"{file} has no text for {name!r}", "a line is NAME: TEXT")
    return {name: str(text) for name, text in labels.items()}


def _frame(
    run_dirs: Sequence[Path], table: TableOptions, output_format: str, out: Path | None
) -> bytes:
    """All that runs measured, as `sercli.results` has it.

    Raises:
        UserError: Options of a table are given, or parquet has no file to be written to.
    """
    from sercli.report.formats.tidy import parquet, tidy_csv
    from sercli.report.frame import results

    given = [f"--{one.name.replace('_', '-')}" for one in fields(table) if getattr(table, one.name)]
    if given or table.block is not None:
        raise UserError(
            f"--format {output_format} with {', '.join(given) or '--block'}",
            "it is all that the runs measured, a line a number",
            "leave these options out, or take --format csv",
        )
    if output_format == "parquet" and out is None:
        raise UserError(
            "--format parquet without --out", "it is no text for a screen", "name a file with --out"
        )
    frame = results(*run_dirs)
    return parquet(frame) if output_format == "parquet" else tidy_csv(frame).encode()


def print_for_people(compared: Table, *, after: bool = False) -> None:
    """In colour and as wide as the terminal; elsewhere plain, in the encoding that is asked for."""
    from sercli.report.formats.terminal import plain, terminal
    from sercli.screen import Screen

    encoding = sys.stdout.encoding
    if after:
        say("")
    if sys.stdout.isatty():
        console = Screen()
        console.print(terminal(compared, width=console.width, encoding=encoding), crop=False)
    else:
        say(*plain(compared, encoding=encoding).splitlines())

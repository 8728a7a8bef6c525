"""What the evaluators' commands share: their common options, progress, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sercli.encoders.loading import LoadedEncoder

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run directory, a checkpoint file, or timm:NAME."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|shapes",
        help="Images: a directory, or `shapes`, the embedded world. Default: what the run was "
        "trained on.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="RUNDIR",
        help="Run directory that takes the results; made if it does not exist. Default: the run "
        "directory itself, or runs/<name of the model>.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images taken at a time.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Loader processes. Default: by the number of cores.")
]
Device = Annotated[
    str | None, typer.Option(metavar="cpu|cuda", help="Default: cuda where there is one.")
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Use at most this many images; the result is marked partial."),
]
Teacher = Annotated[
    bool, typer.Option("--teacher", help="Evaluate the momentum encoder, not the student.")
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="Random weights (for timm:NAME only).")
]
NumHeads = Annotated[
    int | None,
    typer.Option(min=1, help="Attention heads of a checkpoint file that does not say how many."),
]
ClsAfter = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="L",
        help="Block after which [CLS] joins in a checkpoint file that does not say it; 0: from the "
        "start.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Where the encoder is in a checkpoint file of a layout that is not known, for "
        "instance state_dict.net.",
    ),
]

Positions = Annotated[
    str | None,
    typer.Option(
        metavar="WAY",
        help="How a checkpoint file that does not say whose it is resamples positions at another "
        "size: bicubic-antialias as timm (assumed), bicubic-offset as DINO, bicubic as MAE and "
        "DeiT, bicubic-aligned as torchvision.",
    ),
]

ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Side in pixels of the images, a multiple of the patch; the positional embedding is "
        "resampled. Default: of training (518 for DINOv2, whose authors evaluate at 224).",
    ),
]

Progress = Callable[[str, int, int], None]
_PLAIN_SECONDS = 60.0  # most time between two plain lines


def tell(loaded: LoadedEncoder) -> None:
    """Say on standard error what was read of a file of another project."""
    if loaded.layout != "ser" and not loaded.source.startswith("timm:"):
        typer.echo(loaded.summary, err=True)


def command_line() -> list[str]:
    """The command as it was given, for run.json."""
    return ["ser", *sys.argv[1:]]


@contextmanager
def progress_of(first: bool) -> Iterator[Progress | None]:
    """`progress` of the first of several processes; the others are silent."""
    if not first:
        yield None
        return
    with progress() as show:
        yield show


@contextmanager
def progress() -> Iterator[Progress]:
    """A function (what, done, total): bars on a terminal, else a line a tenth or a minute.

    Both say the time left, on standard error, so that standard output holds only the result.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        begun: dict[str, float] = {}
        before = time.monotonic()  # when the set before was done, and this one began
        told: dict[str, tuple[int, float]] = {}

        def tell(what: str, done: int, total: int) -> None:
            nonlocal before
            now = time.monotonic()
            if done == 0:  # said by those that do something else before
                begun[what] = before = now
                return
            start = begun.setdefault(what, before)
            before = now
            tenths, last = told.get(what, (0, start))
            tenth = 10 * done // total
            if tenth > tenths or now - last > _PLAIN_SECONDS:
                told[what] = tenth, now
                left = _left((now - start) * (total - done) / done) if 0 < done < total else ""
                typer.echo(f"{what}: {done} of {total}{left}", err=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show


def _left(seconds: float) -> str:
    """The time left in words; nothing below a second."""
    if seconds < 1:
        return ""
    if seconds < 100:
        return f", about {seconds:.0f} s left"
    minutes = seconds / 60
    return (
        f", about {minutes:.0f} min left" if minutes < 100 else f", about {minutes / 60:.1f} h left"
    )


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    caption: str,
    marked: int | None = None,
) -> None:
    """Print a table: ruled on a terminal, aligned text elsewhere. The first column is text.

    Args:
        headings: One a column.
        rows: Cells, as many as there are headings.
        title: Line above it.
        caption: Explanation below it.
        marked: Row to set off on a terminal.
    """
    if not sys.stdout.isatty():
        typer.echo(f"{title}\n{_aligned([headings, *rows])}\n{caption}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for index, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if index == marked else None)
    console = Console()
    console.print(table)
    console.print(Text(caption, style="dim"))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

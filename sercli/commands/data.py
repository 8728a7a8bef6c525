"""`ser data`: write the embedded world as files, and check a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from sercli.data.check import SplitReport

app = typer.Typer(help="Write the embedded world as files; check a data set.", no_args_is_help=True)

_LISTED = 50


@app.command()
def shapes(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New directory to write.")],
    train: Annotated[int, typer.Option(help="Images in train/.")] = 4096,
    val: Annotated[int, typer.Option(help="Images in val/ and in each of the other sets.")] = 1024,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other images.")] = 0,
) -> None:
    """Write the embedded world as JPEG files.

    DIR gets train/<class>/ and val/<class>/; and, for `ser robustness`, imagenet-r/<class>/
    (painted), sketch/<class>/ (drawn) and imagenet-v2/{matched-frequency,threshold-0.7,top-images}/
    with class folders named 0, 1, 2…. DIR appears when it is complete, or not at all.
    """
    from sercli.data.shapes_files import file_sets, write_sets

    sets = file_sets(train, val)
    total, done = sum(one.num_images for one in sets), 0
    with _progress() as show:

        def count(number: int) -> None:
            nonlocal done
            done += number
            show(f"writing {directory}", done, total)

        write_sets(directory, sets, size=size, seed=seed, progress=count)
    typer.echo(
        f"wrote {directory}: {train} train and {val} val images of {size} px, "
        f"and {len(sets) - 2} robustness sets of {val}"
    )


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The data set.")],
    fast: Annotated[
        bool, typer.Option("--fast", help="Read only the files' headers, not their pixels.")
    ] = False,
) -> None:
    """Read every image of a data set and report what is there and what is wrong.

    DIR holds train/<class>/ and val/<class>/, or class folders of its own. Reported are images per
    split and class, sizes, pixel formats, files that cannot be read, empty class folders, and
    classes that only train or only val has. The exit status is 0 if nothing is wrong, otherwise 2.
    """
    from rich.console import Console

    from sercli.data.check import check as check_data_set
    from sercli.errors import UserError

    with _progress() as show:
        report = check_data_set(
            directory,
            decode=not fast,
            progress=lambda split, done, total: show(f"reading {split}", done, total),
        )
    console = Console()
    if report.splits:
        console.print(_summary(directory, report.splits))
    if report.problems:
        _print_problems(console, report.problems)
        number = len(report.problems)
        raise UserError(
            f"{directory} has {number} problem{'s' if number > 1 else ''}",
            "every image must be readable and every class filled in each split",
            "mend or remove what is listed above",
        )
    how = "have a readable header" if fast else "can be read"
    console.print(f"all {sum(split.num_images for split in report.splits):,} images {how}")


def _summary(directory: Path, splits: tuple[SplitReport, ...]) -> Table:
    """One column a split, one row a fact."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(directory)), title_justify="left")
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for split in splits:
        table.add_column(split.split, justify="right")
        counts = split.class_counts
        rows.setdefault("images", []).append(f"{split.num_images:,}")
        rows.setdefault("classes", []).append(f"{len(split.classes):,}")
        rows.setdefault("images per class: min / median / max", []).append(_spread(counts))
        for axis, name in enumerate(("width", "height")):
            rows.setdefault(f"{name} in pixels: min / median / max", []).append(
                _spread(split.sizes[:, axis])
            )
        rows.setdefault("pixel formats", []).append(
            ", ".join(f"{mode} {number:,}" for mode, number in split.modes.most_common()) or "-"
        )
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _spread(values: NDArray[np.int32] | NDArray[np.int64]) -> str:
    import numpy as np

    if not values.size:
        return "-"
    return f"{values.min():,} / {np.median(values):,g} / {values.max():,}"


def _print_problems(console: Console, problems: tuple[str, ...]) -> None:
    # Paths are no markup, and a line that is broken is hard to copy.
    for line in problems[:_LISTED]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(problems) > _LISTED:
        console.print(f"and {len(problems) - _LISTED} more")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) that shows a bar on a terminal, otherwise a line each tenth.

    Both go to standard error, so that standard output holds only the result.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        told: dict[str, int] = {}

        def tell(what: str, done: int, total: int) -> None:
            tenth = 10 * done // total
            if tenth > told.get(what, 0):
                told[what] = tenth
                console.print(f"{what}: {done} of {total}", markup=False, soft_wrap=True)

        yield tell
        return
    with Progress(console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show

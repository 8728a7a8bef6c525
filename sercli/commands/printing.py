"""How commands print: progress, tables for a terminal and as aligned text, and JSON.

Lines for people go through `visible.say`, all else through here, so that no name, path or error
from outside is taken for markup, steers a terminal or cannot be encoded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import typer

from sercli.visible import READABLE, duration, json_text, say, spelled, visible, visible_lines

if TYPE_CHECKING:
    from rich.table import Table

    from sercli.benchmarks.table import Table as Measurements
    from sercli.screen import Screen

Progress = Callable[[str, int, int], None]
_PLAIN_SECONDS = 60.0  # most time between two plain lines


# -- Progress --------------------------------------------------------------------------------------


@contextmanager
def progress_of(first: bool) -> Iterator[Progress | None]:
    """`progress` of the first of several processes; the others are silent."""
    if not first:
        yield None
        return
    with progress() as update:
        yield update


@contextmanager
def progress() -> Iterator[Progress]:
    """A function (what, done, total): bars on a terminal, else a line a tenth or a minute.

    Both say the time left, on standard error, so that standard output holds only the result.
    """
    from sercli.screen import Screen

    console = Screen(err=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks = {}

        def move_bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(visible(what), total=total)
            bars.update(tasks[what], completed=done)

        yield move_bar


class _PlainProgress:
    """Lines on standard error, at each tenth of what there is to do, at least one a minute."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._before = time.monotonic()  # when the set before was done, and this one began
        self._printed: dict[str, tuple[int, float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0:  # by those that do something else before
            self._begun[what] = self._before = now
            return
        start = self._begun.setdefault(what, self._before)
        self._before = now
        tenths, last = self._printed.get(what, (0, start))
        tenth = 10 * done // total
        if tenth > tenths or now - last > _PLAIN_SECONDS:
            self._printed[what] = tenth, now
            left = _left((now - start) * (total - done) / done) if 0 < done < total else ""
            say(f"{what}: {done} of {total}{left}", err=True)


def _left(seconds: float) -> str:
    """The time left in words; nothing below a second."""
    return "" if seconds < 1 else f", about {duration(seconds)} left"


# -- Numbers ---------------------------------------------------------------------------------------


def percent_with_interval(values: Mapping[str, float | None], name: str) -> str:
    """A percentage that a result always has, with the ends of its interval, if it has one."""
    low, high = values[f"{name}/low"], values[f"{name}/high"]
    if low is None or high is None:
        return f"{values[name]:.2f} %"
    return f"{values[name]:.2f} % [{low:.2f}, {high:.2f}]"


# -- Text and JSON ---------------------------------------------------------------------------------


def write(text: str, *, end: str = "\n") -> None:
    """What a command makes: YAML, JSON, LaTeX, a page, … on standard output.

    In UTF-8 into a file or a pipe, whatever the locale says: what is read back must be what was
    meant, and HTML says that it is UTF-8. On a terminal, which can only be looked at, as the
    terminal can show it.
    """
    if sys.stdout.isatty():
        print(visible_lines(text), end=end, flush=True)
    else:  # as bytes, also so that CSV keeps its line ends
        typer.echo((text + end).encode("utf-8", READABLE), nl=False)


def write_json(tree: Any) -> None:
    """JSON on standard output, for people to read as well."""
    write(json_text(tree, indent=2))


def write_marked(mark: str, text: str) -> None:
    """A line that begins with a mark; on a terminal the mark is green and lines break at words."""
    if not sys.stdout.isatty():
        say(f"{mark} {text}")
        return
    from rich.text import Text

    from sercli.screen import Screen

    Screen().print(Text.assemble((mark, "green"), " ", shown(text)))


def shown(text: str) -> str:
    """A text in one line as standard output will show it; columns are as wide as that."""
    return spelled(visible(text), sys.stdout.encoding)


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Rows as lines of columns; the columns `right`, of numbers, are flush right."""
    from rich.cells import cell_len

    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def padded(index: int, cell: str) -> str:
        space = " " * (widths[index] - cell_len(cell))
        return space + cell if index in right else cell + space

    return [
        "  ".join(padded(index, cell) for index, cell in enumerate(row)).rstrip() for row in rows
    ]


# -- Tables ----------------------------------------------------------------------------------------


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
        headings: Titles of the columns: the first of text, the others of numbers.
        rows: Cells, as many as there are headings.
        title: Line above it.
        caption: Explanation below it.
        marked: Row to set off on a terminal.
    """
    if not sys.stdout.isatty():
        say(title, *aligned([headings, *rows], right=range(1, len(headings))), *caption.split("\n"))
        return
    from rich.text import Text

    from sercli.screen import Screen

    table = ruled_table()
    table.title, table.title_justify = Text(shown(title)), "left"
    for index, heading in enumerate(headings):
        table.add_column(shown(heading), justify="right" if index else "left")
    for index, row in enumerate(rows):
        table.add_row(*map(shown, row), style="bold" if index == marked else None)
    console = Screen()
    console.print(table)
    console.print(Text(caption, style="dim"))


def print_measurements(measured: Measurements) -> None:
    """Print what was measured: a ruled table on a terminal, aligned text elsewhere."""
    headings = [column.heading for column in measured.printed]
    if not sys.stdout.isatty():
        right = [which for which, one in enumerate(measured.printed) if one.form is not None]
        say(measured.title, *aligned([headings, *measured.cells], right=right), *measured.notes)
        return
    from rich.text import Text

    from sercli.screen import Screen

    table = ruled_table()
    table.title, table.title_justify = Text(shown(measured.title)), "left"
    for column in measured.printed:
        justify: Literal["left", "right"] = "left" if column.form is None else "right"
        table.add_column(shown(column.heading), justify=justify, overflow="fold")
    for row in measured.cells:
        table.add_row(*map(shown, row))
    console = Screen()
    console.print(table)
    for note in measured.notes:
        console.print(Text(shown(note), style="dim"))


@contextmanager
def measuring() -> Iterator[Callable[[str], None]]:
    """What it gives shows how far a measurement is: on a terminal in place, else in lines.

    Both on standard error, so that standard output holds only the tables.
    """
    from sercli.screen import Screen

    console = Screen(err=True)
    if not console.is_terminal:
        yield lambda text: say(text, err=True)
        return
    # The usual dots are Braille, which few encodings have.
    with console.status("measuring", spinner="line") as status:
        yield status.update


def ruled_table() -> Table:
    """An empty table with one rule, below its headings."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def print_first_that_fits(tables: Sequence[Table], console: Screen | None = None) -> None:
    """Print the first table whose columns are not too narrow on this terminal, else the last."""
    from rich.measure import Measurement

    from sercli.screen import Screen

    console = console or Screen()
    unbounded = console.options.update(max_width=10_000)
    for table in tables:
        for column in table.columns:
            if column.no_wrap:  # what must not be broken counts in full
                cells = (column.header, *column.cells)
                widths = [Measurement.get(console, unbounded, cell).maximum for cell in cells]
                column.min_width = max(widths)
        if Measurement.get(console, unbounded, table).minimum <= console.width:
            break
    console.print(table)

"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, Task, TimeRemainingColumn
from rich.table import Table

from sercli.engine.bottleneck import bottleneck
from sercli.screen import Screen
from sercli.visible import say, visible

_PLAIN_SECONDS = 5.0  # least time between two plain lines
_ADVICE_SECONDS = 10.0  # since the first row: what took part of a second is no habit
_BAR = 40  # columns; what is left of the line, where that is less, and none below the least
_LEAST_BAR = 8


class TrainingProgress:
    """Shows epoch, step, losses, images/s, share of time waiting for data, and time left.

    Args:
        total_steps: Steps of the whole run, for the bar and the time that is left.
        quiet: Show nothing (ranks other than 0).
        advise: A line on a row that tells of a problem; None: it tells of none.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        quiet: bool,
        advise: Callable[[Mapping[str, Any]], str | None] = lambda _row: None,
    ) -> None:
        self.total_steps = total_steps
        self._advise, self._advised = advise, False
        self._first_row_at: float | None = None
        self.first_row: int | None = None
        self.quiet = quiet
        self.console = Screen(err=True)
        self.live = self.console.is_terminal and not quiet
        self.started = self.last_line = time.monotonic()
        self.progress = LiveLine(console=self.console)
        self.task = self.progress.add_task("train", total=total_steps, epoch="0", texts=())

    def __enter__(self) -> Self:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.progress.stop()

    def step(self, step: int) -> None:
        """A step is done (no numbers: reading them would wait for the device)."""
        if self.live:
            self.progress.update(self.task, completed=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl is known."""
        self._consider_advice(row)
        if self.live:
            self.progress.update(
                self.task,
                completed=row["step"],
                epoch=f"{row['epoch']:.1f}",
                texts=row_texts(row),
            )
        elif not self.quiet:
            now = time.monotonic()
            if self.first_row is None:
                self.first_row, self.started = row["step"], now
            elif now - self.last_line < _PLAIN_SECONDS and row["step"] < self.total_steps:
                return
            self.last_line = now
            done = row["step"] - self.first_row
            left = (now - self.started) / max(1, done) * (self.total_steps - row["step"])
            place = (f"step {row['step']}/{self.total_steps}", f"epoch {row['epoch']:.1f}")
            ending = (f"{_duration(left)} left",) if done else ()
            say("  ".join([*place, *row_texts(row), *ending]), err=True)

    def _consider_advice(self, row: Mapping[str, Any]) -> None:
        """Give it once; not on the first row, whose time is that of starting."""
        now = time.monotonic()
        if self._first_row_at is None:
            self._first_row_at = now
        elif not self._advised and now - self._first_row_at >= _ADVICE_SECONDS:
            line = self._advise(row)
            if line is not None:
                self._advised = True
                self.message(line)

    def message(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        if self.live:
            self.console.print(visible(text))
        else:
            say(text, err=True)


class LiveLine(Progress):
    """One line that fits its terminal: step and time left stay, the rest goes where it is narrow.

    A task has `epoch` and `texts`, of which the first are kept longest.
    """

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The line, laid out for the console's width; called whenever it is drawn."""
        grid = Table.grid(padding=(0, 1), expand=False)
        for task in tasks:
            step = f"{int(task.completed)}/{int(task.total or 0)}"
            left = TimeRemainingColumn().render(task).plain
            epoch = f"epoch {task.fields['epoch']}"
            shown = _fitting([step, left, epoch, *task.fields["texts"]], self.console.width - 1)
            texts = shown[3:]
            room = self.console.width - 1 - sum(cell_len(part) + 1 for part in shown)
            bar = BarColumn(min(_BAR, room)).render(task) if room >= _LEAST_BAR else None
            cells: list[RenderableType] = [
                *shown[2:3],
                *([bar] if bar is not None else []),
                step,
                *texts,
                left,
            ]
            for _ in cells:
                grid.add_column(no_wrap=True)
            grid.add_row(*cells)
        return grid


def _fitting(parts: Sequence[str], room: int) -> list[str]:
    """The first parts that have room in a line beside each other; at least two."""
    used = 0
    fitting: list[str] = []
    for part in parts:
        used += cell_len(part) + 1
        if used > room and len(fitting) >= 2:
            break
        fitting.append(part)
    return fitting


def row_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The losses and rates of a row as a person reads them."""
    names = {"loss": "loss", "loss_inv": "inv", "loss_equiv": "equiv"}
    parts = [
        f"{short} {'not finite' if row[name] is None else format(row[name], '.4f')}"
        for name, short in names.items()
        if name in row
    ]
    if "knn_top1" in row:
        parts.append(f"kNN {row['knn_top1']:.1f}%")
    parts.append(f"{row['images_per_s']:.0f} images/s")
    if "peak_memory_gib" in row:
        parts.append(f"{row['peak_memory_gib']:.1f} GiB")
    part = bottleneck(row)
    parts.append(f"data {100 * row['data_wait']:.0f}%" + ("" if part is None else f" ({part})"))
    return tuple(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

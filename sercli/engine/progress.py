"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 5.0  # least time between two plain lines


class TrainingProgress:
    """Shows epoch, step, losses, images/s, share of time waiting for data, and time left.

    Args:
        total_steps: Steps of the whole run, for the bar and the time that is left.
        quiet: Show nothing (ranks other than 0).
    """

    def __init__(self, total_steps: int, *, quiet: bool) -> None:
        self.total_steps = total_steps
        self.first_row: int | None = None
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self.started = self.last_line = time.monotonic()
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("train", total=total_steps, epoch="0", text="")

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
        text = format_row(row)
        if self.live:
            self.progress.update(
                self.task, completed=row["step"], epoch=f"{row['epoch']:.1f}", text=text
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
            print(
                f"step {row['step']}/{self.total_steps}  epoch {row['epoch']:.1f}  {text}  "
                + (f"{_duration(left)} left" if done else ""),
                file=sys.stderr,
                flush=True,
            )

    def message(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        if self.live:
            self.progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def format_row(row: Mapping[str, Any]) -> str:
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
    parts.append(f"data {100 * row['data_wait']:.0f}%")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

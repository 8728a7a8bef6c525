"""Everything around a training step, whoever takes it: agreement of the ranks, skipped steps,
metrics.jsonl, checkpoints, resume, and stops.

What is trained differs, and what is kept of it (`State`); the loop is always

    stepper.resume(say)
    for batch in stepper.waiting(batches):
        ...                                      forward and backward
        stepper.agree(losses, gradient_norm)     before the optimiser, which skips what is bad
        optimiser.step()
        stepper.done()                           counts, logs, saves, stops
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from sercli import distributed, stages
from sercli.engine import bottleneck
from sercli.engine.agreement import Agreed, Agreement
from sercli.engine.pace import Pace
from sercli.engine.tracking import Tracker
from sercli.errors import Interrupted, Preempted, RunFailed, SerError, UserError
from sercli.parts import step_part
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest, deferred

_T = TypeVar("_T")

MAX_NON_FINITE = 3  # in a row
FIRST_STEPS = 3  # of an attempt: kernels are compiled or chosen

Clock = Callable[[], float]  # seconds from any beginning, never backwards


@dataclass(frozen=True)
class Position:
    """How far a training is.

    Attributes:
        step: Steps done.
        train_seconds: What they took, in all attempts.
    """

    step: int = 0
    train_seconds: float = 0.0


class State(Protocol):
    """What a training goes on from, in whatever file it is kept."""

    def load(self, say: Callable[[str], None]) -> Position | None:
        """Take up what was saved last, on every rank.

        Args:
            say: Shows a line: what is there but cannot be used.

        Returns:
            Where that was; None if there is nothing to go on from.

        Raises:
            UserError: It is of another training.
        """

    def save(self, position: Position) -> None:
        """Write everything that `load` takes up; called on rank 0 alone."""


class Display(Protocol):
    """What shows steps and rows to a person."""

    def step(self, step: int) -> None:
        """Show that so many steps are done."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics.jsonl."""


class Stepper:
    """Keeps one training: between its steps everything that is not the step itself.

    Args:
        pace: Its length, and what happens how often.
        state: What it goes on from; None: nothing is kept.
        run: Takes metrics.jsonl; None where nothing is logged.
        optimiser: A fused one, which leaves parameters alone where `found_inf` is 1; None: steps
            that are not finite are counted, but nothing is skipped.
        device: Where the ranks agree on a step without losses.
        how_to_go_on: For the message of a stop.
        remedy: What to try when steps are not finite, for the message.
        measure: Numbers for a row, every `measure_steps`, on rank 0; the others wait.
        gauge: What else a row tells, asked when there is one.
        judge: Called with what the ranks agreed on; raises where that ends the run.
        tensorboard: Whether rows also go there.
        guard: Called on rank 0 before anything is written; raises where that may no longer be.
        clock: Tells the time.

    Attributes:
        step: Steps done.
        train_seconds: What they took, in all attempts.
    """

    def __init__(
        self,
        pace: Pace,
        state: State | None,
        *,
        run: RunDir | None = None,
        optimiser: torch.optim.Optimizer | None = None,
        device: torch.device | None = None,
        how_to_go_on: str = "the same command goes on from there",
        remedy: str = "a lower learning rate",
        measure: Callable[[], Mapping[str, float]] | None = None,
        gauge: Callable[[], Mapping[str, float]] = dict,
        judge: Callable[[Agreed], None] = lambda _agreed: None,
        tensorboard: bool = False,
        guard: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.pace, self.state, self.run, self.optimiser = pace, state, run, optimiser
        self.device, self.how_to_go_on, self.remedy = device, how_to_go_on, remedy
        self.measure, self.judge, self.tensorboard, self.clock = measure, judge, tensorboard, clock
        self.gauge = gauge
        self.request, self.display = StopRequest(), cast(Display | None, None)
        self.step, self.train_seconds = 0, 0.0
        self._agreement: Agreement | None = None  # of the step under way
        self._unjudged: Agreement | None = None  # of the step before, where the pace is late
        self._bad_in_a_row, self._saved_step = 0, 0
        self._tracker: Tracker | None = None
        self.guard = guard
        self._begin()

    def attend(self, request: StopRequest, display: Display | None = None) -> None:
        """Say who can stop the training (nobody, unless this is called), and what shows it."""
        self.request, self.display = request, display

    def _begin(self) -> None:
        self._since = self._started = self._saved = self.clock()
        self._waited, self._images, self._earlier = 0.0, 0, self.train_seconds
        self._spent: list[float] = []

    # -- state --------------------------------------------------------------------------------

    def resume(self, say: Callable[[str], None]) -> int:
        """Take up what was saved last, and cut metrics.jsonl to it.

        Args:
            say: Shows a line: what is there but cannot be used.

        Returns:
            The step to go on with; 0 if there is nothing to go on from.

        Raises:
            UserError: What is there is of another training.
        """
        position = None if self.state is None else self.state.load(say)
        if position is not None:
            if position.step > self.pace.total_steps:
                raise UserError(
                    f"it was saved at step {position.step} of now {self.pace.total_steps}",
                    "a training cannot become shorter than it is",
                )
            self.step, self.train_seconds = position.step, position.train_seconds
            self._saved_step = self.step
        if self.run is not None and distributed.rank() == 0 and self.run.metrics.is_file():
            damaged = self.run.truncate_metrics(self.step)
            if damaged:
                say(f"{self.run.metrics}: {damaged} damaged lines are left out")
        return self.step

    def save(self) -> None:
        """Write what `resume` takes up (rank 0; the others wait)."""
        if self.state is not None:
            state = self.state
            with stages.inside("save"):
                if distributed.rank() == 0:
                    with deferred():  # also from a second Ctrl-C
                        self._guarded(lambda: state.save(Position(self.step, self.train_seconds)))
                distributed.barrier()
        self._saved, self._saved_step = self.clock(), self.step

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write something; if that fails as the place is gone, that is what is said."""
        self.guard()
        try:
            write()
        except SerError:
            self.guard()
            raise

    # -- around a step ------------------------------------------------------------------------

    def waiting(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The batches; the time that waiting for them takes is logged. Training begins here.

        Raises:
            RunFailed: The last step, too, was not finite, or is judged so.
        """
        iterator = iter(batches)
        wanted = self.tensorboard and distributed.rank() == 0
        if self.run is not None:
            if distributed.rank() == 0:
                self.guard()
                self.run.path.mkdir(parents=True, exist_ok=True)
            self._tracker = Tracker(self.run, wanted=wanted, first_step=self.step)
        self._begin()
        first, before = self.step, (stages.here.stage, stages.here.doing)
        try:
            while True:
                began = self.clock()
                stage = "step" if self.step >= first + FIRST_STEPS else "compile"
                stages.enter(stage, "waiting for images", self.step)
                try:
                    with step_part("data wait"):
                        batch = next(iterator)
                except StopIteration:
                    break
                self._waited += self.clock() - began
                stages.enter(stage)
                yield batch
            if self._unjudged is not None:
                self._fail_if_bad(self._unjudged.read())
        finally:
            stages.enter(*before)
            if self._tracker is not None:
                self._tracker.close()

    def loaded(self, spent: Sequence[float]) -> None:
        """Say what loader processes spent on this step's batch: seconds of `spent.PARTS`."""
        self._spent = [
            a + b for a, b in zip(self._spent or (0.0,) * len(spent), spent, strict=True)
        ]

    def set_lr(self) -> None:
        """Give the optimiser the learning rate of the step that begins."""
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = self.pace.lr_at(self.step)

    def agree(
        self,
        losses: Mapping[str, Tensor],
        gradient_norm: Tensor | None = None,
        *,
        images: Sequence[object] = (),
        flags: Mapping[str, bool] | None = None,
    ) -> None:
        """Agree with the other ranks on a step, and let the optimiser skip it if it is bad.

        One sum over the ranks, after the backward pass and before the optimiser.

        Args:
            losses: This rank's, scalars by name. Without one named "loss", rows have their sum.
            gradient_norm: Of this rank, a scalar.
            images: What the step is made of, for messages.
            flags: What a rank wants all to know, beside being asked to stop.
        """
        raised = {
            "preempted": self.request.preempted,
            "interrupted": self.request.interrupted,
            **(flags or {}),
        }
        if self.pace.save_seconds is not None:
            raised["due"] = distributed.rank() == 0 and self._is_due(self.pace.save_seconds)
        self._agreement = Agreement.between_ranks(
            self.step + 1, losses, gradient_norm, raised, images=images, device=self.device
        )
        if self.optimiser is not None:
            # Fused ones leave parameters and moments alone where this is 1: no wait for it.
            self.optimiser.found_inf = self._agreement.bad  # type: ignore[attr-defined]

    def _is_due(self, seconds: float) -> bool:
        return self.clock() - self._saved > seconds

    def done(self, **facts: float) -> None:
        """The optimiser has stepped: count it, log it, save it, and stop where the ranks agreed to.

        Args:
            **facts: What else the row of this step tells.

        Raises:
            Preempted, Interrupted: As asked for; what is trained is saved.
            RunFailed: Three steps in a row were not finite.
        """
        latest = self._agreement
        assert latest is not None, "agree comes before done"
        self.step += 1
        self.train_seconds = self._earlier + self.clock() - self._started
        self._images += self.pace.batch_size
        if self.display is not None:
            self.display.step(self.step)
        if self._is_logged():
            self._log(latest.read(), facts)
        judged, self._unjudged = (self._unjudged, latest) if self.pace.late else (latest, None)
        agreed = None if judged is None else judged.read()
        if agreed is not None:
            self._honour(agreed)
        if self._is_saved(agreed):
            self.save()

    def _honour(self, agreed: Agreed) -> None:
        """Fail or stop where the ranks agreed to: all read the same at the same step."""
        self._fail_if_bad(agreed)
        stops = agreed.flags["preempted"] or agreed.flags["interrupted"]
        if stops and not (self.step == self.pace.total_steps and self.pace.save_at_end):
            self.save()
            stop = Interrupted if agreed.flags["interrupted"] else Preempted
            raise stop(
                f"stopped after step {self.step} of {self.pace.total_steps}; {self.how_to_go_on}"
            )

    def _fail_if_bad(self, agreed: Agreed) -> None:
        self.judge(agreed)
        culprits = agreed.culprits
        self._bad_in_a_row = self._bad_in_a_row + 1 if culprits else 0
        if self._bad_in_a_row >= MAX_NON_FINITE:
            some = ", ".join(map(str, agreed.images[:8]))
            raise RunFailed(
                f"{culprits[0]} was not finite in {MAX_NON_FINITE} steps in a row, the last of "
                f"them step {agreed.step} (images {some}{', …' if len(agreed.images) > 8 else ''});"
                f" the last good checkpoint is kept; try {self.remedy}"
            )

    def _is_saved(self, agreed: Agreed | None) -> bool:
        if self.step == self.pace.total_steps and self.pace.save_at_end:
            return True
        if self.pace.keep_steps and self.step % self.pace.keep_steps == 0:
            return True
        if self.pace.save_steps is not None:
            return self.step % self.pace.save_steps == 0
        # What was due before the last checkpoint is no longer.
        due = agreed is not None and agreed.step > self._saved_step and agreed.flags.get("due", 0)
        return bool(due) and self.step % self.pace.save_unit == 0

    # -- rows ---------------------------------------------------------------------------------

    def _is_measured(self) -> bool:
        every = self.pace.measure_steps
        return self.measure is not None and bool(every) and self.step % every == 0

    def _is_logged(self) -> bool:
        every = self.pace.log_steps
        if every is None:
            return False
        last = self.step == self.pace.total_steps
        return last or self.step % every == 0 or self._is_measured()

    def _log(self, agreed: Agreed, facts: Mapping[str, float]) -> None:
        elapsed = max(1e-9, self.clock() - self._since)
        losses = {name: _number(value) for name, value in agreed.losses.items()}
        norm = agreed.gradient_norm
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.pace.epoch_at(self.step),
            "loss": losses["loss"] if "loss" in losses else _sum(losses.values()),
            **losses,
            "lr": self.pace.lr_at(self.step - 1),
            **({} if norm is None else {"grad_norm": _number(norm)}),
            "skipped": bool(agreed.culprits),
            "images_per_s": self._images / elapsed,
            "data_wait": min(1.0, self._waited / elapsed),
            **bottleneck.row_of(self._spent),
            **facts,
            **self.gauge(),
        }
        if self._is_measured() and self.measure is not None:
            with stages.inside("monitor"):
                if distributed.rank() == 0:
                    row |= self.measure()
                distributed.barrier()
        if distributed.rank() == 0 and self.run is not None:
            run = self.run
            self._guarded(lambda: run.append_metrics(row))
        if self._tracker is not None:
            self._tracker.row(row)
        if self.display is not None:
            self.display.row(row)
        self._since, self._waited, self._images = self.clock(), 0.0, 0
        self._spent = []


def _number(value: float) -> float | None:
    """JSON has no NaN: what is not finite is null."""
    return value if math.isfinite(value) else None


def _sum(parts: Iterable[float | None]) -> float | None:
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total

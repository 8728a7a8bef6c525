"""What a training loop does around its steps, whoever runs them: learning rate, agreement of the
ranks, skipped steps, metrics.jsonl, checkpoints, resume, and stops.

`trainer.py` pretrains; a loop that trains something else on a frozen encoder, its own or another
library's, calls `before`, `backward_done` and `done` at each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sercli import distributed
from sercli.engine import checkpoint
from sercli.engine.preemption import StopRequest
from sercli.engine.progress import TrainingProgress
from sercli.errors import Interrupted, Preempted, RunFailed, UserError
from sercli.runs.run_dir import RunDir

_T = TypeVar("_T")

MAX_NON_FINITE = 3  # in a row
SAVE_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """How long a training is, and what it says on the way.

    Attributes:
        total_steps: Its length.
        batch_size: Images a step, of all ranks.
        epoch_images: Images of an epoch.
        lr_at: Learning rate of step 0…total−1.
        log_steps: Steps between rows of metrics.jsonl.
        save_seconds: Time between checkpoints.
    """

    total_steps: int
    batch_size: int
    epoch_images: int
    lr_at: Callable[[int], float]
    log_steps: int = 20
    save_seconds: float = SAVE_SECONDS


class Stepper:
    """Keeps one training: between its steps everything that is not the step itself.

    Args:
        run: Takes metrics.jsonl and checkpoints/.
        plan: Its length and rhythm.
        module: What is trained; parameters without gradient are neither saved nor changed.
        optimiser: A fused one, which leaves parameters alone where `found_inf` is 1.
        identity: What the training is of: a checkpoint of another is refused.
        request: Set by signal handlers.
        progress: Shows rows.
    """

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        identity: Mapping[str, Any],
        request: StopRequest,
        progress: TrainingProgress,
    ) -> None:
        self.run, self.plan, self.module, self.optimiser = run, plan, module, optimiser
        self.identity, self.request, self.progress = dict(identity), request, progress
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.step = 0
        self.train_seconds = 0.0
        self._non_finite = 0
        self._values: dict[str, float] = {}
        self._since = self._started = self._saved = time.monotonic()
        self._waited, self._images = 0.0, 0

    # -- state --------------------------------------------------------------------------------

    def resume(self) -> int:
        """Take up the last checkpoint that verifies.

        Returns:
            The step to go on with; 0 without a checkpoint.

        Raises:
            UserError: The checkpoint is of another training.
        """
        state = checkpoint.load_latest(self.run, self.progress.message)
        if state is not None:
            if state.get("identity") != self.identity:
                raise UserError(
                    f"{self.run.checkpoints} holds another training",
                    "only the same model, data and settings can go on",
                    "use --restart to begin anew",
                )
            with torch.no_grad():
                for name, value in state["trained"].items():
                    self.trained[name].copy_(value)
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.train_seconds = int(state["step"]), float(state["train_seconds"])
        if distributed.rank() == 0 and self.run.metrics.is_file():
            self.run.truncate_metrics(self.step)
        return self.step

    def save(self) -> None:
        """Write a checkpoint (rank 0)."""
        if distributed.rank() == 0:
            state = {
                "step": self.step,
                "train_seconds": self.train_seconds,
                "identity": self.identity,
                "trained": {name: p.detach() for name, p in self.trained.items()},
                "optimiser": self.optimiser.state_dict(),
            }
            checkpoint.save(self.run, self.step, state)
        distributed.barrier()
        self._saved = time.monotonic()

    # -- around a step ------------------------------------------------------------------------

    def waiting(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The batches; the time that waiting for them takes is logged. Training begins here."""
        iterator = iter(batches)
        self._since = self._started = self._saved = time.monotonic()
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def before(self) -> None:
        """Give the optimiser the learning rate of the step that begins."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.lr_at(self.step)

    def backward_done(self, losses: Mapping[str, Tensor]) -> None:
        """Agree on the losses and on whether the step counts; call it before the optimiser.

        Args:
            losses: The parts of this rank's loss, scalars.
        """
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        names = [*losses, "grad_norm"]
        due = distributed.rank() == 0 and self._is_due()
        flags = (self.request.preempted, self.request.interrupted, due)
        numbers = torch.stack([value.detach().float() for value in (*losses.values(), norm)])
        packed = torch.cat([numbers, numbers.new_tensor(flags)])
        packed = distributed.sum_over_ranks(packed)
        packed[: len(names)] /= distributed.world_size()
        bad = (~packed.isfinite().all()).float()
        self.optimiser.found_inf = bad  # type: ignore[attr-defined]
        values = packed.tolist()
        self._values = dict(zip((*names, "preempted", "interrupted", "due"), values, strict=True))

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved > self.plan.save_seconds

    def done(self, images: Sequence[object]) -> None:
        """The optimiser has stepped: count it, log it, and stop where the ranks agreed to.

        Args:
            images: What the step was made of, for messages.

        Raises:
            Preempted, Interrupted: As asked for; a checkpoint is written.
            RunFailed: Three steps in a row were not finite.
        """
        self.step += 1
        self._images += self.plan.batch_size
        self.progress.step(self.step)
        self._fail_if_not_finite(images)
        last = self.step == self.plan.total_steps
        if last or self.step % self.plan.log_steps == 0:
            self._log()
        stops = self._values["preempted"] or self._values["interrupted"]
        if last or stops or self._values["due"]:
            now = time.monotonic()
            self.train_seconds += now - self._started
            self._started = now
            self.save()
        if stops and not last:
            stop = Interrupted if self._values["interrupted"] else Preempted
            raise stop(
                f"stopped after step {self.step} of {self.plan.total_steps}; "
                "the same command goes on from there"
            )

    def _fail_if_not_finite(self, images: Sequence[object]) -> None:
        culprits = [name for name, value in self._values.items() if value - value != 0]
        self._non_finite = self._non_finite + 1 if culprits else 0
        if self._non_finite >= MAX_NON_FINITE:
            some = ", ".join(map(str, images[:8]))
            raise RunFailed(
                f"{culprits[0]} was not finite in {MAX_NON_FINITE} steps in a row, the last of "
                f"them step {self.step} (images {some}); the last good checkpoint is kept; "
                "try a lower learning rate"
            )

    def _log(self) -> None:
        now = time.monotonic()
        elapsed = max(1e-9, now - self._since)
        losses = {
            name: value if value - value == 0 else None
            for name, value in self._values.items()
            if name not in ("preempted", "interrupted", "due")
        }
        parts = [value for name, value in losses.items() if name != "grad_norm"]
        total = None if None in parts else sum(value for value in parts if value is not None)
        row = {
            "step": self.step,
            "epoch": self.step * self.plan.batch_size / self.plan.epoch_images,
            "loss": total,
            **losses,
            "lr": self.plan.lr_at(self.step - 1),
            "skipped": self._non_finite > 0,
            "images_per_s": self._images / elapsed,
            "data_wait": min(1.0, self._waited / elapsed),
        }
        if distributed.rank() == 0:
            self.run.append_metrics(row)
        self.progress.row(row)
        self._since, self._waited, self._images = now, 0.0, 0

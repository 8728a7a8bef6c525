"""The training loop: reads top to bottom, knows no method, add-on or data set by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sercli import distributed
from sercli.data.loading import default_workers, load_rows
from sercli.data.source import ImageSource
from sercli.encoders.files import require_finite
from sercli.encoders.loading import encoder_metadata, write_encoder
from sercli.encoders.vit import Encoder
from sercli.engine import checkpoint
from sercli.engine.optimiser import clip_gradients, make_optimiser, set_schedule
from sercli.engine.preemption import StopRequest
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import Runtime
from sercli.engine.stepper import MAX_NON_FINITE
from sercli.engine.tracking import Tracker
from sercli.errors import Interrupted, Preempted, RunFailed, UserError
from sercli.objective import Losses, Objective
from sercli.precision import at_least_fp32
from sercli.recipe.schedule import Moment, Schedule
from sercli.recipe.schema import Recipe
from sercli.runs.run_dir import RunDir
from sercli.views.making import ViewMaker, Views
from sercli.views.reading import Samples, TrainingImages, batches

MAX_UNREADABLE = 0.001  # share of the data set

# Measures the encoder every few epochs, on rank 0: returns numbers for the metrics row.
Monitor = Callable[[Encoder], dict[str, float]]


@dataclass
class _Clock:
    """Time since the last logged row, and how much of it was spent waiting for data."""

    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0

    def rates(self) -> dict[str, float]:
        elapsed = max(1e-9, time.perf_counter() - self.since)
        return {"images_per_s": self.images / elapsed, "data_wait": self.waited / elapsed}


@dataclass(frozen=True)
class _StepReport:
    """What a step leaves for the host to read one step later, when it costs no wait.

    `values`: mean total, invariance and equivariance loss; gradient norm; 1 if not finite; then
    how many ranks were preempted, interrupted, or had too many unreadable images.
    """

    step: int
    values: Tensor
    ready: Any
    indices: tuple[int, ...]

    def read(self) -> list[float]:
        if self.ready is not None:
            self.ready.synchronize()
        numbers: list[float] = self.values.tolist()
        return numbers


class Trainer:
    """One pretraining run, from its last checkpoint (or its start) to its end.

    Args:
        run: The run directory.
        recipe: Resolved.
        source: Training images.
        runtime: Device and precision.
        monitor: Called every `monitor_steps`, and at the end.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        source: ImageSource,
        runtime: Runtime,
        *,
        monitor: Monitor,
    ) -> None:
        self.run, self.recipe, self.source, self.runtime = run, recipe, source, runtime
        self.monitor = monitor
        self.schedule = Schedule.of(recipe.train, len(source))
        self.objective = Objective(recipe).to(runtime.device)
        plan = self.objective.plan
        self.part = plan.split(recipe.train.batch_size)
        self.images = TrainingImages(source, recipe.views, plan, seed=recipe.seed)
        self.make_views = ViewMaker(recipe.views, plan, self.part, seed=recipe.seed)
        self.optimiser = make_optimiser(self.objective, recipe.train)
        self.parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        if _wants_compile(recipe.train.compile, runtime):
            for block in self.objective.blocks():
                block.compile()
        self.module: nn.Module = self.objective
        if distributed.active():
            # Every rank works out the same buffers: none is sent.
            self.module = DistributedDataParallel(
                self.objective, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.step = 0
        self.train_seconds = 0.0
        self.non_finite = 0
        self.unreadable: set[str] = set()

    # -- state --------------------------------------------------------------------------------

    def resume(self, warn: Callable[[str], None]) -> None:
        """Take up the last checkpoint that verifies; without one, start anew.

        Raises:
            UserError: The checkpoint does not fit the recipe, or holds what is not finite.
        """
        state = checkpoint.load_latest(self.run, warn)
        if state is not None:
            try:
                require_finite(_tensors_of(state), str(self.run.checkpoints))
                self.objective.load_state_dict(state["objective"])
                self.optimiser.load_state_dict(state["optimiser"])
                self.step, self.train_seconds = int(state["step"]), float(state["train_seconds"])
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"the checkpoint in {self.run.checkpoints} does not fit recipe.yaml",
                    str(error).splitlines()[0],
                    "the recipe of a run must not be edited",
                ) from error
        if distributed.rank() == 0:
            self.run.truncate_metrics(self.step)

    def save(self) -> None:
        """Write a checkpoint and the encoder (rank 0)."""
        if distributed.rank() == 0:
            encoder = self.objective.encoder
            metadata = encoder_metadata(self.recipe.model, encoder, step=self.step)
            state = {
                "step": self.step,
                "train_seconds": self.train_seconds,
                "encoder": metadata,
                "objective": self.objective.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            }
            checkpoint.save(self.run, self.step, state)
            teacher = self.objective.teacher
            keep = teacher is not None and self.objective.method.evaluates_teacher
            write_encoder(
                self.run.encoder,
                metadata,
                student=encoder,
                teacher=teacher.encoder if keep and teacher is not None else None,
            )
        distributed.barrier()

    # -- the loop -----------------------------------------------------------------------------

    def train(self, request: StopRequest, progress: TrainingProgress) -> None:
        """Train to the end of the schedule.

        Raises:
            Preempted: A signal came; a checkpoint is written.
            Interrupted: Ctrl-C came; a checkpoint is written.
            RunFailed: Three non-finite steps in a row, or too many unreadable images.
        """
        steps = range(self.step, self.schedule.total_steps)
        workers = self.recipe.data.workers
        if workers is None:
            workers = default_workers(self.runtime.ranks_here)
        tickets = batches(
            len(self.source),
            self.part,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            steps=steps,
        )
        loader = load_rows(
            self.images,
            tickets,
            rows=len(self.part.positions),
            workers=workers,
            device=self.runtime.device,
        )
        started, before = time.perf_counter(), self.train_seconds
        wanted = self.recipe.train.tensorboard and distributed.rank() == 0
        self.tracker = Tracker(self.run, wanted=wanted, first_step=self.step)
        clock = _Clock()
        pending: _StepReport | None = None
        with contextlib.closing(loader):
            for step in steps:
                waiting = time.perf_counter()
                samples = Samples.of(next(loader))
                clock.waited += time.perf_counter() - waiting
                report = self._train_step(step, samples, request, progress)
                clock.images += self.recipe.train.batch_size
                self.step = step + 1
                self.train_seconds = before + time.perf_counter() - started
                progress.step(self.step)
                if self._due(self.recipe.train.log_steps) or self._monitor_due():
                    clock = self._log(report, clock, progress)
                if pending is not None:
                    self._honour(pending)
                pending = report
                if self._due(self.schedule.checkpoint_steps):
                    self.save()
        if pending is not None:
            self._fail_if_bad(pending)
        self.tracker.close()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.schedule.total_steps

    def _monitor_due(self) -> bool:
        every = self.schedule.monitor_steps
        return bool(every) and self.step % every == 0

    def _train_step(
        self,
        step: int,
        samples: Samples,
        request: StopRequest,
        progress: TrainingProgress,
    ) -> _StepReport:
        too_many = self._note_unreadable(samples, progress)
        views = self.make_views(samples, step, self.runtime.device)
        moment = self.schedule.moment(step)
        set_schedule(
            self.optimiser,
            lr=self.schedule.lr_at(step),
            weight_decay=self.schedule.weight_decay_at(step),
        )
        self.objective.move_teacher(moment, when="before")
        losses = self._forward_backward(views, moment)
        held = {p: p.grad for p in self.objective.method.held_parameters(moment)}
        for parameter in held:
            parameter.grad = None
        norm = clip_gradients(self.parameters, self.recipe.train)
        mean = distributed.sum_over_ranks(self._packed(losses, norm, request, too_many))
        mean[:4] /= distributed.world_size()
        bad = (~torch.isfinite(mean[:4]).all()).to(mean.dtype)
        # Fused AdamW leaves parameters and moments alone where `found_inf` is 1: no wait for it.
        self.optimiser.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        self.optimiser.step()
        for parameter, gradient in held.items():  # DDP's buckets are views of the gradients
            parameter.grad = gradient
        self.objective.move_teacher(moment, when="after")
        return self._report(torch.cat([mean[:4], bad[None], mean[4:]]), samples.indices)

    def _forward_backward(self, views: Views, moment: Moment) -> Losses:
        self.optimiser.zero_grad(set_to_none=not distributed.active())
        with self.runtime.autocast():
            losses: Losses = self.module(views, moment)
        losses.total.backward()
        return losses

    def _packed(self, losses: Losses, norm: Tensor, request: StopRequest, too_many: bool) -> Tensor:
        """Everything the ranks have to agree on, as one small tensor."""
        device = self.runtime.device
        equivariance = losses.equivariance
        if equivariance is None:
            equivariance = torch.zeros((), device=device)
        wide = at_least_fp32(losses.total)
        numbers = torch.stack(
            [x.detach().to(wide) for x in (losses.total, losses.invariance, equivariance, norm)]
        )
        flags = torch.tensor(
            [request.preempted, request.interrupted, too_many], dtype=wide, device=device
        )
        return torch.cat([numbers, flags])

    def _report(self, values: Tensor, indices: tuple[int, ...]) -> _StepReport:
        ready = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        return _StepReport(self.step, values, ready, indices)

    # -- what a step said ---------------------------------------------------------------------

    def _honour(self, report: _StepReport) -> None:
        """Stop where the ranks agreed to: all read the same report at the same step."""
        *_, preempted, interrupted, _unreadable = self._fail_if_bad(report)
        if preempted or interrupted:
            self.save()
            stop = Interrupted if interrupted else Preempted
            raise stop(
                f"stopped after step {self.step} of {self.schedule.total_steps}; "
                f"continue with: ser pretrain --resume {self.run.path}"
            )

    def _fail_if_bad(self, report: _StepReport) -> list[float]:
        numbers = report.read()
        if numbers[7]:
            raise RunFailed(
                f"{len(self.unreadable)} of {len(self.source)} images cannot be read "
                f"(at most {MAX_UNREADABLE:.1%} may be): {min(self.unreadable, default='')}"
            )
        self.non_finite = self.non_finite + 1 if numbers[4] else 0
        if self.non_finite >= MAX_NON_FINITE:
            names = ("loss", "loss_inv", "loss_equiv", "gradient norm")
            culprit = next(n for n, v in zip(names, numbers, strict=False) if v - v != 0)
            if culprit == "loss":
                parts = zip(names[1:3], numbers[1:3], strict=True)
                culprit = next((n for n, v in parts if v - v != 0), culprit)
            some = ", ".join(str(i) for i in report.indices[:8])
            raise RunFailed(
                f"{culprit} was not finite in {MAX_NON_FINITE} steps in a row, the last of them "
                f"step {report.step + 1} (images {some}, …); "
                "the last good checkpoint is kept; try a lower train.lr or train.clip_norm"
            )
        return numbers

    def _note_unreadable(self, samples: Samples, progress: TrainingProgress) -> bool:
        for message in samples.unreadable:
            if message not in self.unreadable:
                self.unreadable.add(message)
                progress.message(f"warning: {message}; another image takes its place")
        return len(self.unreadable) > MAX_UNREADABLE * len(self.source)

    def _log(self, report: _StepReport, clock: _Clock, progress: TrainingProgress) -> _Clock:
        total, invariance, equivariance, norm, bad = report.read()[:5]
        step = report.step
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.schedule.steps_per_epoch,
            "loss": _number(total),
            "loss_inv": _number(invariance),
            **({"loss_equiv": _number(equivariance)} if self.objective.addon is not None else {}),
            "lr": self.schedule.lr_at(step),
            "grad_norm": _number(norm),
            "skipped": bool(bad),
            **clock.rates(),
        }
        if self.objective.teacher is not None:
            moment = self.schedule.moment(step)
            row["momentum"] = self.objective.method.momentum_at(moment.progress)
        if self._monitor_due():
            if distributed.rank() == 0:
                row |= self.monitor(self.objective.evaluated_encoder)
            distributed.barrier()
        if distributed.rank() == 0:
            self.run.append_metrics(row)
            self.tracker.row(row)
        progress.row(row)
        return _Clock()


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a training checkpoint goes on from: parameters, buffers and the optimiser's moments."""
    moments = {
        f"the optimiser's {name} of parameter {index}": value
        for index, values in state["optimiser"]["state"].items()
        for name, value in values.items()
    }
    return {**state["objective"], **moments}


def _number(value: float) -> float | None:
    """JSON has no NaN: what is not finite is null."""
    return value if value - value == 0 else None


def _wants_compile(choice: str, runtime: Runtime) -> bool:
    return choice == "on" or (choice == "auto" and runtime.device.type == "cuda")

"""The step of pretraining: reads top to bottom, knows no method, add-on or data set by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor

from sercli import stages
from sercli.data.cores import most_loaders
from sercli.data.loading import default_workers, load_rows
from sercli.data.source import ImageSource
from sercli.encoders.vit import Encoder
from sercli.engine.accumulation import Gradients, require_images
from sercli.engine.agreement import Agreed
from sercli.engine.compiling import compile_step
from sercli.engine.memory import Peak, saying_what_helps
from sercli.engine.optimiser import clip_gradients, make_optimiser, set_schedule
from sercli.engine.pace import Pace
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import Runtime
from sercli.engine.state import PretrainingState
from sercli.engine.stepper import Stepper
from sercli.errors import RunFailed
from sercli.objective import Losses, Objective
from sercli.parts import step_part
from sercli.recipe.schedule import Moment, Schedule
from sercli.recipe.schema import Recipe
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from sercli.views.making import ViewMaker, Views
from sercli.views.reading import Samples, TrainingImages, batches

MAX_UNREADABLE = 0.001  # share of the data set

# Measures the encoder every few epochs, on rank 0: returns numbers for the metrics row.
Monitor = Callable[[Encoder], dict[str, float]]


class Trainer:
    """One pretraining run, from its last checkpoint (or its start) to its end.

    Args:
        run: Where checkpoints, metrics and the encoder are written, and where it goes on from.
        recipe: Resolved.
        source: Training images.
        runtime: Device and precision.
        monitor: Called every `monitor_steps`.
        guard: Called on rank 0 before anything is written; raises where that may no longer be.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        source: ImageSource,
        runtime: Runtime,
        *,
        monitor: Monitor,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.recipe, self.source, self.runtime = run, recipe, source, runtime
        self.schedule = Schedule.of(recipe.train, len(source))
        self.objective = Objective(recipe).to(runtime.device)
        plan = self.objective.plan
        self.part = plan.split(recipe.train.batch_size)
        require_images(recipe.train, self.part)
        self.images = TrainingImages(
            source, recipe.views, plan, seed=recipe.seed, decoder=recipe.data.decoder
        )
        self.make_views = ViewMaker(
            recipe.views,
            plan,
            self.part,
            seed=recipe.seed,
            mean=recipe.data.mean,
            std=recipe.data.std,
            prepare=self.objective.prepare,
        )
        self.optimiser = make_optimiser(self.objective, recipe.train)
        self.parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        self.gradients = Gradients(
            self.objective, accumulate=recipe.train.accumulate, autocast=runtime.autocast
        )
        self.unreadable: set[str] = set()
        self.peak = Peak(runtime.device)
        self.stepper = self._stepper(monitor, guard)

    def _stepper(self, monitor: Monitor, guard: Callable[[], None]) -> Stepper:
        """What keeps the run between its steps."""
        schedule, train = self.schedule, self.recipe.train
        pace = Pace(
            total_steps=schedule.total_steps,
            batch_size=train.batch_size,
            epoch_at=lambda step: step / schedule.steps_per_epoch,
            lr_at=schedule.lr_at,
            log_steps=train.log_steps,
            measure_steps=schedule.monitor_steps,
            save_steps=schedule.checkpoint_steps,
            keep_steps=schedule.keep_steps,
            late=True,
        )
        return Stepper(
            pace,
            PretrainingState(
                self.run,
                self.recipe,
                self.objective,
                self.optimiser,
                keep_steps=schedule.keep_steps,
            ),
            run=self.run,
            optimiser=self.optimiser,
            how_to_go_on=f"continue with: ser pretrain --resume {self.run.path}",
            remedy="a lower train.lr or train.clip_norm",
            measure=lambda: self._monitored(monitor),
            gauge=self.peak.take,
            judge=self._fail_if_unreadable,
            tensorboard=train.tensorboard,
            guard=guard,
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.stepper.step

    @property
    def train_seconds(self) -> float:
        """What they took, in all attempts."""
        return self.stepper.train_seconds

    @property
    def workers(self) -> int:
        """Loader processes of this rank."""
        workers = self.recipe.data.workers
        if workers is None:
            workers = default_workers(self.runtime.ranks_here)
        return min(workers, most_loaders())  # of a run that a larger machine started

    def resume(self, say: Callable[[str], None]) -> None:
        """Take up the last checkpoint that verifies; without one, start anew.

        Raises:
            UserError: The checkpoint does not fit the recipe, holds what is not finite, or is of a
                longer run; or there were checkpoints, and none can be used.
        """
        self.stepper.resume(say)

    def train(
        self,
        request: StopRequest,
        progress: TrainingProgress,
        *,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to the end of the schedule; `after_step` is called after each step.

        Raises:
            Preempted: A signal came; a checkpoint is written.
            Interrupted: Ctrl-C came; a checkpoint is written.
            RunFailed: Three non-finite steps in a row, or too many unreadable images.
        """
        self.stepper.attend(request, progress)
        if _wants_compile(self.recipe.train.compile, self.runtime):
            with stages.inside("compile", "compiling"):
                compile_step(
                    self.objective,
                    self.make_views,
                    self.runtime,
                    accumulate=self.recipe.train.accumulate,
                    say=progress.message,
                )
        self.peak.forget()
        with self._samples() as loaded:
            for samples in self.stepper.waiting(loaded):
                self.stepper.loaded(samples.spent)
                self._note_unreadable(samples, progress)
                step = self.stepper.step
                with saying_what_helps(
                    self.recipe, self.run.path, step + 1, len(self.part.positions)
                ):
                    self._train_step(step, samples)
                self.stepper.done(**self._facts(step))
                after_step()

    @contextlib.contextmanager
    def _samples(self) -> Iterator[Iterator[Samples]]:
        """This rank's samples of each step that is left."""
        tickets = batches(
            len(self.source),
            self.part,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            steps=range(self.stepper.step, self.schedule.total_steps),
        )
        loader = load_rows(
            self.images,
            tickets,
            rows=len(self.part.positions),
            workers=self.workers,
            device=self.runtime.device,
        )
        with contextlib.closing(loader):
            yield map(Samples.of, loader)

    def _train_step(self, step: int, samples: Samples) -> None:
        with step_part("views"):
            views = self.make_views(samples, step, self.runtime.device)
        moment = self.schedule.moment(step)
        set_schedule(
            self.optimiser,
            lr=self.schedule.lr_at(step),
            weight_decay=self.schedule.weight_decay_at(step),
        )
        self.objective.move_teacher(moment, when="before")
        losses = self._forward_backward(views, moment)
        self._agree_and_move(samples, losses, moment)

    @step_part("optimiser, agreement")
    def _agree_and_move(self, samples: Samples, losses: Losses, moment: Moment) -> None:
        """The ranks agree on what they found, and the weights move."""
        held = {p: p.grad for p in self.objective.method.held_parameters(moment)}
        for parameter in held:
            parameter.grad = None
        norm = clip_gradients(self.parameters, self.recipe.train)
        self.stepper.agree(
            _named(losses),
            norm,
            images=samples.indices,
            flags={"unreadable": len(self.unreadable) > MAX_UNREADABLE * len(self.source)},
        )
        self.optimiser.step()
        for parameter, gradient in held.items():  # DDP's buckets are views of the gradients
            parameter.grad = gradient
        self.objective.move_teacher(moment, when="after")

    def _forward_backward(self, views: Views, moment: Moment) -> Losses:
        return self.gradients(views, moment)

    def _monitored(self, monitor: Monitor) -> dict[str, float]:
        numbers = monitor(self.objective.evaluated_encoder)
        self.peak.forget()  # the monitor's memory is not a step's
        return numbers

    def _facts(self, step: int) -> dict[str, float]:
        """What else the row of a step says."""
        if self.objective.teacher is None:
            return {}
        moment = self.schedule.moment(step)
        return {"momentum": self.objective.method.momentum_at(moment.progress)}

    def _note_unreadable(self, samples: Samples, progress: TrainingProgress) -> None:
        for message in samples.unreadable:
            if message not in self.unreadable:
                self.unreadable.add(message)
                progress.message(f"warning: {message}; another image takes its place")

    def _fail_if_unreadable(self, agreed: Agreed) -> None:
        if agreed.flags["unreadable"]:
            raise RunFailed(
                f"{len(self.unreadable)} of {len(self.source)} images cannot be read "
                f"(at most {MAX_UNREADABLE:.1%} may be): {min(self.unreadable, default='')}"
            )


def _named(losses: Losses) -> dict[str, Tensor]:
    """The losses as rows call them."""
    parts = {"loss": losses.total, "loss_inv": losses.invariance}
    return parts if losses.equivariance is None else {**parts, "loss_equiv": losses.equivariance}


def _wants_compile(choice: str, runtime: Runtime) -> bool:
    return choice == "on" or (choice == "auto" and runtime.device.type == "cuda")

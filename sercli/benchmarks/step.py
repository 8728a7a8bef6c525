"""A training step by itself, from pictures in memory: how fast, and how near the device's best."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli.benchmarks.measure import seconds_of, synchronise
from sercli.engine.accumulation import Gradients, require_images
from sercli.engine.compiling import compile_step
from sercli.engine.flops import count_flops
from sercli.engine.optimiser import clip_gradients, make_optimiser, set_schedule
from sercli.engine.runtime import Runtime
from sercli.methods.base import TeacherMoves
from sercli.objective import Losses, Objective
from sercli.recipe.schedule import Moment, Schedule
from sercli.recipe.schema import Recipe
from sercli.views.colours import NUM_UNIFORMS
from sercli.views.making import ViewMaker, Views
from sercli.views.reading import Samples


@dataclass(frozen=True)
class StepSpeed:
    """How fast steps follow each other.

    Attributes:
        seconds: Time of a step, mean over those that were timed.
        images_per_s: Images a second; one counts once, whatever its number of views.
        flops: Counted FLOPs of a step, with b₂ on the unscaled grid.
        peak_bytes: Most memory that tensors took on a CUDA device; None elsewhere.
    """

    seconds: float
    images_per_s: float
    flops: float
    peak_bytes: int | None

    @property
    def flops_per_s(self) -> float:
        """What counts as work; over the device's own matmul rate it is the utilisation (MFU)."""
        return self.flops / self.seconds


def measure_steps(
    recipe: Recipe, runtime: Runtime, *, steps: int, warmup: int, compiled: bool = False
) -> StepSpeed:
    """Time training steps back to back, without waiting between them.

    Args:
        recipe: Its `train.batch_size` images are this process's.
        runtime: The device that steps run on, and the precision of their products.
        steps: Steps that are timed, in one go.
        warmup: Steps before those; compilation happens in them.
        compiled: Compile the encoder's blocks.
    """
    timer = StepTimer(recipe, runtime, compiled=compiled)
    device = runtime.device
    for _ in range(warmup):
        timer.take()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(steps):
        timer.take()
    synchronise(device)
    seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    flops = count_flops(recipe).step
    return StepSpeed(seconds, recipe.train.batch_size / seconds, flops, peak)


def matmul_flops_per_s(
    device: torch.device,
    *,
    side: int = 8192,
    repeats: int = 20,
    dtype: torch.dtype | None = torch.bfloat16,
) -> float:
    """FLOP/s of square products on a device: the ceiling that a step is held against.

    The best of three rounds of `repeats` products of side × side matrices, in the `dtype` that a
    step has its products in (None: fp32).
    """
    one, two = torch.randn(2, side, side, device=device).to(dtype or torch.float32)
    torch.mm(one, two)
    best = float("inf")
    for _ in range(3):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(one, two)
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * side**3 / best


class StepTimer:
    """Takes training steps on pictures of noise, from samples as the loader hands them over.

    Args:
        recipe: What is trained; its `train.batch_size` images are this process's.
        runtime: The device that steps run on, and the precision of their products.
        compiled: Compile the encoder's blocks.
    """

    def __init__(self, recipe: Recipe, runtime: Runtime, *, compiled: bool = False) -> None:
        self.recipe, self.runtime = recipe, runtime
        self.objective = Objective(recipe).to(runtime.device)
        plan = self.objective.plan
        self.part = plan.split(recipe.train.batch_size)
        require_images(recipe.train, self.part)
        accumulate = recipe.train.accumulate
        self.gradients = Gradients(self.objective, accumulate=accumulate, autocast=runtime.autocast)
        self.make_views = ViewMaker(
            recipe.views,
            plan,
            self.part,
            seed=recipe.seed,
            mean=recipe.data.mean,
            std=recipe.data.std,
            prepare=self.objective.prepare,
        )
        if compiled:
            compile_step(
                self.objective,
                self.make_views,
                runtime,
                accumulate=accumulate,
                say=lambda _: None,
            )
        self.optimiser = make_optimiser(self.objective, recipe.train)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.schedule = Schedule.of(recipe.train, 100 * recipe.train.batch_size)
        draws = torch.Generator().manual_seed(0)
        crops, rows = plan.crops(paired=False), len(self.part.positions)
        self.samples = Samples(
            crops=[self._picture(rows, spec.size, draws) for spec in crops],
            uniforms=torch.rand(rows, len(crops), NUM_UNIFORMS + 1, generator=draws),
            boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(rows, len(crops), 1),
            turns=torch.zeros(rows, len(crops), dtype=torch.long),
            indices=self.part.positions,
        )
        self.done = 0

    def _picture(self, rows: int, side: int, draws: torch.Generator) -> Tensor:
        """Noise in memory as the loader's, whose slots are page-locked for a CUDA device."""
        noise = torch.randint(256, (rows, 3, side, side), generator=draws, dtype=torch.uint8)
        return noise.pin_memory() if self.runtime.device.type == "cuda" else noise

    def step(self) -> float:
        """A step by itself; returns seconds."""
        return seconds_of(self.take, self.runtime.device)[0]

    def take(self) -> None:
        """Views, forward, backward, optimiser and teacher; does not wait for the device."""
        step, self.done = self.done, self.done + 1
        moment = self.schedule.moment(step)
        views = self.make_views(self.samples, step, self.runtime.device)
        set_schedule(
            self.optimiser,
            lr=self.schedule.lr_at(step),
            weight_decay=self.schedule.weight_decay_at(step),
        )
        self._move_teacher(moment, when="before")
        self._losses(views, moment)
        clip_gradients(self.parameters, self.recipe.train)
        self.optimiser.step()
        self._move_teacher(moment, when="after")

    def _losses(self, views: Views, moment: Moment) -> Losses:
        """Forward and backward."""
        return self.gradients(views, moment)

    def _move_teacher(self, moment: Moment, *, when: TeacherMoves) -> None:
        self.objective.move_teacher(moment, when=when)

"""`ser bench addons`: what each add-on adds to a training step, against none, within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sercli.engine.flops import count_flops
from sercli.engine.optimiser import clip_gradients, make_optimiser, set_schedule
from sercli.engine.runtime import Runtime
from sercli.objective import Objective
from sercli.photometrics import NUM_UNIFORMS
from sercli.recipe import Recipe, Schedule
from sercli.views import Samples, ViewMaker


@dataclass(frozen=True)
class AddonRow:
    """One variant, relative to the first one.

    Attributes:
        name: As given.
        parameters: Trainable parameters beyond the first variant's.
        flops: Counted FLOPs of a step, relative.
        seconds: Median step.
        ratio: Median over rounds of (step / step of the first variant in the same round).
        low, high: Quartiles of that.
    """

    name: str
    parameters: int
    flops: float
    seconds: float
    ratio: float
    low: float
    high: float


def run(
    recipes: Sequence[tuple[str, Recipe]],
    *,
    runtime: Runtime,
    rounds: int,
    report: Callable[[int], None],
) -> list[AddonRow]:
    """Time the variants in turn, a step each a round, so that they share the machine's moods.

    Args:
        recipes: Name and recipe of each variant; the first is the reference.
        runtime: Device and precision.
        rounds: Timed rounds, after one to warm up.
        report: Called after every round with its number.
    """
    steppers = [Stepper(recipe, runtime) for _, recipe in recipes]
    times: list[list[float]] = []
    for number in range(rounds + 1):
        # Every other round runs backwards: whatever drifts within a round hits all alike.
        order = range(len(steppers)) if number % 2 else range(len(steppers) - 1, -1, -1)
        measured = {which: steppers[which].step() for which in order}
        if number:
            times.append([measured[which] for which in range(len(steppers))])
        report(number)
    counted = [count_flops(recipe) for _, recipe in recipes]
    rows = []
    for which, (name, _) in enumerate(recipes):
        ratios = [each[which] / each[0] for each in times]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        rows.append(
            AddonRow(
                name,
                counted[which].parameters - counted[0].parameters,
                counted[which].step / counted[0].step,
                statistics.median(each[which] for each in times),
                statistics.median(ratios),
                low,
                high,
            )
        )
    return rows


class Stepper:
    """Takes training steps on pictures of noise, from samples as the loader hands them over.

    Args:
        recipe: Of the variant.
        runtime: Device and precision.
    """

    def __init__(self, recipe: Recipe, runtime: Runtime) -> None:
        self.recipe, self.runtime = recipe, runtime
        self.objective = Objective(recipe).to(runtime.device)
        plan = self.objective.plan
        self.part = plan.split(recipe.train.batch_size)
        self.make_views = ViewMaker(recipe.views, plan, self.part, seed=recipe.seed)
        self.optimiser = make_optimiser(self.objective, recipe.train)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.schedule = Schedule.of(recipe.train, 100 * recipe.train.batch_size)
        draws = torch.Generator().manual_seed(0)
        crops, rows = plan.crops(paired=False), len(self.part.positions)
        self.samples = Samples(
            crops=[
                torch.randint(
                    256, (rows, 3, spec.size, spec.size), generator=draws, dtype=torch.uint8
                )
                for spec in crops
            ],
            uniforms=torch.rand(rows, len(crops), NUM_UNIFORMS + 1, generator=draws),
            boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(rows, len(crops), 1),
            turns=torch.zeros(rows, len(crops), dtype=torch.long),
            indices=self.part.positions,
        )
        self.done = 0

    def step(self) -> float:
        """Views, forward, backward, optimiser and teacher; returns seconds."""
        step, self.done = self.done, self.done + 1
        moment = self.schedule.moment(step)
        _synchronise(self.runtime.device)
        start = time.perf_counter()
        views = self.make_views(self.samples, step, self.runtime.device)
        set_schedule(
            self.optimiser,
            lr=self.schedule.lr_at(step),
            weight_decay=self.schedule.weight_decay_at(step),
        )
        self.optimiser.zero_grad()
        self.objective.move_teacher(moment, when="before")
        with self.runtime.autocast():
            losses = self.objective(views, moment)
        losses.total.backward()
        clip_gradients(self.parameters, self.recipe.train)
        self.optimiser.step()
        self.objective.move_teacher(moment, when="after")
        _synchronise(self.runtime.device)
        return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

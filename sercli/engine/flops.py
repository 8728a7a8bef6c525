"""Training FLOPs, counted on shapes alone: the run's, and those of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sercli import distributed
from sercli.actions import GeometricAction
from sercli.addons.none import NoneConfig
from sercli.objective import Objective
from sercli.recipe.schema import Recipe
from sercli.views import colours as photometrics
from sercli.views.making import ViewMaker, ViewParameters, Views
from sercli.views.plan import ViewPlan


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of matrix products and convolutions in one step of the global batch.

    Attributes:
        step: Of the run, with b₂ on its mean grid, the unscaled one.
        none: Of the same recipe without the add-on: ordinary ViT, no b₂, no views of the add-on's.
        weight0: Of its λ = 0 control: the same invariance views, b₂ and delayed [CLS], but no term.
        parameters: Trainable parameters.
    """

    step: float
    none: float
    weight0: float
    parameters: int

    @property
    def ratio_none(self) -> float:
        return self.step / self.none

    @property
    def ratio_weight0(self) -> float:
        return self.step / self.weight0

    def to_json(self) -> dict[str, float]:
        return {
            "step": self.step,
            "step_none": self.none,
            "step_weight0": self.weight0,
            "ratio_none": self.ratio_none,
            "ratio_weight0": self.ratio_weight0,
        }


def count_flops(recipe: Recipe) -> StepFlops:
    """Count a step of a recipe and of its two references, as one process would compute them."""
    with distributed.alone():
        full, parameters = _objective(recipe)
        step = _count(full, _views(recipe, full.plan))
        if full.addon is None:
            return StepFlops(step, step, step, parameters)
        control, _ = _objective(recipe)
        control.student.addon = None
        without, _ = _objective(without_addon(recipe))
        return StepFlops(
            step=step,
            none=_count(without, _views(recipe, without.plan)),
            weight0=_count(control, _views(recipe, control.plan)),
            parameters=parameters,
        )


def without_addon(recipe: Recipe) -> Recipe:
    """The same recipe without its add-on, and without the views that only the add-on has."""
    none = NoneConfig(name="none")
    views = recipe.views
    if views.setting not in none.view_settings:
        views = views.model_copy(update={"setting": none.view_settings[0], "local": None})
    return recipe.model_copy(update={"addon": none, "views": views})


def _objective(recipe: Recipe) -> tuple[Objective, int]:
    with torch.device("meta"):
        objective = Objective(recipe)
    return objective, sum(p.numel() for p in objective.parameters() if p.requires_grad)


def _views(recipe: Recipe, plan: ViewPlan) -> Views:
    """Views of the sizes of a step, without values."""
    request = plan.request
    if request.paired is not None:
        unscaled = replace(request.paired, scale=(1.0, 1.0), aspect=(1.0, 1.0))
        plan = replace(plan, request=replace(request, paired=unscaled))
    part = plan.split(recipe.train.batch_size)
    actions = ViewMaker(recipe.views, plan, part, seed=recipe.seed).actions(0)
    batch, patch = len(part.positions), plan.patch_size
    element = GeometricAction.identity(batch, plan.grid(0))
    nothing = photometrics.draw(torch.zeros(batch, photometrics.NUM_UNIFORMS), None)
    parameters = ViewParameters(torch.zeros(batch, 4), element.hflip, element.rot90, nothing)

    def blank(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, 3, height, width, device="meta")

    return Views(
        standard=tuple(blank(part.num_standard, s.size, s.size) for s in plan.specs),
        paired=tuple(
            blank(part.total_paired, a.grid[0] * patch, a.grid[1] * patch) for a in actions
        ),
        actions=actions,
        pairs=plan.pairs,
        parameters=(parameters,) * plan.num_views,
        positions=torch.tensor(part.positions),
        standard_counts=part.standard_counts,
        paired_counts=part.paired_counts,
        paired_rows=part.paired_rows,
        generator_seed=0,
    )


def _count(objective: Objective, views: Views) -> float:
    with FlopCounterMode(display=False) as counter:
        objective(views).total.backward()
    return float(counter.get_total_flops())

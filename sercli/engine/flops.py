"""Training FLOPs, counted on shapes alone: the run's, and those of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sercli import distributed
from sercli.addons import NoneConfig
from sercli.encoder import cls_after_of
from sercli.objective import Objective
from sercli.recipe import Recipe
from sercli.views import PairedViews, ViewMaker, Views, partition


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of matrix products and convolutions in one step of the global batch.

    Attributes:
        step: Of the run, with b₂ on its mean grid, the unscaled one.
        none: Of the same recipe without the add-on: ordinary ViT, no b₂.
        weight0: Of its λ = 0 control: the same b₂ and delayed [CLS], but no term.
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
        addon = recipe.addon
        if addon.tapped_layer is None:
            step = _count(full, _views(recipe, None))
            return StepFlops(step, step, step, parameters)
        place = cls_after_of(recipe.model, layer=addon.tapped_layer, taps_cls=addon.taps_cls)
        without = recipe.model_copy(update={"addon": NoneConfig(name="none")})
        delayed = without.model_copy(
            update={"model": recipe.model.model_copy(update={"cls_after": place})}
        )
        views = _views(recipe, full.paired_views())
        control, _ = _objective(delayed)
        none, _ = _objective(without)
        return StepFlops(
            step=_count(full, views),
            none=_count(none, _views(recipe, None)),
            weight0=_count(control, views),
            parameters=parameters,
        )


def _objective(recipe: Recipe) -> tuple[Objective, int]:
    with torch.device("meta"):
        objective = Objective(recipe)
    return objective, sum(p.numel() for p in objective.parameters() if p.requires_grad)


def _views(recipe: Recipe, paired: PairedViews | None) -> Views:
    part = partition(recipe.train.batch_size, paired)
    if paired is not None:
        paired = replace(paired, scale=(1.0, 1.0), aspect=(1.0, 1.0))
    maker = ViewMaker(
        recipe.views,
        paired=paired,
        part=part,
        image_size=recipe.data.image_size,
        patch_size=recipe.model.patch_size,
        seed=recipe.seed,
    )
    actions = maker.actions(0)
    side, patch = recipe.data.image_size, recipe.model.patch_size

    def blank(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, 3, height, width, device="meta")

    return Views(
        standard=tuple(blank(part.num_standard, side, side) for _ in range(2)),
        paired=tuple(
            blank(part.total_paired, a.grid[0] * patch, a.grid[1] * patch) for a in actions
        ),
        actions=actions,
        standard_counts=part.standard_counts,
        paired_counts=part.paired_counts,
        paired_rows=part.paired_rows,
        generator_seed=0,
    )


def _count(objective: Objective, views: Views) -> float:
    with FlopCounterMode(display=False) as counter:
        objective(views).total.backward()
    return float(counter.get_total_flops())

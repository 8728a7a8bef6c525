"""Objectives under autocast, and the operators that they call."""

import dataclasses

import torch

from sercli.objective import Objective
from tests.support import workers
from tests.support.operators import Operators
from tests.support.recipes import ADDONS, METHODS, recipe_of

HALF = torch.bfloat16
OBJECTIVES = {
    **{f"{m} {a}": (m, a, None, {}) for m in METHODS for a in ADDONS},
    "small crops": ("moco", "ser", "2+4-crops", {}),
    "turned crops": ("moco", "essl", "2+4-rotations", {"form": "predict-and-views"}),
    "placebo": ("dino", "ser", None, {"action": "placebo"}),
    "pooled": ("moco", "augself", None, {"tap": "pooled"}),
    "lambda 0": ("moco", "ser", None, {"weight": 0}),
}


def in_float32(views, device="cpu"):
    return dataclasses.replace(
        views,
        standard=tuple(view.float().to(device) for view in views.standard),
        paired=tuple(view.float().to(device) for view in views.paired),
    )


def operators_of(name, device="cpu"):
    """What the forward pass of an objective calls under autocast."""
    method, addon, setting, options = OBJECTIVES[name]
    layer = None if addon == "none" else 2
    recipe = recipe_of(method, addon, layer, setting=setting, depth=4, **options)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"drop_path": 0.1})})
    objective = Objective(recipe).to(device)
    views = in_float32(workers.make_views(objective.plan, 8, seed=1), device)
    with torch.autocast(device, dtype=HALF), Operators() as seen:
        losses = objective(views)
    assert losses.total.dtype == losses.invariance.dtype == torch.float32
    return seen.calls

"""The page's example on the token grid (`toy_grid_addon.py`), from exact keys and in a run."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sercli import addons, families, methods
from sercli.errors import UserError
from sercli.objective import Objective
from tests.support import toy_grid_addon, workers
from tests.support.training import TINY, losses, start, train

FILES = (Path(toy_grid_addon.__file__),)
SETTINGS = (*TINY, "addon.name=toy-grid", "addon.layer=2", "views.setting=2")


def resolve(*more):
    return families.resolve("shapes/moco-none", (*SETTINGS, *more), {}, plugins=FILES).recipe


def test_it_is_least_where_the_tokens_follow_the_views():
    recipe = resolve()
    objective = Objective(recipe).double()
    views = workers.make_views(objective.plan, recipe.train.batch_size, seed=0)
    addon, layer = objective.addon, recipe.addon.layer
    addon.predictor = nn.Identity()
    draws = torch.Generator().manual_seed(0)
    sides = objective.plan.grid(0)
    base = torch.rand(sum(views.part.paired_counts), 5, *sides, dtype=torch.double, generator=draws)
    # Elements of D4 without scaling, so that nothing is resampled.
    actions = [type(a)(a.hflip, a.rot90, sides) for a in views.actions]
    plain = type(views)(
        **{**{name: getattr(views, name) for name in vars(views)}, "actions": tuple(actions)}
    )
    features = [
        addons.Features(base[:, :, 0, 0], {layer: action.on_image(base, patch=1)}, {})
        for action in actions
    ]
    followed = addon.loss(addons.AddonInput(features, None, None, plain))
    assert followed.item() == pytest.approx(-1, abs=1e-12)
    unmoved = [addons.Features(base[:, :, 0, 0], {layer: base}, {})] * 2
    assert addon.loss(addons.AddonInput(unmoved, None, None, plain)) > followed + 0.01


def test_it_trains_what_is_below_its_layer(monkeypatch):
    objective = Objective(resolve()).double()
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))
    views = workers.make_views(objective.plan, 16, seed=0)
    objective(views).total.backward()
    for name, p in objective.student.named_parameters():
        if name.startswith(("encoder.blocks.0", "encoder.blocks.1", "addon.predictor")):
            assert p.grad.norm() > 0, name


@pytest.mark.parametrize("method", ["moco", "barlow-twins"])
def test_it_trains(tmp_path, method):
    narrow = [f"method.name={method}", "method.hidden_width=32", "method.output_width=16"]
    chosen = (*SETTINGS, *narrow, "train.max_steps=2")
    run = start(tmp_path / "run", chosen, recipe="shapes/moco-none", plugins=FILES)
    train(run)
    for row in losses(run):
        assert math.isfinite(row["loss_equiv"])
        assert not row["skipped"]


def test_view_settings_that_it_does_not_name_are_refused():
    with pytest.raises(UserError, match="use --views 2"):
        resolve("views.setting=2+4-crops")


@pytest.mark.parametrize("package", [addons, methods])
def test_all_that_is_exported_is_there(package):
    for name in package.__all__:
        assert getattr(package, name), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018

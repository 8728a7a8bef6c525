"""A new objective or add-on is one file, not of ours: `toy_objective.py`, `toy_addon.py`."""

import math
from pathlib import Path

import pytest
import torch

from sercli import families
from sercli.engine.flops import count_flops
from sercli.errors import UserError
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from tests.support import recipes, toy_addon, toy_objective, workers
from tests.support.training import TINY, interrupt_after, losses, start, train, weights

TOY_SETTINGS = {"method": {"width": 16}, "addon": {"layer": 2, "width": 8}}
FILES = (Path(toy_objective.__file__), Path(toy_addon.__file__))
PAIRS = [("toy", addon) for addon in (*addon_configs(), "toy")]
PAIRS += [(method, "toy") for method in method_configs()]


def settings(method, addon):
    """`--set` values of a small world of 24 steps."""
    narrow = {
        "method": recipes.METHODS.get(method, TOY_SETTINGS["method"]),
        "addon": recipes.ADDONS.get(addon, TOY_SETTINGS["addon"]),
    }
    chosen = [f"method.name={method}", f"addon.name={addon}"]
    chosen += [f"{part}.{key}={value}" for part, of in narrow.items() for key, value in of.items()]
    chosen += [f"views.setting={recipes.SETTINGS.get(addon, '2')}"]
    return (*(s for s in TINY if not s.startswith("method.")), *chosen)


def resolve(method="toy", addon="toy", *more):
    chosen = (*settings(method, addon), *more)
    return families.resolve("shapes/moco-none", chosen, {}, plugins=FILES)


def test_a_plugin_is_a_short_file():
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 42


def test_a_recipe_names_it_and_has_its_settings():
    resolved = resolve()
    recipe = resolved.recipe
    assert families.method_class(recipe.method).__name__ == "Toy"
    assert recipe.method.model_dump() == {"name": "toy", "width": 16, "momentum": 0.99}
    assert families.addon_class(recipe.addon).__name__ == "Toy"
    assert (recipe.addon.layer, recipe.addon.width, recipe.addon.tap) == (2, 8, "cls")
    assert resolved.origins["method.width"] == "--set"
    assert resolved.origins["method.momentum"] == "default"
    # As `ser pretrain --recipe shapes/moco-ser --method toy`: MoCo's settings are dropped.
    by_flag = families.resolve("shapes/moco-ser", (), {"method.name": "toy"}, plugins=FILES).recipe
    assert (by_flag.method.name, by_flag.method.width, by_flag.addon.name) == ("toy", 64, "ser")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.widht=3", "did you mean method.width?"),
        ("method.temperature=0.2", "unknown recipe key method.temperature"),
        ("addon.widht=3", "did you mean addon.width?"),
        ("addon.fraction=0.5", "unknown recipe key addon.fraction"),
        ("method.momentum=2", "method.momentum = 2 (from --set)"),
        ("addon.width=0", "addon.width = 0 (from --set)"),
        ("addon.tap=mean", "addon.tap = 'mean' (from --set)"),
        ("views.setting=3", "use --views 2"),
        ("views.setting=2+4-crops", "its loss takes two views"),
        ("method.name=toi", "did you mean toy?"),
        ("addon.name=toi", "did you mean toy?"),
    ],
)
def test_what_it_cannot_be_told_is_refused(setting, words):
    with pytest.raises(UserError) as caught:
        resolve("toy", "toy", setting)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_its_file_it_is_unknown():
    with pytest.raises(UserError, match=r"method\.name 'toy'; known: moco, dino, barlow-twins"):
        families.resolve("shapes/moco-none", settings("toy", "none"), {})


def test_too_small_a_batch_is_refused():
    for method, addon in (("toy", "none"), ("barlow-twins", "toy")):
        with pytest.raises(UserError, match="at least 2 images a step: batch norm"):
            Objective(resolve(method, addon, "train.batch_size=1").recipe)


def started(path, method, addon):
    chosen = (*settings(method, addon), "train.max_steps=5")
    return start(path, chosen, recipe="shapes/moco-none", plugins=FILES)


@pytest.mark.parametrize(("method", "addon"), PAIRS)
def test_it_trains(tmp_path, method, addon):
    run = started(tmp_path / "run", method, addon)
    train(run)
    assert run.read_run()["status"] == "done"
    assert [row["step"] for row in losses(run)] == [1, 2, 3, 4, 5]
    for row in losses(run):
        assert not row["skipped"]
        assert ("loss_equiv" in row) == (addon != "none")
        assert all(math.isfinite(row[key]) for key in row if key.startswith("loss"))


@pytest.mark.parametrize(("method", "addon"), [("toy", "ser"), ("toy", "toy"), ("dino", "toy")])
def test_it_resumes(tmp_path, method, addon):
    whole, stopped = (started(tmp_path / name, method, addon) for name in ("whole", "stopped"))
    train(whole)
    interrupt_after(stopped, 3)
    train(stopped)
    assert losses(stopped) == losses(whole)
    assert torch.equal(weights(stopped), weights(whole))


def test_its_flops_are_counted():
    alone, both = (count_flops(resolve("toy", addon).recipe) for addon in ("none", "toy"))
    assert alone.step == alone.none == both.none
    assert both.ratio_none == both.ratio_weight0 > 1
    assert both.parameters > alone.parameters > 0


def test_the_toy_addon_trains_what_is_below_its_layer(monkeypatch):
    objective = Objective(resolve("moco", "toy").recipe).double()
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))
    objective(workers.make_views(objective.plan, 8, seed=0)).total.backward()
    for name, p in objective.student.named_parameters():
        below = name.startswith(("encoder.blocks.0", "encoder.blocks.1", "addon.head"))
        beyond = name.startswith(("encoder.blocks.2", "encoder.blocks.3", "method"))
        assert not below or p.grad.norm() > 0, name
        assert not beyond or p.grad is None or not p.grad.any(), name

"""LARS and SGD against NumPy in float64 and others' code; groups and their rates by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sercli.engine import memory
from sercli.engine.launch import launch
from sercli.engine.momentum import Momentum
from sercli.engine.optimiser import depths, make_optimiser, set_schedule
from sercli.engine.plan import make_plan
from sercli.engine.pretraining import read_recipe
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.errors import UserError
from sercli.objective import Objective
from sercli.recipe.training import Train
from tests.support.pictures import Pictures
from tests.support.recipes import recipe_of
from tests.support.training import (
    SER,
    TINY,
    interrupt_after,
    losses,
    no_monitor,
    start,
    train,
    weights,
)

CPU = torch.device("cpu")
SHAPES = ((5, 4), (3, 2, 2), (6,), (1, 1, 7), (4, 3), (2, 2))
ZERO_WEIGHTS, ZERO_GRADIENT, LATE = 4, 5, 2
STEPS = 40


def start_of(place):
    weights = np.random.RandomState(place).randn(*SHAPES[place])
    return 0 * weights if place == ZERO_WEIGHTS else weights


def gradient_of(step, place):
    """None: there is none yet, as of DINO's prototypes in the first epoch."""
    if place == LATE and step < 3:
        return None
    gradient = np.random.RandomState(1000 + 10 * step + place).randn(*SHAPES[place])
    return 0 * gradient if place == ZERO_GRADIENT and step < 20 else gradient


def rates(step):
    return 0.5 * (1 + math.cos(math.pi * step / STEPS)) + 0.01


def numpy_steps(*, decay, momentum, trust):
    """The loop of barlowtwins' and moco-v3's LARS, tensor by tensor."""
    found = []
    for place in range(len(SHAPES)):
        w, v = start_of(place), np.zeros(SHAPES[place])
        for step in range(STEPS):
            gradient = gradient_of(step, place)
            if gradient is None:
                continue
            if trust is None or w.ndim > 1:
                gradient = gradient + decay * w
            if trust is not None and w.ndim > 1:
                length, size = np.sqrt((w**2).sum()), np.sqrt((gradient**2).sum())
                ratio = trust * length / size if length > 0 and size > 0 else 1.0
                gradient = gradient * ratio
            v = momentum * v + gradient
            w = w - rates(step) * v
        found.append(w)
    return found


def parameters():
    return [nn.Parameter(torch.from_numpy(start_of(i).copy())) for i in range(len(SHAPES))]


def stepped(optimiser, moved, *, skipped=()):
    """After all steps; in some of them gradients are not finite, as the ranks agreed."""
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = rates(step)
        for bad in (True, False) if step in skipped else (False,):
            for place, p in enumerate(moved):
                gradient = gradient_of(step, place)
                p.grad = None if gradient is None else torch.from_numpy(gradient)
                if bad and gradient is not None:
                    p.grad.view(-1)[0] = torch.nan
            if isinstance(optimiser, Momentum):
                optimiser.found_inf = torch.tensor(float(bad))
            optimiser.step()
    return [p.detach().numpy() for p in moved]


def groups_of(moved, *, decay, trust):
    matrices = [p for p in moved if p.ndim > 1]
    others = [p for p in moved if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": decay, "trust_coefficient": trust},
        {"params": others, "weight_decay": decay if trust is None else 0.0},
    ]


@pytest.mark.parametrize("skipped", [(), (0, 1, 7)], ids=["finite", "skipped steps"])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.1), (0.9, 0.1), (0.9, 0.0)])
@pytest.mark.parametrize("trust", [None, 0.001, 0.05])
def test_steps_are_those_of_the_equation(trust, momentum, decay, skipped):
    moved = parameters()
    optimiser = Momentum(groups_of(moved, decay=decay, trust=trust), momentum=momentum)
    expected = numpy_steps(decay=decay, momentum=momentum, trust=trust)
    found = stepped(optimiser, moved, skipped=skipped)
    for place, (ours, gold) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(ours, gold, rtol=1e-12, atol=1e-12, err_msg=str(place))
        assert np.abs(ours - start_of(place)).max() > 1e-3


def test_sgd_is_torchs():
    theirs = parameters()
    gold = stepped(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.1), theirs)
    moved = parameters()
    found = stepped(Momentum(groups_of(moved, decay=0.1, trust=None), momentum=0.9), moved)
    for ours, expected in zip(found, gold, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def others_lars(project, matrices, others):
    if project == "timm":
        from timm.optim import Lars

        adapted = {"params": matrices, "always_adapt": True}
        plain = {"params": others, "always_adapt": False}
        return Lars([adapted, plain], lr=1.0, momentum=0.9, trust_coeff=0.001, eps=0.0)
    lars = pytest.importorskip("lightly.utils.lars").LARS
    # It adapts what decays; where it hardly does, all agree on what they divide by.
    adapted, plain = {"params": matrices, "weight_decay": 1e-300}, {"params": others}
    return lars([adapted, plain], lr=1.0, momentum=0.9, trust_coefficient=0.001, eps=0.0)


@pytest.mark.parametrize("project", ["timm", "lightly"])
def test_lars_is_timms_and_lightlys_where_these_agree_with_its_originals(project):
    """Without weight decay: they divide by |g| + ω |w| where the originals have |g + ω w|."""
    theirs = parameters()
    split = [p for p in theirs if p.ndim > 1], [p for p in theirs if p.ndim < 2]
    gold = stepped(others_lars(project, *split), theirs)
    moved = parameters()
    found = stepped(Momentum(groups_of(moved, decay=0.0, trust=0.001), momentum=0.9), moved)
    for ours, expected in zip(found, gold, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


# -- groups and their rates -----------------------------------------------------------------------

DEPTH = 4
# Block after which [CLS] joins → the exponent of its rate.
JOINS = {0: DEPTH + 1, 2: DEPTH - 1}
# Name → the exponent of d, with 4 blocks.
EXPONENTS = {
    "encoder.pos_embed": 5,
    "encoder.patch_embed.proj.weight": 5,
    "encoder.patch_embed.proj.bias": 5,
    "encoder.blocks.0.attn.qkv.weight": 4,
    "encoder.blocks.0.norm1.bias": 4,
    "encoder.blocks.1.mlp.fc2.bias": 3,
    "encoder.blocks.2.attn.proj.weight": 2,
    "encoder.blocks.3.norm2.weight": 1,
    "encoder.blocks.3.mlp.fc1.weight": 1,
    "encoder.norm.weight": 0,
    "encoder.norm.bias": 0,
    "method.head.prototypes": 0,
    "method.head.mlp.0.weight": 0,
    "addon.projector.norm.bias": 0,
    "addon.projector.expand.weight": 0,
}


def objective_of(*, cls_after=0, method="dino", addon="ser"):
    layer = None if addon == "none" else 2
    return Objective(recipe_of(method, addon, layer, depth=DEPTH, model={"cls_after": cls_after}))


def group_of(objective, optimiser):
    """Name → its group; each parameter that is trained is in one group, and in no other."""
    names = {p: name for name, p in objective.named_parameters()}
    found = {}
    for group in optimiser.param_groups:
        for p in group["params"]:
            assert names[p] not in found
            found[names[p]] = group
    assert found.keys() == {n for n, p in objective.named_parameters() if p.requires_grad}
    return {name.removeprefix("student."): group for name, group in found.items()}


@pytest.mark.parametrize("cls_after", JOINS)
@pytest.mark.parametrize("decay", ["all", "not-1d", "weights"])
@pytest.mark.parametrize("optimiser", ["adamw", "lars", "sgd"])
def test_rates_fall_block_by_block_towards_the_embedding(optimiser, decay, cls_after):
    objective = objective_of(cls_after=cls_after)
    settings = Train(optimiser=optimiser, decay=decay, layer_decay=0.5, lr=0.2, lr_biases=0.05)
    made = make_optimiser(objective, settings)
    set_schedule(made, lr=1.6, weight_decay=0.3)
    found = group_of(objective, made)
    shapes = {n.removeprefix("student."): p.ndim for n, p in objective.named_parameters()}
    expected = {**EXPONENTS, "encoder.cls_token": JOINS[cls_after]}
    assert expected.keys() - found.keys() == set()
    for name, exponent in expected.items():
        rate = 1.6 * 0.5**exponent * (0.25 if shapes[name] == 1 else 1)
        assert found[name]["lr"] == pytest.approx(rate, rel=1e-12), name
    tokens = {"encoder.cls_token", "encoder.pos_embed"}
    for name, group in found.items():
        spared = shapes[name] == 1 or (decay == "weights" and name in tokens)
        spared &= decay != "all"
        assert group["weight_decay"] == (0 if spared else 0.3), name
        adapted = optimiser == "lars" and not spared and shapes[name] > 1
        assert group.get("trust_coefficient") == (0.001 if adapted else None), name


def test_every_parameter_of_the_encoder_has_a_depth():
    encoder = objective_of().encoder
    found = depths(encoder)
    assert found.keys() == set(encoder.parameters())
    by_name = {name: found[p] for name, p in encoder.named_parameters()}
    assert set(by_name.values()) == set(range(DEPTH + 2))
    assert all(
        by_name[name] == int(name.split(".")[1]) + 1 for name in by_name if "blocks." in name
    )


def test_groups_without_rates_of_their_own_are_as_in_checkpoints_of_before():
    objective = objective_of()
    made = make_optimiser(objective, Train(decay="not-1d"))
    named = {"params", "lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "maximize"}
    named |= {"capturable", "differentiable", "fused", "decoupled_weight_decay", "decays"}
    assert [set(group) - named for group in made.param_groups] == [set(), set()]
    assert [group["decays"] for group in made.param_groups] == [True, False]
    set_schedule(made, lr=0.7, weight_decay=0.3)
    assert {group["lr"] for group in made.param_groups} == {0.7}


def test_betas_are_the_recipes():
    made = make_optimiser(objective_of(), Train(betas=(0.9, 0.95)))
    assert {group["betas"] for group in made.param_groups} == {(0.9, 0.95)}


# -- runs -----------------------------------------------------------------------------------------

# Rates at which so small a model learns something in 24 steps.
RUNS = {
    "lars": ("train.optimiser=lars", "train.lr=60", "train.lr_biases=1"),
    "sgd": ("train.optimiser=sgd", "train.lr=5"),
    "layer decay": ("train.layer_decay=0.7", "train.betas=[0.9,0.95]", "train.lr=0.03"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_bit_by_bit_where_it_was_stopped(tmp_path, name):
    whole = start(tmp_path / "whole", (*SER, *RUNS[name]))
    train(whole)
    parted = start(tmp_path / "parted", (*SER, *RUNS[name]))
    interrupt_after(parted, 7)
    train(parted)
    assert losses(parted) == losses(whole)
    assert torch.equal(weights(parted), weights(whole))


def losses_of(path, *settings):
    run = start(path, (*TINY, *settings), "shapes/moco-none")
    train(run)
    found = [row["loss"] for row in losses(run)]
    assert len(found) == 24
    return np.array(found)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Losses of the same views while nothing is learnt."""
    return losses_of(tmp_path_factory.mktemp("untrained") / "run", "train.lr=1e-12")


@pytest.mark.parametrize("name", RUNS)
def test_a_short_training_lowers_its_loss(tmp_path, untrained, name):
    found = losses_of(tmp_path / "run", *RUNS[name])
    assert found[0] == untrained[0]
    assert found[-8:].mean() < 0.95 * untrained[-8:].mean()
    assert found[-8:].mean() < found[:2].mean()


@pytest.mark.run
def test_two_processes_take_the_steps_of_one(tmp_path):
    """LARS works on gradients in place, which are views of DDP's buckets there."""
    settings = (*SER, *RUNS["lars"], "train.layer_decay=0.8", "train.clip_norm=1")
    whole = start(tmp_path / "whole", settings)
    train(whole)
    parted = start(tmp_path / "parted", settings)
    launch(parted, nproc=2, device="cpu")
    ours, theirs = losses(parted), losses(whole)
    assert len(ours) == len(theirs) == 24
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert abs(theirs[-1]["loss"] / theirs[0]["loss"] - 1) > 0.02


def edited(run, before, after):
    text = run.recipe.read_text()
    assert text.count(before) == 1
    run.recipe.write_text(text.replace(before, after))


def test_a_run_does_not_go_on_with_another_optimiser(tmp_path):
    run = start(tmp_path / "run", (*SER, "train.optimiser=sgd"))
    interrupt_after(run, 5)
    edited(run, "optimiser: sgd", "optimiser: adamw")
    edited(run, "betas: null\n  momentum: 0.9\n", "betas: null\n  momentum: null\n")
    with pytest.raises(UserError, match="are of another optimiser"):
        train(run)


def test_settings_of_a_run_that_goes_on_are_its_recipes_and_not_its_checkpoints(tmp_path):
    run = start(tmp_path / "run", (*SER, "train.layer_decay=0.5"))
    interrupt_after(run, 5)
    edited(run, "- 0.999", "- 0.9")
    edited(run, "layer_decay: 0.5", "layer_decay: 0.25")
    recipe = read_recipe(run)
    runtime = runtime_for(CPU)
    trainer = Trainer(run, recipe, Pictures(96), runtime, monitor=no_monitor())
    trainer.resume(pytest.fail)
    groups = trainer.optimiser.param_groups
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
    assert min(group.get("lr_scale", 1) for group in groups) == 0.25**5
    assert all(state["exp_avg"].any() for state in trainer.optimiser.state.values())


def test_memory_and_checkpoints_are_counted_with_as_many_moments_as_there_are(monkeypatch):
    sizes, files = {}, {}
    for optimiser in ("sgd", "adamw", "lars", "sgd"):  # a process's first count makes constants
        monkeypatch.setattr(memory, "_counts", {})
        recipe = recipe_of("moco", "ser", 2, depth=DEPTH)
        recipe = recipe.model_copy(update={"train": Train(batch_size=8, optimiser=optimiser)})
        sizes[optimiser] = memory.count_memory(recipe, runtime_for(CPU)).held
        plan = make_plan(recipe, Pictures(8))
        files[optimiser] = plan.checkpoint_bytes
    moment = 4 * plan.parameters
    assert files["adamw"] - files["lars"] == files["adamw"] - files["sgd"] == moment
    rounded = 512 * sum(p.requires_grad for p in plan.objective.parameters())  # by the allocator
    assert moment <= sizes["adamw"] - sizes["lars"] <= moment + rounded
    assert sizes["lars"] == sizes["sgd"]

"""What a step costs: each shape counted once, with the numbers of counting everything."""

from contextlib import nullcontext

import pytest
import torch

from sercli.engine import flops
from sercli.engine.accumulation import Gradients
from sercli.losses import patch_nt_xent
from sercli.objective import Objective
from sercli.recipe.schedule import START
from tests.support.architectures import SETTINGS
from tests.support.recipes import recipe_of

CASES = {
    "ser": ("moco", "ser", 2, {}),
    "its control": ("moco", "ser", 2, {"weight": 0}),
    "[CLS] after the last tap": ("dino", "ser", 4, {}),
    "multi-crop": ("moco", "ser", 3, {"setting": "2+4-crops"}),
    "views of the add-on alone": ("dino", "essl", 2, {}),
    "the same without weight": ("dino", "essl", 2, {"weight": 0}),
    "a third view": ("barlow-twins", "equimod", 3, {}),
    "no gradient to the patches": (
        "moco", "ser", 2,
        {"model": {"patch_embed": "frozen", "pos_embed": "sincos", "cls_after": 3}},
    ),
    "stochastic depth": ("dino", "augself", 2, {"model": {"drop_path": 0.3}}),
    "no add-on": ("barlow-twins", "none", None, {}),
    **{
        architecture: ("moco", "ser", 2, {"model": {"num_heads": 4, **SETTINGS[architecture]}})
        for architecture in SETTINGS
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch):
    monkeypatch.setattr(flops, "_counts", {})


def recipe(case):
    method, addon, layer, options = CASES[case]
    return recipe_of(method, addon, layer, depth=4, **options)


def everything(made_of, *, addon=True):
    """FLOPs of a whole step, every block of it run."""
    objective = flops.on_meta(made_of)
    views = flops.views_on_meta(made_of, objective.plan)
    if not addon:
        objective.student.addon = None
    with flops.product_counter() as counter:
        objective(views).total.backward()
    return counter.get_total_flops()


def test_products_of_the_patch_loss_are_counted_though_they_are_added_in_place():
    anchors, keys = (torch.empty(6, 4, 5, device="meta", requires_grad=True) for _ in range(2))
    with flops.product_counter() as counter:
        patch_nt_xent(anchors, keys, temperature=0.3, negatives="cross-view", grid=(2, 2))
    logits = 2 * 24 * 24 * 5
    assert counter.get_total_flops() == 3 * logits  # and the gradients of anchors and of keys


# Counting a whole step on meta takes a second or more: by default only what differs most.
QUICK = ("ser", "views of the add-on alone", "no add-on", "eva02")
EVERY = [case if case in QUICK else pytest.param(case, marks=pytest.mark.run) for case in CASES]


@pytest.mark.parametrize("case", EVERY)
def test_blocks_counted_once_give_what_all_of_them_give(case):
    made_of = recipe(case)
    counted = flops.count_flops(made_of)
    assert counted.step == everything(made_of) > 0
    assert counted.none == everything(flops.without_addon(made_of))
    assert counted.weight0 == everything(made_of, addon=False)


@pytest.mark.parametrize("case", ["ser", *(pytest.param(case, marks=pytest.mark.run) for case in (
    "views of the add-on alone", "the same without weight", "multi-crop", "a third view",
))])  # fmt: skip
@pytest.mark.parametrize("settings", [
    {"accumulate": 3}, {"checkpointing": "blocks"}, {"accumulate": 3, "checkpointing": "blocks"},
])  # fmt: skip
def test_what_is_computed_twice_is_counted_beside_the_step(case, settings):
    plain = recipe(case)
    saving = plain.model_copy(update={"train": plain.train.model_copy(update=settings)})
    counted = flops.count_flops(saving)
    assert flops.count_flops(plain).again == 0
    assert counted.step == flops.count_flops(plain).step
    objective = flops.on_meta(saving)
    views = flops.views_on_meta(saving, objective.plan)
    gradients = Gradients(objective, accumulate=saving.train.accumulate, autocast=nullcontext)
    with flops.product_counter() as counter:
        gradients(views, START)
    assert counter.get_total_flops() == counted.step + counted.again
    assert 1.1 < counted.ratio_again < 1.6


def test_the_objective_that_is_counted_is_as_it_was():
    made_of = recipe("ser")
    objective = flops.on_meta(made_of)
    before = [name for name, _ in objective.named_parameters()]
    flops.count_flops(made_of, objective)
    assert [name for name, _ in objective.named_parameters()] == before
    assert objective.addon is not None
    assert all(p.grad is None for p in objective.parameters())


def test_what_is_counted_is_not_counted_again(monkeypatch):
    counts, built = [], []
    count, build = flops._count_step, Objective.__init__
    monkeypatch.setattr(flops, "_count_step", lambda *given: counts.append(1) or count(*given))
    monkeypatch.setattr(
        Objective, "__init__", lambda one, given: (built.append(1), build(one, given))[0]
    )
    first = flops.count_flops(recipe("ser"))
    assert (len(counts), len(built)) == (3, 2)
    assert flops.count_flops(recipe("ser")) == first
    assert (len(counts), len(built)) == (3, 3)  # the objective itself; a plan hands it on
    # Without SER's term nothing of this one is new but the term.
    flops.count_flops(recipe_of("moco", "ser", 2, depth=4, temperature=0.7))
    assert (len(counts), len(built)) == (4, 4)
    # Another width, batch or method is another shape.
    flops.count_flops(recipe_of("moco", "ser", 2, depth=4, model={"width": 32}))
    assert len(counts) == 7


def test_classes_of_one_name_are_not_taken_for_each_other(monkeypatch):
    """As two plug-ins may be."""
    from sercli.methods.moco.model import MoCo

    class Other(MoCo):
        pass

    made_of = recipe("ser")
    flops.count_flops(made_of)
    known = len(flops._counts)
    for module in ("sercli.objective", "sercli.engine.flops"):
        monkeypatch.setattr(f"{module}.method_class", lambda _config: Other)
    flops.count_flops(made_of)
    assert len(flops._counts) == 2 * known

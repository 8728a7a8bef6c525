"""What travels with the views: made on the CPU before there is a pixel, used on the device."""

import dataclasses

import pytest
import torch

from sercli.objective import Objective
from sercli.views.making import ViewMaker
from sercli.views.plan import partition
from sercli.views.reading import TrainingImages, batches
from tests.support.pictures import Pictures
from tests.support.reading import read_all
from tests.support.recipes import recipe_of

CASES = {
    "drop path": ("dino", "none", {"model": {"drop_path": 0.5}}),
    "augself": ("moco", "augself", {"flip": 1}),
    "equimod": ("moco", "equimod", {}),
    "ser": ("moco", "ser", {"model": {"drop_path": 0.5}}),
    "placebo": ("moco", "ser", {"action": "placebo"}),
    "stl": ("moco", "stl", {}),
}


def made(case):
    """An objective, and one step's views with and without what it prepares."""
    method, addon, options = CASES[case]
    recipe = recipe_of(method, addon, None if addon == "none" else 2, **options)
    objective = Objective(recipe)
    plan = objective.plan
    part = partition(8, plan.paired, group=plan.request.group)
    (tickets,) = batches(24, part, batch_size=8, seed=0, steps=range(1))
    samples = read_all(TrainingImages(Pictures(24), recipe.views, plan, seed=0), tickets)
    makers = (
        ViewMaker(recipe.views, plan, part, seed=0, prepare=objective.prepare),
        ViewMaker(recipe.views, plan, part, seed=0),
    )
    return objective, *(maker(samples, 0, torch.device("cpu")) for maker in makers)


def losses_of(objective, *views):
    """Losses of each, from the same state."""
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    found = []
    for one in views:
        objective.load_state_dict(state)
        with torch.no_grad():
            found.append(objective(one))
    return found


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_same_whether_it_travelled_or_not(case):
    objective, sent, alone = made(case)
    assert not alone.sent
    assert bool(sent.sent) == (case != "stl")
    ours, gold = losses_of(objective, sent, alone)
    assert torch.equal(ours.total, gold.total)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("drop path", "drop path"),
        ("ser", "add-on: code to 0"),
        ("placebo", "add-on: code to 1"),
        ("equimod", "add-on: parameters"),
        *(("augself", f"add-on: {n}") for n in ("crop", "colour", "flip")),
    ],
)
def test_what_was_sent_is_what_is_used(case, name):
    """Otherwise it would be copied once more, and waited for."""
    objective, sent, _ = made(case)
    other = sent.sent[name].clone()
    other = other.roll(1, 0) if case == "equimod" else torch.zeros_like(other)
    changed = dataclasses.replace(sent, sent={**sent.sent, name: other})
    ours, gold = losses_of(objective, changed, sent)
    assert not torch.equal(ours.total, gold.total)

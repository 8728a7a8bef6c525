"""What a training goes on from is looked at before it is taken up, even where its hash is right."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from sercli.engine.state import ModuleState
from sercli.engine.stepper import Position
from sercli.runs.files import hash_of
from sercli.runs.run_dir import RunDir
from tests.support.refusals import refused


@pytest.fixture
def saved(tmp_path):
    """A training's state at step 7, and how to change what was saved."""
    module = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(torch.ones(4, 3)).sum().backward()
    optimiser.step()
    state = ModuleState(RunDir(tmp_path), module, optimiser, identity={"of": "x"})
    state.save(Position(7, 1.5))
    path = state.run.checkpoint(7)

    def change(*place, value):
        tree = node = torch.load(path, weights_only=True)
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        torch.save(tree, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        hash_of(path).write_text(f"{digest}  {path.name}\n")
        return state

    return change


WRONG = [
    (("step",), "x", "step is 'x'"),
    (("step",), True, "step is True"),
    (("step",), -1, "step is -1"),
    (("train_seconds",), None, "train_seconds is None"),
    (("trained",), [], "trained is []"),
    (("trained", "weight"), "x", "'weight' is 'x'"),
    (("trained", "weight"), torch.zeros(1), "of other shapes"),
    (("trained", "weight"), torch.full((2, 3), torch.nan), "not finite"),
    (("trained", "more"), torch.zeros(1), "its parameters are others"),
    (("optimiser",), None, "optimiser is None"),
    (("optimiser", "state", 0), {}, "moments of parameter 0"),
    (("optimiser", "state", "x"), {}, "optimiser.state.x"),
    (("optimiser", "state", 0, "exp_avg"), torch.zeros(3), "of another shape"),
    (("optimiser", "state", 0, "exp_avg"), torch.zeros(2, 3).to_sparse(), "no tensor"),
    (("optimiser", "state", 0, "step"), torch.zeros(2, 3), "of another shape"),
    (("optimiser", "param_groups"), [], "other parameters"),
    (("optimiser", "param_groups", 0, "params"), [1, 0], "other parameters"),
    (("optimiser", "param_groups", 0, "betas"), 3, "betas is 3"),
    (("optimiser", "param_groups", 0, "eps"), 10**400, "eps is 1000"),
    (("optimiser", "param_groups", 0, "amsgrad"), True, "amsgrad is True"),
    (("optimiser", "param_groups", 0, "amsgrad"), None, "amsgrad is None"),
]


@pytest.mark.parametrize(("place", "value", "words"), WRONG)
def test_a_value_of_another_kind_is_refused(saved, place, value, words):
    state = saved(*place, value=value)
    before = {name: p.clone() for name, p in state.trained.items()}
    refused(lambda: state.load(pytest.fail), "step" if place == ("step",) else "", words)
    assert all(torch.equal(p, before[name]) for name, p in state.trained.items())


def test_what_was_saved_is_taken_up(saved):
    assert saved("identity", "of", value="x").load(pytest.fail) == Position(7, 1.5)

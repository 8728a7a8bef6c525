"""Compiled blocks: how many times they are traced (by a back end that compiles nothing)."""

import pytest
import torch
import torch._dynamo

from sercli.benchmarks.step import StepTimer
from sercli.engine.compiling import compile_blocks
from sercli.engine.runtime import runtime_for
from tests.support.recipes import recipe_of


def traced():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _traced_anew():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


# Micro-batches run the student without gradient, too.
SAVING = [({}, 4), ({"accumulate": 3, "checkpointing": "blocks"}, 6)]


@pytest.mark.parametrize(("settings", "graphs"), SAVING)
def test_blocks_are_traced_in_the_first_step_whatever_the_grids(settings, graphs):
    """The two parts of all blocks share a cache of `recompile_limit` graphs each.

    Grids differ by view and by step, b₁ and b₂ have other images, small crops have no teacher, and
    the monitor evaluates other sizes.
    """
    recipe = recipe_of("dino", "ser", 2, setting="2+4-crops", depth=4, model={"drop_path": 0.1})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})
    stepper = StepTimer(recipe, runtime_for(torch.device("cpu"), "bf16"))
    assert compile_blocks(stepper.objective.blocks(), backend="eager") == 8
    found = []
    for size in (32, 32, 48, 64):
        stepper.take()
        trained = traced()
        encoder = stepper.objective.evaluated_encoder.eval()
        with torch.no_grad(), stepper.runtime.autocast():
            encoder(torch.randn(size // 4, 3, size, size))
        encoder.train()
        found.append((trained, traced()))
    # Each of the two parts for the student and for the teacher; the MLP's dropout in evaluation.
    assert found == [(graphs, graphs + 1)] + [(graphs + 1, graphs + 1)] * 3


def test_compiling_changes_neither_values_nor_names():
    recipe = recipe_of("dino", "ser", 2, depth=4, model={"drop_path": 0.1})
    found = []
    for compiled in (False, True):
        stepper = StepTimer(recipe, runtime_for(torch.device("cpu"), "fp32"))
        if compiled:
            compile_blocks(stepper.objective.blocks(), backend="aot_eager")
        stepper.take()
        stepper.take()
        found.append(stepper.objective.state_dict())
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)

"""Compiled blocks: how many times they are traced (by a back end that compiles nothing)."""

import pytest
import torch
import torch._dynamo

from sercli.benchmarks.step import StepTimer
from sercli.engine.runtime import runtime_for
from tests.support.recipes import recipe_of


def traced():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.run
def test_blocks_are_traced_a_few_times_whatever_the_grids():
    """All blocks share one cache of `recompile_limit` graphs; beyond it they run eagerly, unsaid.

    Grids differ by view, batches by b₁ and b₂, small crops have no teacher, the monitor evaluates.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recipe = recipe_of("dino", "ser", 2, setting="2+4-crops", depth=4, model={"drop_path": 0.1})
    stepper = StepTimer(recipe, runtime_for(torch.device("cpu"), "bf16"))
    for block in stepper.objective.blocks():
        block.compile(backend="eager")
    found = []
    for size in (32, 32, 48):
        stepper.take()
        encoder = stepper.objective.evaluated_encoder.eval()
        with torch.no_grad(), stepper.runtime.autocast():
            encoder(torch.randn(size // 4, 3, size, size))
        encoder.train()
        found.append(traced())
    # Two while sizes turn out to vary, one more with other rows; without gradient; evaluation.
    assert 3 <= found[0] <= found[-1] <= 6
    assert found[-1] < torch._dynamo.config.recompile_limit
    assert found[1] == found[2]
    torch._dynamo.reset()

"""The patch loss keeps its promise of memory and speed, measured beside the full matrix."""

import pytest
import torch

from sercli.benchmarks.loss import full_matrix_loss, prepare
from sercli.benchmarks.measure import measure
from sercli.benchmarks.step import matmul_flops_per_s, measure_steps
from sercli.engine.runtime import runtime_for
from sercli.losses import patch_nt_xent
from tests.support.recipes import recipe_of


def test_the_reference_is_the_same_loss():
    torch.manual_seed(0)
    anchors, keys = torch.randn(2, 4, 6, 8, dtype=torch.float64).requires_grad_().unbind()
    ours = patch_nt_xent(anchors, keys, temperature=0.4)
    theirs = full_matrix_loss(anchors, keys, temperature=0.4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.run
def test_measure_sees_memory_of_its_own_process():
    measured = measure(prepare, "tiled", 4, device="cpu", threads=1, repeats=1)
    assert measured.seconds > 0
    assert 5 < measured.value < 8  # the log of 784 tokens and some


def test_steps_are_timed_and_their_work_is_counted():
    cpu = torch.device("cpu")
    recipe = recipe_of("moco", "ser", 2, depth=4)
    speed = measure_steps(recipe, runtime_for(cpu), steps=2, warmup=1)
    assert speed.images_per_s * speed.seconds == pytest.approx(8)
    # The encoder's linear maps alone (weights × tokens × 2) are some of the work, not all.
    weights, tokens = 4 * 12 * 16**2, 8 * 2 * 17
    least = 2 * weights * tokens * 4  # student: forward, twice that backward; teacher: forward
    assert least < speed.flops < 10 * least
    assert speed.flops_per_s == speed.flops / speed.seconds
    assert speed.peak_bytes is None


def test_the_ceiling_is_that_of_products():
    rate = matmul_flops_per_s(torch.device("cpu"), side=64, repeats=2)
    assert 1e6 < rate < 1e15


@pytest.mark.slow
def test_memory_and_speed_at_12544_tokens():
    tiled = measure(prepare, "tiled", 64, device="cpu", threads=1, repeats=2)
    full = measure(prepare, "full matrix", 64, device="cpu", threads=1, repeats=2)
    assert tiled.peak_bytes < 400e6 < full.peak_bytes
    assert tiled.seconds < full.seconds
    assert tiled.value == pytest.approx(full.value, rel=1e-5)

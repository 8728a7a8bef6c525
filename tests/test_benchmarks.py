"""The patch loss keeps its promise of memory and speed, measured beside the full matrix."""

import pytest
import torch

from sercli.benchmarks.loss import full_matrix_loss, prepare
from sercli.benchmarks.measure import measure
from sercli.losses import patch_nt_xent


def test_the_reference_is_the_same_loss():
    torch.manual_seed(0)
    anchors, keys = torch.randn(2, 4, 6, 8, dtype=torch.float64).requires_grad_().unbind()
    ours = patch_nt_xent(anchors, keys, temperature=0.4)
    theirs = full_matrix_loss(anchors, keys, temperature=0.4)
    torch.testing.assert_close(ours, theirs)


def test_measure_sees_memory_of_its_own_process():
    measured = measure(prepare, "tiled", 4, device="cpu", threads=1, repeats=1)
    assert measured.seconds > 0
    assert 5 < measured.value < 8  # the log of 784 tokens and some


@pytest.mark.slow
def test_memory_and_speed_at_12544_tokens():
    tiled = measure(prepare, "tiled", 64, device="cpu", threads=1, repeats=2)
    full = measure(prepare, "full matrix", 64, device="cpu", threads=1, repeats=2)
    assert tiled.peak_bytes < 400e6 < full.peak_bytes
    assert tiled.seconds < full.seconds
    assert tiled.value == pytest.approx(full.value, rel=1e-5)

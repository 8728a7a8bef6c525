"""Weights drawn from a seed."""

import pytest
import torch
from torch import nn

from sercli.randomness import seeded, truncated_normal_


def test_what_is_drawn_is_torchs():
    with seeded(0, "a"):
        ours = torch.empty(300, 70)
        truncated_normal_(ours, std=0.02)
    with seeded(0, "a"):
        theirs = nn.init.trunc_normal_(torch.empty(300, 70), std=0.02)
    assert torch.equal(ours, theirs)
    assert ours.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_draw_at_the_end_of_the_range_is_no_weight_of_100_standard_deviations(monkeypatch):
    """As earlier releases of torch do where its uniform number is the interval's end."""

    def outlying(tensor, std):
        tensor.normal_(std=std)
        tensor[0], tensor[1] = 2.0, -2.0
        return tensor

    monkeypatch.setattr(nn.init, "trunc_normal_", outlying)
    weight = nn.Parameter(torch.empty(50))
    truncated_normal_(weight.data, std=0.02)
    assert weight[:2].tolist() == pytest.approx([0.16, -0.16])
    assert weight[2:].abs().max() < 0.16
    assert weight.requires_grad

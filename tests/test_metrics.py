"""Metrics against closed forms in NumPy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sercli.metrics import (
    accuracy,
    effective_rank,
    embedding_std,
    equivariance_score,
    spatial_energy,
)


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_maps_score_exactly_one() -> None:
    maps = tokens(0, 5, 9, 4)
    assert equivariance_score(maps, maps).es == 1.0


def test_opposite_maps_score_minus_one() -> None:
    maps = tokens(0, 5, 9, 4)
    assert equivariance_score(-maps, maps).es == pytest.approx(-1.0)


def test_shuffled_tokens_score_about_zero() -> None:
    maps = tokens(0, 200, 16, 8)
    shuffled = torch.stack([m[torch.randperm(16)] for m in maps])
    score = equivariance_score(shuffled, maps).es
    assert score is not None
    assert abs(score) < 0.03


def test_score_and_energy_against_numpy() -> None:
    moved, observed = tokens(1, 6, 10, 3), tokens(2, 6, 10, 3)
    moved = 0.6 * moved + 0.4 * observed + tokens(3, 6, 1, 3)
    a, f = moved.numpy().astype(np.float64), observed.numpy().astype(np.float64)
    a0, f0 = a - a.mean(1, keepdims=True), f - f.mean(1, keepdims=True)
    result = equivariance_score(moved, observed)
    assert result.es == pytest.approx(
        2 * (a0 * f0).sum() / ((a0**2).sum() + (f0**2).sum()), rel=1e-12
    )
    assert result.energy == pytest.approx(
        (f0**2).sum() / ((f - f.mean((0, 1))) ** 2).sum(), rel=1e-12
    )
    np.testing.assert_allclose(result.numerator, 2 * (a0 * f0).sum((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        result.denominator, (a0**2).sum((1, 2)) + (f0**2).sum((1, 2)), rtol=1e-12
    )


@pytest.mark.parametrize("which", ["moved", "observed"])
def test_a_map_that_is_constant_over_the_image_is_undefined(which: str) -> None:
    varied = tokens(0, 5, 9, 4)
    constant = varied[:, :1].expand_as(varied)
    pair = (constant, varied) if which == "moved" else (varied, constant)
    assert equivariance_score(*pair).es is None


def test_energy_is_the_spatial_share_of_the_variance() -> None:
    image = tokens(0, 1000, 1, 6)
    place = tokens(1, 1000, 50, 6)
    # Var(image) + Var(place) with standard deviations 1 and 2: 4 / 5, of which 1 in 50 is lost.
    assert spatial_energy(image + 2 * place) == pytest.approx(0.8, abs=0.02)
    assert spatial_energy(torch.ones(3, 4, 2)) == 0.0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need \[B, N, D\]"):
        equivariance_score(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3))


def test_accuracy_counts_the_label_among_the_best() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    labels = torch.tensor([0, 2, 2, 1])
    assert accuracy(logits, labels) == 50.0
    assert accuracy(logits, labels, top=2) == 75.0
    assert accuracy(logits, labels, top=9) == 100.0


def test_embedding_std_of_spread_and_of_collapsed() -> None:
    assert embedding_std(tokens(0, 4000, 64)) == pytest.approx(1 / 8, rel=0.01)
    assert embedding_std(torch.ones(10, 64)) == pytest.approx(0, abs=1e-12)


def test_effective_rank_of_known_spectra() -> None:
    basis = torch.linalg.qr(tokens(0, 40, 40)).Q[:, :5]
    even = torch.cat([basis, -basis])  # centred, five equal singular values
    assert effective_rank(even) == pytest.approx(5, rel=1e-6)
    assert effective_rank(tokens(0, 30, 1) * tokens(1, 1, 8)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.ones(4, 3)) == 0.0

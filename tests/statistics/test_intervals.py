"""Intervals of one quantity, against SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sercli.statistics import (
    Interval,
    jackknife_interval,
    median_interval,
    resampled_ends,
    spread,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "images"), [(0, 10), (10, 10), (1, 3), (312, 1000), (49_000, 50_000)]
)
def test_wilson_equals_scipy(right: int, images: int) -> None:
    ours = wilson_interval(right, images)
    theirs = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= right / images <= ours.high <= 1


@pytest.mark.parametrize(("right", "images"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(right: int, images: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(right, images)


def test_resampled_ends_expand_the_percentiles_as_student_and_n_say() -> None:
    resampled = np.random.default_rng(0).permutation(np.arange(1.0, 10_000.0))
    low, high = resampled_ends(resampled, images=20)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 19) * math.sqrt(20 / 19))
    assert (low, high) == pytest.approx((10_000 * tail, 10_000 * (1 - tail)))
    many = resampled_ends(resampled, images=10**9)
    assert many == pytest.approx([250, 9750], abs=0.01)


def test_of_a_mean_resampled_ends_are_as_wide_as_students() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=25)
    drawn = np.random.default_rng(2).multinomial(25, np.full(25, 1 / 25), size=40_000)
    low, high = resampled_ends(drawn @ values / 25, images=25)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert high - low == pytest.approx(theirs.high - theirs.low, rel=0.02)  # percentiles: 9 % less


def test_a_bias_is_taken_off_the_value_and_off_its_resamples() -> None:
    """The square of a mean comes out high by σ²/n, and that of resamples by as much again."""
    values = np.random.default_rng(1).normal(0.0, 2.0, size=400) + 1.0
    drawn = np.random.default_rng(2).multinomial(400, np.full(400, 1 / 400), size=40_000)
    squares = (drawn @ values / 400) ** 2
    ends = resampled_ends(squares, images=400, value=float(values.mean() ** 2))
    moved = resampled_ends(squares, images=400) - ends
    assert moved == pytest.approx([2 * values.var() / 400] * 2, rel=0.15)


def test_a_single_image_does_not_vary() -> None:
    with pytest.raises(ValueError, match="needs two"):
        resampled_ends(np.ones(10), images=1)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(3).random(30)
    left_out = [float(np.delete(values, one).mean()) for one in range(30)]
    ours = jackknife_interval(float(values.mean()), left_out)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs))
    with pytest.raises(ValueError, match="needs two"):
        jackknife_interval(1.0, [1.0])


@pytest.mark.parametrize("count", [6, 7, 9, 15, 16, 40])
def test_a_median_lies_between_order_statistics_and_what_is_interpolated(count: int) -> None:
    """Of uniform numbers the true share is the mean of a Beta's: λ is solved for, independently."""
    ours = median_interval([float(rank) for rank in range(1, count + 1)])
    assert ours is not None
    depth = max(d for d in range(1, count) if 1 - 2 * stats.binom.cdf(d - 1, count, 0.5) >= 0.95)
    assert depth <= ours.low <= depth + 1  # value and rank are one here
    assert ours.high == pytest.approx(count + 1 - ours.low)
    nominal = [1 - 2 * stats.binom.cdf(d - 1, count, 0.5) for d in (depth, depth + 1)]
    share = (nominal[0] - 0.95) / (nominal[0] - nominal[1])
    # Hettmansperger & Sheather (1986), formula for a symmetric density.
    inner = (count - depth) * share / (depth + (count - 2 * depth) * share)
    assert ours.low == pytest.approx(depth + inner)


@pytest.mark.parametrize(("count", "held"), [(2, 0.5), (3, 0.75), (4, 0.875), (5, 0.9375)])
def test_few_rounds_say_which_confidence_their_range_has(count: int, held: float) -> None:
    values = [float(value) for value in range(count)]
    assert median_interval(values) == Interval(0.0, count - 1.0, held)
    assert median_interval([1.0]) is None


def test_spread_is_the_sample_deviation() -> None:
    over = spread([1.0, 2.0, 4.0])
    assert (over.mean, over.std) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert spread([5.0]).std is None

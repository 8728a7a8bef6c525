"""Paired tests of means of ratios: against leaving each image out by hand, and SciPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from sercli.statistics import MeanRatio, paired_ratios

Array = np.ndarray


def mean_ratio(above: Array, below: Array) -> MeanRatio:
    return MeanRatio(np.asarray(above, dtype=float), np.asarray(below, dtype=float))


def drawn(seed: int, *, ratios: int = 3, images: int = 40) -> MeanRatio:
    draws = np.random.default_rng(seed)
    below = draws.gamma(2, 1, (ratios, images))
    return mean_ratio(below * draws.beta(4, 2, (ratios, images)), below)


def by_hand(first: MeanRatio, second: MeanRatio) -> tuple[float, float]:
    """The difference and its error, from differences without each image in turn."""

    def difference(kept: Array) -> float:
        each = [
            two[kept].sum() / below_two[kept].sum() - one[kept].sum() / below_one[kept].sum()
            for one, below_one, two, below_two in zip(
                first.numerators, first.denominators, second.numerators, second.denominators,
                strict=True,
            )
            if below_one[kept].sum() > 0 and below_two[kept].sum() > 0
        ]  # fmt: skip
        return float(np.mean(each))

    everything = np.ones(first.images, dtype=bool)
    left = [difference(np.arange(first.images) != one) for one in range(first.images)]
    error = math.sqrt((first.images - 1) * np.var(left))
    return difference(everything), error


@pytest.mark.parametrize("ratios", [1, 3])
def test_it_is_the_jackknife_that_leaves_out_each_image(ratios: int) -> None:
    first, second = (drawn(seed, ratios=ratios) for seed in (0, 1))
    found = paired_ratios(first, second)
    difference, error = by_hand(first, second)
    assert found.difference == pytest.approx(difference)
    assert found.interval is not None
    half = stats.t.ppf(0.975, 39) * error
    assert found.interval.low == pytest.approx(difference - half)
    assert found.interval.high == pytest.approx(difference + half)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(difference / error), 39))
    assert found.images == 40


def test_of_plain_means_it_is_the_paired_t_test() -> None:
    draws = np.random.default_rng(3)
    one, two = draws.normal(0, 1, (2, 25))
    found = paired_ratios(*(mean_ratio(row[None], np.ones((1, 25))) for row in (one, two)))
    expected = stats.ttest_rel(two, one)
    assert found.p_value == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval()
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high))


def test_a_ratio_of_one_image_is_missing_without_it() -> None:
    """A class that is in one image only: what is left is the mean of the other classes."""
    first, second = drawn(4), drawn(5)
    for one in (first, second):
        one.numerators[0, 1:] = one.denominators[0, 1:] = 0
    found = paired_ratios(first, second)
    difference, error = by_hand(first, second)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(difference / error), 39))
    single = [mean_ratio(one.numerators[:1], one.denominators[:1]) for one in (first, second)]
    alone = paired_ratios(*single)
    assert (alone.interval, alone.p_value) == (None, None)


def test_the_order_of_images_does_not_matter_if_it_is_the_same() -> None:
    first, second = drawn(6), drawn(7)
    order = np.random.default_rng(0).permutation(40)
    found = paired_ratios(first, second)
    turned = paired_ratios(first.ordered(order), second.ordered(order))
    assert turned.p_value == pytest.approx(found.p_value)
    assert paired_ratios(first.ordered(order), second).p_value != pytest.approx(found.p_value)
    assert paired_ratios(second, first).difference == pytest.approx(-found.difference)


def test_what_does_not_vary_is_not_tested() -> None:
    one = drawn(8)
    same = paired_ratios(one, one)
    assert (same.difference, same.interval, same.p_value) == (0, None, None)
    single = drawn(9, images=1), drawn(10, images=1)
    assert paired_ratios(*single).p_value is None
    # Twice as good in each image: the difference is as sure as the ratio itself.
    assert paired_ratios(one, mean_ratio(2 * one.numerators, one.denominators)).p_value is not None


def test_what_is_no_mean_of_ratios_is_refused() -> None:
    shapes = [(3, 4), (3, 5), (2, 5)]
    made = [mean_ratio(np.ones(shape), np.ones(shape)) for shape in shapes]
    for one, other in pairwise(made):
        with pytest.raises(ValueError, match="must be the same"):
            paired_ratios(one, other)
    for above, below, what in (
        (np.ones((2, 3)), np.ones((3, 2)), "shapes"),
        (np.ones(3), np.ones(3), "shapes"),
        (np.ones((2, 0)), np.ones((2, 0)), "shapes"),
        (np.full((1, 2), np.nan), np.ones((1, 2)), "finite"),
        (np.ones((1, 2)), np.zeros((1, 2)), "a sum of 0"),
    ):
        with pytest.raises(ValueError, match=what):
            mean_ratio(above, below)

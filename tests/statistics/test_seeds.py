"""Means over seeds and paired tests over seeds, against SciPy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sercli.statistics import Interval, PairedSeeds, mean_interval, paired_seeds

NUMBERS = st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 3)), min_size=2, max_size=9)


@given(NUMBERS, st.sampled_from([0.9, 0.95, 0.99]))
def test_a_mean_has_scipys_t_interval(values: list[float], confidence: float) -> None:
    ours = mean_interval(values, confidence=confidence)
    assert ours is not None
    if len(set(values)) == 1:
        assert (ours.low, ours.high) == pytest.approx((values[0], values[0]))
        return
    theirs = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=1e-9, abs=1e-9)


def test_three_seeds_by_hand() -> None:
    # t of two degrees of freedom at 97.5 %: 4.3027; s of 70, 71, 72 is 1.
    ours = mean_interval([70.0, 71.0, 72.0])
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((71 - 4.30265 / 3**0.5, 71 + 4.30265 / 3**0.5))


def test_one_seed_has_no_interval_and_equal_ones_no_width() -> None:
    assert mean_interval([70.0]) is None
    assert mean_interval([1.5, 1.5]) == Interval(1.5, 1.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_a_mean_needs_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        mean_interval(values)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=9))
def test_seeds_are_paired_as_scipy_pairs_them(pairs: list[tuple[float, float]]) -> None:
    first, second = ([round(pair[side], 2) for pair in pairs] for side in (0, 1))
    ours = paired_seeds(first, second)
    differences = [round(b - a, 2) for a, b in zip(first, second, strict=True)]
    assert ours.difference == pytest.approx(sum(differences) / len(pairs), abs=1e-9)
    assert ours.seeds == len(pairs)
    if len(set(differences)) == 1:
        assert ours.p_value is ours.interval is None
        return
    theirs = stats.ttest_rel(second, first)
    low, high = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    assert ours.interval is not None
    assert (ours.interval.low, ours.interval.high) == pytest.approx((low, high), rel=1e-7, abs=1e-9)


def test_nothing_is_significant_for_want_of_variation() -> None:
    # 0.7 each to the reader, and not to the last bit: t would be 10¹⁵.
    equal = paired_seeds([70.1, 60.4, 81.3], [70.8, 61.1, 82.0])
    assert equal == PairedSeeds(pytest.approx(0.7), None, None, 3)
    assert paired_seeds([70.0, 60.0], [70.0, 60.0]) == PairedSeeds(0.0, None, None, 2)
    assert paired_seeds([70.0], [71.5]) == PairedSeeds(1.5, None, None, 1)


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, math.nan], [1.0, 2.0])]
)
def test_seeds_must_pair(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        paired_seeds(first, second)

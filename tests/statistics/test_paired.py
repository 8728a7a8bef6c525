"""Paired tests over images, against SciPy, closed forms and the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from sercli.statistics import difference_interval, holm_adjusted, mcnemar_p_value, paired_test


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_tests_mid_p(only_first: int, only_second: int) -> None:
    total, fewer = only_first + only_second, min(only_first, only_second)
    exact = stats.binomtest(fewer, total).pvalue if total else 1.0
    half = stats.binom.pmf(fewer, total, 0.5)
    # With a tie the exact value is cut off at 1; both tails and the middle are 1 + f(k).
    expected = 1.0 if only_first == only_second else exact - half
    found = mcnemar_p_value(only_first, only_second)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found <= 1


def test_mcnemar_holds_where_powers_of_two_overflow() -> None:
    below, at = (stats.binom.cdf(end, 50_000, 0.5) for end in (24_599, 24_600))
    assert mcnemar_p_value(24_600, 25_400) == pytest.approx(below + at, rel=1e-7)
    assert mcnemar_p_value(3, 1) == pytest.approx((2 * 1 + 4) / 16)
    with pytest.raises(ValueError, match="counts"):
        mcnemar_p_value(-1, 3)


def test_mid_p_of_the_papers_example() -> None:
    """Airway hyper-responsiveness, b = 1 and c = 7: exact 0.070, mid-p 0.039 (Fagerland 2013)."""
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0390625)


@pytest.mark.parametrize(
    ("b", "c", "images"),
    [(1, 7, 21), (12, 3, 100), (0, 5, 40), (25, 30, 1024), (900, 1100, 50_000)],
)
def test_the_interval_is_where_the_likelihoods_score_test_rejects(b, c, images) -> None:
    """q maximised numerically instead of by Tango's quadratic."""

    def score(delta: float) -> float:
        def minus_log(q: float) -> float:
            rest = 1 - 2 * q - delta
            return -(
                (b * math.log(q) if b else 0)
                + (c * math.log(q + delta) if c else 0)
                + (images - b - c) * math.log(rest)
            )

        low, high = max(0.0, -delta) + 1e-13, (1 - delta) / 2 - 1e-13
        q = optimize.minimize_scalar(
            minus_log, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
        ).x
        variance = images * (2 * q + delta * (1 - delta))
        return abs(c - b - images * delta) / math.sqrt(variance)

    interval = difference_interval(b, c, images=images)
    for end in (interval.low, interval.high):
        assert score(end) == pytest.approx(stats.norm.ppf(0.975), abs=2e-3)
    assert interval.low < (c - b) / images < interval.high


def test_an_interval_without_discordant_images_has_width_and_ends_stay_inside() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    none = difference_interval(0, 0, images=100)
    assert (none.low, none.high) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    all_of_them = difference_interval(0, 100, images=100)
    assert all_of_them.high == pytest.approx(1.0)
    assert all_of_them.high <= 1 > all_of_them.low > 0.9
    turned = difference_interval(100, 0, images=100)
    assert (turned.low, turned.high) == pytest.approx((-all_of_them.high, -all_of_them.low))
    with pytest.raises(ValueError, match="go together"):
        difference_interval(60, 60, images=100)


def test_paired_test_counts_and_is_tighter_than_unpaired() -> None:
    generator = np.random.default_rng(2)
    first = generator.random(2000) < 0.5
    second = first.copy()
    second[np.flatnonzero(~first)[:60]] = True
    second[np.flatnonzero(first)[:20]] = False
    test = paired_test(first, second)
    assert (test.only_first, test.only_second, test.images) == (20, 60, 2000)
    assert test.difference == pytest.approx(40 / 2000)
    assert test.p_value == pytest.approx(mcnemar_p_value(20, 60))
    half = 1.96 * math.sqrt(80 / 2000 - (40 / 2000) ** 2) / math.sqrt(2000)
    assert test.interval.low == pytest.approx(0.02 - half, abs=0.001)
    assert test.interval.high - test.interval.low < 0.5 * 2 * 1.96 * math.sqrt(2 * 0.25 / 2000)


def test_paired_test_refuses_different_images() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_test([True], [True, False])


def test_holm_against_a_worked_example() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([]) == []

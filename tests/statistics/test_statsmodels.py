"""Intervals and tests against statsmodels (extra dev-all)."""

import importlib

import numpy as np
import pytest
from scipy import stats

from sercli.statistics import holm_adjusted, mcnemar_p_value, wilson_interval

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def statsmodels():
    """By name; a package that is missing is an error: this is what is asked for."""
    return lambda name: importlib.import_module(f"statsmodels.stats.{name}")


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 7), (500, 1000), (0, 50)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson(statsmodels, successes, trials, confidence):
    ours = wilson_interval(successes, trials, confidence=confidence)
    low, high = statsmodels("proportion").proportion_confint(
        successes, trials, alpha=1 - confidence, method="wilson"
    )
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 3), (2, 11), (40, 77)])
def test_mcnemar(statsmodels, first, second):
    table = [[5, first], [second, 8]]
    theirs = statsmodels("contingency_tables").mcnemar(table, exact=True).pvalue
    # Theirs is the exact test; mid-p counts half of what was seen, and a tie is cut off at 1.
    half = stats.binom.pmf(min(first, second), first + second, 0.5)
    expected = 1.0 if first == second else theirs - half
    assert mcnemar_p_value(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_holm(statsmodels, count):
    p_values = np.random.default_rng(count).random(count) ** 3
    theirs = statsmodels("multitest").multipletests(p_values, method="holm")[1]
    assert holm_adjusted(p_values.tolist()) == pytest.approx(theirs.tolist())

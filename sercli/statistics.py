"""Intervals and tests for tables: Wilson, bootstrap, exact McNemar, Holm, t, medians of ratios.

NumPy and SciPy's distributions only. Proportions are in 0…1 here; tables multiply by 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 4000
_FEW_VALUES = 16
_SUBTRACTION = 1e-12  # of the largest value: less than this is the rounding of a difference
_INDICES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A two-sided interval, `low <= high`, in the unit of what was measured."""

    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """How many times the one costs what the other does, from pairs of one run.

    Attributes:
        value: Median of the ratios.
        interval: Exact interval of that median; None where there are too few pairs for one.
        rounds: Pairs.
    """

    value: float
    interval: Interval | None
    rounds: int


@dataclass(frozen=True)
class PairedTest:
    """How two classifiers differ on the same images.

    Attributes:
        difference: Accuracy of the second minus the first, in -1…1.
        interval: Percentile bootstrap interval of the difference over images.
        p_value: Exact McNemar test, two-sided.
        only_first: Images that only the first has right.
        only_second: Images that only the second has right.
        images: How many images both were scored on.
    """

    difference: float
    interval: Interval
    p_value: float
    only_first: int
    only_second: int
    images: int


@dataclass(frozen=True)
class PairedSeeds:
    """How two methods differ, each trained with the same seeds.

    Attributes:
        difference: Mean over seeds of the second minus the first.
        interval: Student's t interval of it; None where `p_value` is.
        p_value: Paired t test, two-sided; None for one seed, and where the differences do not
            vary, since nothing then says by how much others would.
        seeds: Pairs.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    seeds: int


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; the deviation is None for a single value."""

    mean: float
    std: float | None
    count: int


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion p̂ = successes / trials.

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), z the normal quantile of
    (1 + confidence) / 2.

    Raises:
        ValueError: Not 0 <= successes <= trials, or no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials; 0 <= successes <= trials, > 0")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # The bounds are exactly 0 and 1 at the ends; rounding must not cross the value itself.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high)


def bootstrap_interval(
    values: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile bootstrap interval of a mean over images.

    Each resample draws n of the n values with replacement; the interval runs from the
    (1−confidence)/2 to the (1+confidence)/2 quantile of the resampled means. With few distinct
    values (0/1 correctness) the counts of a resample are multinomial(n, observed shares), which
    is the same distribution at a fraction of the work.

    Args:
        values: [n], one number an image.

    Raises:
        ValueError: Empty, not one-dimensional or not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values of shape {sample.shape}; [n] finite numbers, n > 0, are needed")
    means = _resampled_means(sample, np.random.default_rng(seed), resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _resampled_means(
    sample: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    size = sample.size
    distinct, counts = np.unique(sample, return_counts=True)
    if distinct.size <= _FEW_VALUES:
        drawn = generator.multinomial(size, counts / size, size=resamples)
        return np.asarray(drawn @ distinct / size, dtype=np.float64)
    rows = max(1, _INDICES_AT_ONCE // size)
    parts = [
        sample[generator.integers(size, size=(min(rows, resamples - start), size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Exact interval of a median, from order statistics: of any distribution, outliers or not.

    The number of values below the median is binomial(n, ½). From the k-th smallest to the k-th
    largest value it lies with 1 − 2·P(binomial < k); k is the largest with `confidence` at least.

    Returns:
        None where not even all n values have that confidence (n < 6 for 95 %).
    """
    count, ordered = len(values), sorted(values)
    missed, below = 0.0, 0
    for successes in range(count // 2):  # one more value is left out at each end
        missed += 2 * math.comb(count, successes) / 2**count
        if missed > 1 - confidence:
            break
        below = successes + 1
    return None if below == 0 else Interval(ordered[below - 1], ordered[count - below])


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """`seconds` over `reference`, pair by pair, so that what slows down both cancels.

    Args:
        seconds: [n] of what is compared, one a round.
        reference: [n] of what it is compared with, in the same rounds.

    Raises:
        ValueError: They do not pair, or there are none.
    """
    if not seconds or len(seconds) != len(reference):
        raise ValueError(f"{len(seconds)} and {len(reference)} values; as many, > 0, are needed")
    ratios = [one / other for one, other in zip(seconds, reference, strict=True)]
    return Ratio(median(ratios), median_interval(ratios), len(ratios))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test on the discordant images.

    Under equal accuracy each of the m = b + c discordant images favours either side with ½:
    p = min(1, 2 Σ_{i=0}^{min(b,c)} C(m, i) / 2^m). Terms are summed in logarithms, so that
    m in the ten thousands neither overflows nor underflows.

    Raises:
        ValueError: A negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first}, {only_second}; both must be >= 0")
    total = only_first + only_second
    logs = [
        math.lgamma(total + 1) - math.lgamma(i + 1) - math.lgamma(total - i + 1)
        for i in range(min(only_first, only_second) + 1)
    ]
    largest = max(logs)
    tail = math.fsum(math.exp(value - largest) for value in logs)
    return min(1.0, math.exp(math.log(2 * tail) + largest - total * math.log(2)))


def paired_test(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> PairedTest:
    """Compare two classifiers on the same images.

    The bootstrap resamples images, so that what both find easy or hard cancels.

    Args:
        first: [n] bool, correctness of the baseline.
        second: [n] bool, correctness of the other, in the same order.

    Raises:
        ValueError: Shapes differ, or no images.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != two.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"shapes {one.shape} and {two.shape}; the same [n], n > 0, is needed")
    differences = two.astype(np.float64) - one.astype(np.float64)
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    return PairedTest(
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences, seed=seed),
        p_value=mcnemar_p_value(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
        images=one.size,
    )


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests, in the order given.

    With p₍₁₎ <= … <= p₍ₘ₎: adjusted p₍ᵢ₎ = max_{j<=i} min(1, (m − j + 1) p₍ⱼ₎).
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation √(Σ(x−x̄)²/(n−1)) over seeds.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("no values; a mean needs at least one")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Student's t interval of a mean over seeds: x̄ ± t_{n−1} s / √n.

    t_{n−1} is the (1 + confidence) / 2 quantile, s the sample standard deviation (n − 1).

    Args:
        values: [n], one number a seed.

    Returns:
        None for one value. Values that are all equal have an interval without width.

    Raises:
        ValueError: No values, or one that is not finite.
    """
    _require_finite(values)
    found = spread(values)
    if found.std is None:
        return None
    half = _t_quantile(found.count - 1, (1 + confidence) / 2) * found.std / math.sqrt(found.count)
    return Interval(found.mean - half, found.mean + half)


def paired_seeds(
    first: Sequence[float], second: Sequence[float], *, confidence: float = CONFIDENCE
) -> PairedSeeds:
    """Compare two methods over the seeds that both were trained with.

    The paired t test: t = d̄ √n / s of the differences d, with n − 1 degrees of freedom. What a
    seed does to both (the images of a rendered set, the initial weights) cancels.

    Args:
        first: [n], the baseline's number of each seed.
        second: [n], the other's, of the same seeds in the same order.

    Raises:
        ValueError: They do not pair, there are none, or one is not finite.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; as many, > 0, are needed")
    _require_finite([*first, *second])
    differences = [other - one for one, other in zip(first, second, strict=True)]
    found = spread(differences)
    largest = max(map(abs, [*first, *second]))
    # Equal differences of decimal numbers are not equal to the last bit.
    if found.std is None or found.std <= _SUBTRACTION * largest:
        return PairedSeeds(found.mean, None, None, found.count)
    from scipy.special import stdtr

    t = found.mean * math.sqrt(found.count) / found.std
    return PairedSeeds(
        difference=found.mean,
        interval=mean_interval(differences, confidence=confidence),
        p_value=2 * float(stdtr(found.count - 1, -abs(t))),
        seeds=found.count,
    )


def _t_quantile(freedom: int, share: float) -> float:
    # scipy takes as long to import as all that `ser --help` does.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _require_finite(values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values {list(values)}; they must be finite")

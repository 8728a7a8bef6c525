"""Intervals of one quantity: a share, a mean over seeds, a median of ratios, what is resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A two-sided interval, `low <= high`, in the unit of what was measured.

    Attributes:
        confidence: How often it holds the true value, in 0…1.
    """

    low: float
    high: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Ratio:
    """How many times the one costs what the other does, from pairs of one run.

    Attributes:
        value: Median of the ratios.
        interval: Of that median, with its confidence; None for a single pair.
        rounds: Pairs.
    """

    value: float
    interval: Interval | None
    rounds: int


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; the deviation is None for a single value."""

    mean: float
    std: float | None
    count: int


# -- Shares of images -----------------------------------------------------------------------------


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion p̂ = successes / trials.

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), z the normal quantile of
    (1 + confidence) / 2.

    Raises:
        ValueError: Not 0 <= successes <= trials, or no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials; 0 <= successes <= trials, > 0")
    z = normal_quantile(confidence)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # The bounds are exactly 0 and 1 at the ends; rounding must not cross the value itself.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high, confidence)


def normal_quantile(confidence: float) -> float:
    """z, within which of 0 a standard normal number lies with `confidence`."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


# -- What is resampled over images ----------------------------------------------------------------


def resampled_ends(
    resampled: NDArray[np.float64],
    *,
    images: int,
    value: float | None = None,
    confidence: float = CONFIDENCE,
) -> NDArray[np.float64]:
    """Ends of the expanded percentile interval of whatever a bootstrap over images resamples.

    A resample of n images varies as if they were all there are: by √((n−1)/n) too little, and by a
    normal's tails instead of Student's. So the interval runs between the quantiles Φ(∓√(n/(n−1))
    t_{n−1}) of the resampled values instead of 2.5 and 97.5 % (Hesterberg, 2015, "What Teachers
    Should Know About the Bootstrap"). For 20 images it is 9 % wider, for 512 0.3 %.

    Args:
        resampled: [R, …], a value of each resample.
        images: n, how many each resample draws.
        value: Of all images, of what is biased with so few. Resampling then moves it by about as
            much again, so the ends are moved back by twice that: once for the bias of the
            resamples, once for that of the value.

    Returns:
        [2, …], low and high; not where a resample is NaN, which leaves them NaN.

    Raises:
        ValueError: Fewer than two images vary by nothing.
    """
    if images < 2:
        raise ValueError(f"{images} image; what varies over images needs two")
    reach = math.sqrt(images / (images - 1)) * t_quantile(images - 1, (1 + confidence) / 2)
    tail = NormalDist().cdf(-reach)
    ends: NDArray[np.float64] = np.quantile(resampled, [tail, 1 - tail], axis=0, method="weibull")
    return ends if value is None else ends - 2 * (resampled.mean(axis=0) - value)


def jackknife_interval(
    value: float, left_out: Sequence[float], *, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of a number that a set of images has as a whole, from what it is without a part.

    The images are dealt into G groups; with θ(g) the number without group g, the error is
    s² = (G−1)/G Σ (θ(g) − θ̄)², and the interval value ± t_{G−1} s (the delete-a-group jackknife:
    Kott, 2001). It is for what a bootstrap changes by drawing images twice, such as AP, which with
    fewer different images comes out higher.

    Args:
        value: Of all images.
        left_out: [G], of all but one group each.

    Raises:
        ValueError: Fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        raise ValueError(f"{groups} group; what varies over groups needs two")
    found = spread(left_out).std or 0.0
    half = t_quantile(groups - 1, (1 + confidence) / 2) * found * (groups - 1) / math.sqrt(groups)
    return Interval(value - half, value + half, confidence)


# -- Seeds ----------------------------------------------------------------------------------------


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
    require_finite(values)
    found = spread(values)
    if found.std is None:
        return None
    half = t_quantile(found.count - 1, (1 + confidence) / 2) * found.std / math.sqrt(found.count)
    return Interval(found.mean - half, found.mean + half, confidence)


def t_quantile(freedom: int, share: float) -> float:
    """Of Student's distribution: below which number `share` of it lies."""
    # scipy takes as long to import as all that `ser --help` does.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def require_finite(values: Sequence[float]) -> None:
    """
    Raises:
        ValueError: One of the values is infinite or no number.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values {list(values)}; they must be finite")


# -- Rounds of a benchmark ------------------------------------------------------------------------


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Interval of a median, from order statistics: of any distribution, outliers or not.

    The number of values below the median is binomial(n, ½): it lies from the d-th smallest to the
    d-th largest value with γ(d) = 1 − 2·P(binomial < d). Between the last d with γ(d) >= confidence
    and the next, ends are interpolated by λ = (n−d) I / (d + (n−2d) I), I = (γ(d) − confidence) /
    (γ(d) − γ(d+1)), nearly exact for any continuous distribution (Hettmansperger & Sheather, 1986).

    Returns:
        From the smallest to the largest value where even that has less than `confidence` (for 95 %,
        below six values: 93.75, 87.5, 75 and 50 %), with the confidence that it has. None for one.
    """
    count, ordered = len(values), sorted(values)
    if count < 2:
        return None
    depth, held = 1, 1 - 2.0 ** (1 - count)
    if held < confidence:
        return Interval(ordered[0], ordered[-1], held)
    less = held - 2 * math.comb(count, 1) / 2**count
    while less >= confidence:
        depth, held = depth + 1, less
        less = held - 2 * math.comb(count, depth) / 2**count
    within = (held - confidence) / (held - less)
    inner = (count - depth) * within / (depth + (count - 2 * depth) * within)
    low = (1 - inner) * ordered[depth - 1] + inner * ordered[depth]
    high = (1 - inner) * ordered[count - depth] + inner * ordered[count - depth - 1]
    return Interval(low, high, confidence)


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

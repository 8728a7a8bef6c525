"""What a paired test over images can find: how often, and how large a difference must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEGLIGIBLE = 9.0  # standard deviations of a binomial number, beyond which there is nothing
_LEVEL = 0.05
_ENOUGH = 0.8


def power_of_paired_test(
    difference: float, *, discordant: float, images: int, level: float = _LEVEL
) -> float:
    """How often McNemar's mid-p test finds a difference of two accuracies: its exact power.

    Σ_m P(m) P(reject | m) over the number m of discordant images, binomial(n, ψ), of which the
    better one has binomial(m, (1 + |δ|/ψ) / 2) right alone. About
    Φ((|δ|√n − z √ψ) / √(ψ − δ²)) (Connor, 1987, "Sample size for testing differences in proportions
    for the paired-sample design"), z the normal quantile of 1 − level / 2. With δ = 0 it is the
    test's size, about `level`, and less where few images are discordant.

    Args:
        difference: δ, of the two accuracies, in -1…1.
        discordant: ψ, share of images that only one of the two has right, 0…1.
        images: n.
        level: At which p-value the test rejects.

    Raises:
        ValueError: Not |difference| <= discordant <= 1, or no images.
    """
    if not abs(difference) <= discordant:
        raise ValueError(f"a difference of {difference} with {discordant} of the images discordant")
    return _Design.of(discordant, images, level).power(difference)


def smallest_difference(
    *, discordant: float, images: int, power: float = _ENOUGH, level: float = _LEVEL
) -> float | None:
    """The smallest difference of two accuracies that the test finds with this power.

    Args:
        discordant: Share of images that only one of the two has right, 0…1.
        images: Their number.

    Returns:
        In 0…1, to a thousandth of itself; None where not even `discordant`, the largest that there
        can be, is found so often.
    """
    design = _Design.of(discordant, images, level)
    if design.power(discordant) < power:
        return None
    low, high = 0.0, discordant
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if design.power(middle) >= power else (middle, high)
    return high


@dataclass(frozen=True)
class _Design:
    """The test on so many images, whatever the difference.

    Attributes:
        discordant: ψ.
        totals: [M], numbers of discordant images that there may be.
        likely: [M], how likely each is.
        fewest: [M], the most that the fewer side has if the test rejects; -1: it never does.
    """

    discordant: float
    totals: NDArray[np.float64]
    likely: NDArray[np.float64]
    fewest: NDArray[np.float64]

    @classmethod
    def of(cls, discordant: float, images: int, level: float) -> _Design:
        """
        Raises:
            ValueError: Not 0 <= discordant <= 1, or no images.
        """
        if images < 1 or not 0 <= discordant <= 1:
            raise ValueError(f"{discordant} of {images} images discordant; 0…1 of 1 or more can be")
        totals, likely = _binomial(images, discordant)
        return cls(discordant, totals, likely, _critical(totals, level))

    def power(self, difference: float) -> float:
        if self.discordant == 0:
            return 0.0
        better = (1 + abs(difference) / self.discordant) / 2
        rejects, most = self.fewest >= 0, np.maximum(self.fewest, 0)
        # So few of them on the one side, or on the other.
        found = _at_most(most, self.totals, better) + _at_most(most, self.totals, 1 - better)
        return float((self.likely * np.where(rejects, found, 0.0)).sum())


def _binomial(trials: int, share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of successes that a binomial reaches, 0 left out, and how likely each is."""
    from scipy.special import gammaln, xlog1py, xlogy

    middle, reach = trials * share, _NEGLIGIBLE * math.sqrt(trials * share * (1 - share)) + 10
    first, last = max(1, math.floor(middle - reach)), min(trials, math.ceil(middle + reach))
    count = np.arange(first, last + 1, dtype=np.float64)
    logs = gammaln(trials + 1) - gammaln(count + 1) - gammaln(trials - count + 1)
    logs = logs + xlogy(count, share) + xlog1py(trials - count, -share)
    return count, np.exp(logs)


def _critical(totals: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """`_Design.fewest`, by halving: the mid-p value grows with the fewer side's count."""
    low, high = np.full_like(totals, -1.0), np.floor(totals / 2) + 1
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        rejected = _mid_p(np.maximum(middle, 0), totals) < level
        moves = high - low > 1
        low = np.where(moves & rejected, middle, low)
        high = np.where(moves & ~rejected, middle, high)
    return low


def _mid_p(fewer: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """2 Σ_{i<k} f(i) + f(k) of binomial(m, ½), which is F(k−1) + F(k)."""
    below = np.where(fewer > 0, _at_most(np.maximum(fewer - 1, 0), totals, 0.5), 0.0)
    p: NDArray[np.float64] = below + _at_most(fewer, totals, 0.5)
    return p


def _at_most(
    successes: NDArray[np.float64], trials: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """F(k) of binomials, k < m: the incomplete beta function I_{1−p}(m − k, k + 1)."""
    from scipy.special import betainc

    found: NDArray[np.float64] = betainc(trials - successes, successes + 1, 1 - share)
    return found

"""Means of ratios of sums over images, such as ES and mean IoU: two on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sercli.statistics.intervals import CONFIDENCE, Interval, t_quantile

_ROUNDING = 1e-12  # of the larger value, or of a sum: less than this is rounding


@dataclass(frozen=True)
class MeanRatio:
    """The mean over K of Σ numerators / Σ denominators, sums over n images.

    Attributes:
        numerators: [K, n].
        denominators: [K, n], of which no sum is 0.

    Raises:
        ValueError: Shapes differ, something is not finite, or a sum is not above 0.
    """

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = self.numerators.shape
        if shape != self.denominators.shape or len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"shapes {shape} and {self.denominators.shape}; the same [K, n], n > 0, is needed"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            sums = [part.sum(axis=1) for part in (self.numerators, self.denominators)]
        if not np.isfinite(sums).all():
            raise ValueError("a number or a sum that is not finite")
        if not (sums[1] > 0).all():
            raise ValueError("denominators with a sum of 0; it must be above")

    @property
    def ratios(self) -> NDArray[np.float64]:
        """[K]."""
        found: NDArray[np.float64] = self.numerators.sum(axis=1) / self.denominators.sum(axis=1)
        return found

    @property
    def value(self) -> float:
        return float(self.ratios.mean())

    @property
    def images(self) -> int:
        return int(self.numerators.shape[1])

    def ordered(self, order: NDArray[np.int64]) -> MeanRatio:
        """The same of images in another order, [n]."""
        return MeanRatio(self.numerators[:, order], self.denominators[:, order])

    def moved_by(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What each image moves each ratio by: it with all images, minus it without the image.

        Returns:
            [K, n], 0 where there is no ratio without the image; and where that is.
        """
        of_all = self.denominators.sum(axis=1, keepdims=True)
        rest = of_all - self.denominators
        alone = rest <= _ROUNDING * of_all
        beside = self.numerators - self.ratios[:, None] * self.denominators
        return np.where(alone, 0.0, beside / np.where(alone, 1.0, rest)), alone


@dataclass(frozen=True)
class PairedRatios:
    """How two such means differ on the same images.

    Attributes:
        difference: The second minus the first.
        interval: Of it; None where `p_value` is.
        p_value: Two-sided; None for one image, and where no image moves the difference.
        images: Of the pair.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    images: int


def paired_ratios(
    first: MeanRatio, second: MeanRatio, *, confidence: float = CONFIDENCE
) -> PairedRatios:
    """Compare two means of ratios on the same images: what both find easy or hard cancels.

    The delete-one jackknife: with δ(i) the difference without image i, and all of these v(i) =
    (n − 1) (δ − δ(i)), the error is s(v) / √n, and the interval and the test are Student's with
    n − 1 degrees of freedom. Of a linear ratio it is the variance of influence values; where a
    ratio hangs on few images (a rare class) those are too small by the share that each has of the
    sum, twice: 20 classes in 1 to 20 % of 64 images held in 78 % with them, and in 95 % with this.
    A ratio of a single image is missing without it, and the mean is of the others.

    Args:
        first: The baseline's.
        second: The other's, of the same ratios and images in the same order.

    Raises:
        ValueError: They are of other numbers of ratios or images.
    """
    if first.numerators.shape != second.numerators.shape:
        raise ValueError(
            f"shapes {first.numerators.shape} and {second.numerators.shape}; they must be the same"
        )
    number, images = first.numerators.shape
    each = second.ratios - first.ratios
    difference = float(each.mean())
    (one, one_alone), (two, two_alone) = first.moved_by(), second.moved_by()
    alone = one_alone | two_alone
    there = number - alone.sum(axis=0)
    left = np.where(alone, 0.0, each[:, None] - (two - one)).sum(axis=0)
    without = np.where(there > 0, left / np.maximum(there, 1), difference)
    error = (images - 1) * float(np.std(without, ddof=1)) / math.sqrt(images) if images > 1 else 0.0
    if error <= _ROUNDING * max(abs(first.value), abs(second.value)):
        return PairedRatios(difference, None, None, images)
    from scipy.special import stdtr

    half = t_quantile(images - 1, (1 + confidence) / 2) * error
    return PairedRatios(
        difference=difference,
        interval=Interval(difference - half, difference + half, confidence),
        p_value=2 * float(stdtr(images - 1, -abs(difference / error))),
        images=images,
    )

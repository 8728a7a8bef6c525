"""Mean IoU and pixel accuracy of counted pixels, with intervals over images.

IoU of a class is the ratio of two sums over all images: of the pixels that are of it and are called
so, and of those that are either. The mean is over the classes that occur, which are those that some
pixel of the set is of; what is taken for a class that does not occur counts against those it was
taken from. The bootstrap draws images, so that an interval is of other images of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sercli.data.masks.source import IGNORED
from sercli.evals.common import Metrics
from sercli.statistics import resampled_ends

Numbers = NDArray[np.float64]

_LACKING = 0.2  # of the samples: where more lack a class, they tell no bias


@dataclass(frozen=True)
class Counts:
    """Pixels by class in each of M images, without those that are ignored.

    Attributes:
        right: int64 [M, C], of the class and called so.
        called: int64 [M, C], called so.
        truth: int64 [M, C], of the class.
    """

    right: NDArray[np.int64]
    called: NDArray[np.int64]
    truth: NDArray[np.int64]

    @classmethod
    def of_image(
        cls, mask: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int
    ) -> Counts:
        """Count one image; both [H, W]."""
        labelled = mask != IGNORED
        truth, called = mask[labelled], predicted[labelled]
        each = (truth[truth == called], called, truth)
        return cls(*(np.bincount(one, minlength=num_classes)[None] for one in each))

    @classmethod
    def of_confusion(cls, table: NDArray[np.int64]) -> Counts:
        """As of one image; table [C, C], truth by prediction."""
        return cls(np.diagonal(table)[None], table.sum(0)[None], table.sum(1)[None])

    @property
    def unions(self) -> NDArray[np.int64]:
        """int64 [M, C], of the class, or called so, or both."""
        return self.called + self.truth - self.right

    def iou(self, weights: Numbers) -> Numbers:
        """Percent [R, C], NaN where a class does not occur.

        Args:
            weights: [R, M], how often each image counts in each of R samples.
        """
        occurs = weights @ self.truth > 0
        unions = weights @ self.unions
        return np.where(occurs, 100 * (weights @ self.right) / np.where(occurs, unions, 1), np.nan)

    def accuracy(self, weights: Numbers) -> Numbers:
        """Percent [R] of the pixels that are right, NaN where there are none."""
        pixels = weights @ self.truth.sum(1)
        right = weights @ self.right.sum(1)
        return np.where(pixels > 0, 100 * right / np.where(pixels > 0, pixels, 1), np.nan)

    def mean_iou(self) -> float | None:
        """Percent; None where no pixel has a class."""
        return _number(mean(self.iou(np.ones((1, len(self.truth)))))[0])


def mean(iou: Numbers) -> Numbers:
    """[R, C] → [R], over the classes that occur."""
    there = ~np.isnan(iou)
    number = there.sum(1)
    total = np.where(there, iou, 0).sum(1)
    return np.where(number > 0, total / np.where(number > 0, number, 1), np.nan)


def metrics(counts: Counts, classes: Sequence[str], resamples: Numbers) -> Metrics:
    """`miou`, `pixel_accuracy` and `iou/CLASS` in percent, each with `/low` and `/high`.

    Args:
        counts: Of M images.
        classes: C names. One that does not occur has None.
        resamples: [R, M], how often each image is drawn.
    """
    whole = np.ones((1, len(counts.truth)))
    iou, drawn = counts.iou(whole), counts.iou(resamples)
    found = {
        "miou": (mean(iou)[0], mean(drawn)),
        "pixel_accuracy": (counts.accuracy(whole)[0], counts.accuracy(resamples)),
        **{f"iou/{name}": (iou[0, label], drawn[:, label]) for label, name in enumerate(classes)},
    }
    values: Metrics = {}
    lacking = np.isnan(drawn[:, ~np.isnan(iou[0])]).any(1).mean()
    for name, (value, sampled) in found.items():
        biased = name == "miou" and lacking <= _LACKING
        values |= _with_interval(name, value, sampled, images=len(counts.truth), biased=biased)
    return values


def _with_interval(
    name: str, value: float, drawn: Numbers, *, images: int, biased: bool = False
) -> Metrics:
    """The expanded percentile bootstrap; samples in which there is no value are left out.

    Args:
        biased: Take the bias off: errors of classes average out in their mean, biases of their
            ratios do not. Mean IoU of twenty classes that few of 256 images have held in 87 %.
    """
    if np.isnan(value):
        return {name: None, f"{name}/low": None, f"{name}/high": None}
    if images < 2:
        return {name: float(value), f"{name}/low": None, f"{name}/high": None}
    whole = float(value) if biased else None
    ends = resampled_ends(drawn[~np.isnan(drawn)], images=images, value=whole)
    low, high = np.clip(ends, 0, 100)
    return {name: float(value), f"{name}/low": float(low), f"{name}/high": float(high)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""What evaluators share: outcomes, accuracies, progress, seeded samples, a hold-out of train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data import ImageSource
from sercli.encoders.loading import LoadedEncoder
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.randomness import numpy_generator
from sercli.runs.result import Result
from sercli.statistics import wilson_interval

TOP = 5
HELD_OUT = 0.2
SEED = 0  # of the hold-out, of a limited sample, of resamples and of the random twin
RESAMPLES = 2000  # of a bootstrap of ratios of sums over images

Progress = Callable[[str, int, int], None]  # what is done, how much of it, and all of it
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Outcome:
    """A result, and what it rests on for each image.

    Attributes:
        result: With its metrics.
        arrays: What is stored beside the result, by name; image_ids among them.
    """

    result: Result
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Right:
    """How many of a number of images have their class first, and among the first five."""

    first: int
    among_five: int
    images: int

    @classmethod
    def of(cls, best: NDArray[np.int64], labels: NDArray[np.int64]) -> Right:
        """Count.

        Args:
            best: int64 [N, ≤ 5], each image's best classes, best first.
            labels: int64 [N].
        """
        found = best[:, :TOP] == labels[:, None]
        return cls(int(found[:, 0].sum()), int(found.any(1).sum()), len(labels))

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.first / self.images

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.among_five / self.images

    def metrics(self, prefix: str = "") -> Metrics:
        """`top1` and `top5` in percent, each with `/low` and `/high`: Wilson's over images.

        Args:
            prefix: What the names begin with, `random/` for those of a random twin.
        """
        values: Metrics = {}
        for name, correct in (("top1", self.first), ("top5", self.among_five)):
            interval = wilson_interval(correct, self.images)
            values[f"{prefix}{name}"] = 100 * correct / self.images
            values[f"{prefix}{name}/low"] = 100 * interval.low
            values[f"{prefix}{name}/high"] = 100 * interval.high
        return values


def model_of(loaded: LoadedEncoder, runtime: Runtime) -> dict[str, Any]:
    """The `model` field of a result: the weights, and in which precision they were used."""
    return {**loaded.describe(), "precision": runtime.precision}


def hold_out(source: ImageSource) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the images: a seeded fifth of each class, but at least one where a class has two.

    Returns:
        Indices of the rest and of the fifth, both ascending.

    Raises:
        UserError: No class has two images.
    """
    random = numpy_generator(SEED, "knn", "hold-out")
    held: list[NDArray[np.int64]] = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(source.labels == label)
        if len(members) > 1:
            held.append(random.permutation(members)[: max(1, round(HELD_OUT * len(members)))])
    if not held:
        raise UserError(
            f"{source.name} has no val split and one image a class",
            "queries are held out of train, and their classes must stay in it",
            "add a val/ folder",
        )
    queries = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(source)), queries), queries


def at_most(
    limit: int | None, indices: NDArray[np.int64], draws: np.random.Generator
) -> NDArray[np.int64]:
    """A random sample of at most `limit` images, in the order of the set.

    Classes stand together there: the first images would be of few.

    Args:
        limit: How many at most; None leaves none out.
        indices: int64 [N], ascending.
        draws: Drawn from even where the limit leaves none out, for the sake of what comes next.
    """
    if limit is None:
        return indices
    return np.sort(draws.choice(indices, min(limit, len(indices)), replace=False))


def commonest_share(labels: NDArray[np.int64], *, known: NDArray[np.int64]) -> float:
    """Percent right for always naming the most frequent class: what chance is.

    Args:
        labels: int64 [M], of the images that are classified.
        known: int64 [N], of the images that were learnt from.
    """
    commonest = int(np.bincount(known).argmax())
    return 100 * float(np.mean(labels == commonest))


def resample_weights(protocol: str, count: int) -> NDArray[np.float64]:
    """How often each of n images is drawn in each sample of a bootstrap; each row sums to n.

    Args:
        protocol: Whose, by name: each draws its own.
        count: n.

    Returns:
        [RESAMPLES, n].
    """
    drawn = numpy_generator(SEED, protocol, "bootstrap").multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    return drawn.astype(np.float64)

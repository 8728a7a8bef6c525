"""What evaluators share: progress, seeded samples, and a hold-out of train."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sercli.data import ImageSource
from sercli.errors import UserError
from sercli.randomness import numpy_generator

HELD_OUT = 0.2
SEED = 0  # of the hold-out, of a limited sample and of the random twin

Progress = Callable[[str, int, int], None]


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


def limited(indices: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """A seeded sample of at most `limit`, in the order of the set (its classes stand together)."""
    if limit is None or limit >= len(indices):
        return indices
    return np.sort(numpy_generator(SEED, "knn", "limit").choice(indices, limit, replace=False))

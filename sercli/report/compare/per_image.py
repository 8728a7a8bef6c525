"""What runs stored of each image they scored: whether it is right, or what it adds to sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sercli.errors import UserError
from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import Run
from sercli.runs.arrays import read_arrays
from sercli.statistics import MeanRatio

Arrays = dict[str, NDArray[Any]]
_Found = TypeVar("_Found", bound="Right | Sums")

READ_UNASKED = 100  # pairs; sums of more are read where a baseline is named: ES has 4 MB a run
_REPRODUCED = 6e-5  # of 1: arrays must give the stored number at its printed precision
_IDS, _PREDICTED = "image_ids", ("image_ids", "labels", "predictions")
_AT_ONCE = 4  # files whose arrays are kept: a row's columns are of few


@dataclass(frozen=True)
class Right:
    """Which images a run has right, in the order of their ids.

    Attributes:
        images: Stands for the ids and labels: runs with another scored other images.
        right: bool [n].
    """

    images: str
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Sums:
    """What each image adds to the sums of a number, in the order of their ids.

    Attributes:
        images: Stands for the ids, and for what the images are of where that is known.
        mean: The number.
    """

    images: str
    mean: MeanRatio


@dataclass(frozen=True)
class _Images:
    """Images in the order of their ids: a thousand runs have scored the same few sets.

    Attributes:
        name: Stands for ids and labels; None where an id stands twice.
        order: int [n], of the ids as they were stored.
    """

    name: str | None
    order: NDArray[np.int64]


@dataclass
class Known:
    """What was read: of baselines all, images by the bytes of their arrays, the last few files."""

    _right: dict[tuple[str, str, str], Right | None] = field(default_factory=dict)
    _sums: dict[tuple[str, str, str], Sums | None] = field(default_factory=dict)
    _images: dict[str, _Images] = field(default_factory=dict)
    _files: dict[tuple[Path, tuple[str, ...]], Arrays | None] = field(default_factory=dict)

    def right(self, baseline: Run, spec: Spec) -> Right | None:
        """`right_of` a run that other rows are compared with as well."""
        return self._once(self._right, right_of, baseline, spec)

    def sums(self, baseline: Run, spec: Spec) -> Sums | None:
        """`sums_of` a run that other rows are compared with as well."""
        return self._once(self._sums, sums_of, baseline, spec)

    def _once(
        self,
        kept: dict[tuple[str, str, str], _Found | None],
        find: Callable[[Run, Spec, Known], _Found | None],
        baseline: Run,
        spec: Spec,
    ) -> _Found | None:
        place = (baseline.path, spec.source, spec.metric)
        if place not in kept:
            kept[place] = find(baseline, spec, self)
        return kept[place]

    def arrays(self, run: Run, source: str, names: tuple[str, ...]) -> Arrays | None:
        """Arrays beside a result; None where it stored none, or not these.

        Raises:
            UserError: The file is damaged.
        """
        path = run.directory.predictions(source)
        if (path, names) not in self._files:
            found = None
            if path.is_file():
                found = read_arrays(path, names, sha256=run.results[source].predictions_sha256)
            while len(self._files) >= _AT_ONCE:
                del self._files[next(iter(self._files))]
            self._files[path, names] = found
        return self._files[path, names]

    def images_of(self, identities: NDArray[Any], labels: NDArray[Any]) -> _Images:
        """Which images they are.

        Args:
            identities: [n].
            labels: [n, …], what the images are of, as whole numbers.
        """
        stored = sha256(f"{identities.dtype} {labels.dtype} {labels.shape}".encode())
        stored.update(identities.tobytes())
        stored.update(labels.tobytes())
        place = stored.hexdigest()
        if place not in self._images:
            self._images[place] = _in_order(list(map(str, identities.tolist())), labels)
        return self._images[place]


def _in_order(keys: Sequence[str], labels: NDArray[Any]) -> _Images:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    told = repr([(keys[index], labels[index].tolist()) for index in order])
    twice = len(set(keys)) != len(keys)
    return _Images(None if twice else sha256(told.encode()).hexdigest(), np.array(order))


def right_of(run: Run, spec: Spec, known: Known) -> Right | None:
    """Which images a run has right; None where it stored none, or not those of the result."""
    arrays = known.arrays(run, spec.source, _PREDICTED)
    if arrays is None:
        return None
    identities, labels, predictions = (arrays[name] for name in _PREDICTED)
    if labels.size == 0 or predictions.ndim != 1:  # of a grid of test sets
        return None
    if any(array.shape != (labels.size,) for array in arrays.values()) or any(
        array.dtype.kind not in "iu" for array in (labels, predictions)
    ):
        raise _not_of_one(
            run,
            spec,
            "image ids, labels and predictions do not belong together",
            "there is a whole number of each for every image",
        )
    right: NDArray[np.bool_] = predictions == labels
    if not _reproduces(run, spec, float(right.mean())):
        return None
    images = known.images_of(identities, labels)
    return None if images.name is None else Right(images.name, right[images.order])


def sums_of(run: Run, spec: Spec, known: Known) -> Sums | None:
    """What a run's number is the sum of; None where it stored none, or not those of the result."""
    how = spec.quantity.per_image
    if how is None:
        return None
    names = (_IDS, *how.arrays(spec.reading))
    arrays = known.arrays(run, spec.source, names)
    if arrays is None:
        return None
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused
            parts = how.parts(arrays, spec.reading)
        mean = None if parts is None else MeanRatio(*parts)
    except (ValueError, TypeError) as error:  # text has no sum
        raise _not_of_one(
            run, spec, str(error), "its arrays are what each image adds to the sums of the result"
        ) from error
    if mean is None:
        return None
    identities = arrays[_IDS]
    truth = arrays[how.truth] if how.truth else np.zeros((mean.images, 0), np.int64)
    if (
        identities.shape != (mean.images,)
        or truth.shape[:1] != (mean.images,)
        or truth.dtype.kind not in "iu"
    ):
        raise _not_of_one(
            run, spec, "image ids and sums do not belong together", "there is an id for every image"
        )
    if not _reproduces(run, spec, mean.value):
        return None
    images = known.images_of(identities, truth)
    return None if images.name is None else Sums(images.name, mean.ordered(images.order))


def _reproduces(run: Run, spec: Spec, value: float) -> bool:
    """Whether arrays give the number of the result, in 0…1."""
    stored = run.results[spec.source].metrics[spec.metric]
    scale = 100 if spec.column.kind == "percent" else 1
    return stored is not None and abs(value - stored / scale) <= _REPRODUCED


def _not_of_one(run: Run, spec: Spec, what: str, rule: str) -> UserError:
    path = run.directory.predictions(spec.source)
    return UserError(f"{path}: {what}", rule, "repeat the evaluation or remove the file")

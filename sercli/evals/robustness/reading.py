"""Reading images once, and what a classifier predicts for them; several processes take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sercli import distributed
from sercli.data.loading import (
    SupportsGetItem,
    default_workers,
    image_to_tensor,
    load_batches,
    load_images,
)
from sercli.data.source import ImageSource, require_labels
from sercli.errors import UserError
from sercli.evals.common import TOP, Progress, at_most
from sercli.evals.robustness.classifier import Classifier, Finite
from sercli.evals.robustness.metrics import NOISE_PERTURBATIONS, flip_probability, top5_distance
from sercli.evals.robustness.scores import SEED, Best, Sequences
from sercli.metrics import top_classes
from sercli.randomness import numpy_generator

if TYPE_CHECKING:
    from sercli.data.robustness.sets import PerturbedSet

Indices = NDArray[np.int64]
_FRAMES = 32  # of a video, about: how many videos make a batch


@dataclass(frozen=True)
class Reading:
    """How images are read; none of it changes a number.

    Attributes:
        batch_size: Images at a time.
        limit: At most this many images of a set, of each cell of a grid, and videos of each
            perturbation: a seeded sample. The result is partial if that leaves any out.
        workers: Loader processes; None: by the number of cores.
        progress: Called with the set, the images (or videos) done, and all of them.
    """

    batch_size: int = 256
    limit: int | None = None
    workers: int | None = None
    progress: Progress | None = None

    def sample(self, count: int) -> Indices:
        """Which of `count` images are read, ascending; equal counts, equal samples."""
        return at_most(self.limit, np.arange(count), numpy_generator(SEED, "robustness", "limit"))

    @property
    def processes(self) -> int:
        """Loader processes."""
        return default_workers() if self.workers is None else self.workers

    def leaves_out(self, count: int) -> bool:
        return self.limit is not None and self.limit < count

    def teller(self, what: str, total: int, *, before: int = 0) -> Callable[[int], None]:
        """A function of what is done of a part of `total`, after `before` of other parts."""

        def tell(done: int) -> None:
            if self.progress is not None:
                self.progress(what, before + done, total)

        return tell


# -- Sets -----------------------------------------------------------------------------------------


class OnTheFly:
    """Corruptions of val made while reading, in place of files; see `Corruptions`."""

    def __init__(self, val: ImageSource, *, image_size: int) -> None:
        from sercli.data.corruptions.catalogue import CORRUPTIONS, FROST_NOTE, OWN_CORRUPTIONS

        self.corruptions: Sequence[str] = CORRUPTIONS + OWN_CORRUPTIONS
        self.partial = False
        self.notes: Sequence[str] = (FROST_NOTE,)
        self._val = val
        self._image_size = image_size

    def source(self, corruption: str, severity: int) -> ImageSource:
        from sercli.data.robustness.sets import open_otf

        return open_otf(self._val, corruption, severity, seed=SEED, image_size=self._image_size)


class InOrder(ImageSource):
    """A set whose labels index another order of the same classes.

    Raises:
        UserError: The classes are not the same, or there are none.
    """

    def __init__(self, source: ImageSource, classes: Sequence[str]) -> None:
        require_labels(source, "robustness")
        places = {name: index for index, name in enumerate(classes)}
        if places.keys() != set(source.classes):
            strange = sorted(places.keys() ^ set(source.classes))
            raise UserError(
                f"{source.name} has {len(source.classes)} classes, the head {len(places)} "
                f"({strange[0]} is not in both)",
                "val and the head must have the same classes",
                "name the data set that the head was trained on",
            )
        self._source = source
        self.name, self.split, self.classes = source.name, source.split, tuple(classes)
        order = np.array([places[name] for name in source.classes], dtype=np.int64)
        self.labels = order[source.labels]

    def load(self, index: int) -> Image.Image:
        return self._source.load(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def identifier(self, index: int) -> str:
        return self._source.identifier(index)


# -- What is read ---------------------------------------------------------------------------------


class Viewed:
    """Images through the classifier's own transform."""

    def __init__(self, source: ImageSource, view: Callable[[Image.Image], Tensor]) -> None:
        self._source, self._view = source, view

    def __getitem__(self, index: int) -> Tensor:
        return self._view(self._source.load(index))


class AsTheyAre:
    """Images that have the model's side already; any other is an error, not resized."""

    def __init__(self, source: ImageSource, image_size: int) -> None:
        self._source, self._side = source, image_size

    def __getitem__(self, index: int) -> Tensor:
        image = self._source.load(index)
        require_side(image.size, self._side, self._source.describe(index))
        return image_to_tensor(image)


class _Videos:
    """Sequences of one perturbation, uint8 [T, 3, S, S]."""

    def __init__(self, perturbed: PerturbedSet, perturbation: str, image_size: int) -> None:
        self._set, self._name, self._side = perturbed, perturbation, image_size

    def __getitem__(self, index: int) -> Tensor:
        frames = self._set.frames(self._name, index)
        called = f"sequence {index} of {self._name}"
        require_side((frames.shape[2], frames.shape[1]), self._side, called)
        if len(frames) < 2:
            raise UserError(f"{called} has {len(frames)} frames", "two are needed to compare")
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)


def require_side(size: tuple[int, int], side: int, called: str) -> None:
    """Refuse a picture that would have to be resized.

    Raises:
        UserError: Its size is not `side` × `side`.
    """
    if size != (side, side):
        raise UserError(
            f"{called} has {size[0]}×{size[1]} pixels, the model takes {side}×{side}",
            "corrupted and perturbed files are never resized, that would undo them",
            f"use files made at {side} pixels, a probe trained with `ser linear-eval --image-size "
            f"{size[0]}`, or --imagenet-c-otf",
        )


# -- Predictions ----------------------------------------------------------------------------------


def best_classes(
    classifier: Classifier,
    dataset: SupportsGetItem[Tensor],
    indices: Indices,
    *,
    subset: NDArray[np.int64] | None,
    reading: Reading,
    tell: Callable[[int], None],
) -> Best:
    """[N, ≤ 5], the best classes of the images named; processes take turns with the images."""
    allowed = None if subset is None else torch.from_numpy(subset).to(classifier.device)
    columns = min(TOP, len(classifier.classes) if subset is None else len(subset))
    own = _share(indices)
    rows = [torch.empty(0, columns, dtype=torch.long, device=classifier.device)]
    done, finite = 0, Finite()
    at_once = reading.batch_size
    loaded = load_images(
        dataset,
        _batches(own, at_once),
        size=classifier.image_size,
        rows=min(at_once, len(own)),
        workers=reading.processes,
        device=classifier.device,
    )
    for images in loaded:
        logits = finite.see(classifier(images))
        rows.append(top_classes(logits, top=TOP, subset=allowed))
        done += len(images)
        tell(min(done * distributed.world_size(), len(indices)))
    finite.require()
    best: Best = distributed.gather_in_order(torch.cat(rows), len(indices)).cpu().numpy()
    return best


def watch(
    classifier: Classifier,
    perturbed: PerturbedSet,
    perturbation: str,
    videos: Indices,
    *,
    reading: Reading,
    tell: Callable[[int], None],
) -> Sequences:
    """Predictions for the frames of the sequences named, and how they change."""
    noise = perturbation in NOISE_PERTURBATIONS
    predictions: list[Tensor] = []
    changes: list[Tensor] = []  # flips and distance of each
    finite = Finite()
    dataset = _Videos(perturbed, perturbation, classifier.image_size)
    at_once = max(1, reading.batch_size // _FRAMES)
    loaded = load_batches(dataset, _batches(_share(videos), at_once), workers=reading.processes)
    for sequences in loaded:
        frames = torch.cat(sequences).split(reading.batch_size)
        best = torch.cat([top_classes(finite.see(classifier(some)), top=TOP) for some in frames])
        for one in best.split([len(sequence) for sequence in sequences]):
            flips = flip_probability(one[:, 0], noise=noise)
            distance = top5_distance(one, noise=noise)
            predictions.append(one[:, 0])
            changes.append(torch.stack([flips, distance]))
        tell(min(len(changes) * distributed.world_size(), len(videos)))
    finite.require()
    device = classifier.device
    length = distributed.any_rank(max(map(len, predictions), default=0), device)
    table = torch.full((len(predictions), length), -1, device=device)
    for row, one in zip(table, predictions, strict=True):
        row[: len(one)] = one
    none = torch.empty(0, 2, dtype=torch.float64, device=device)
    measured = torch.stack(changes) if changes else none
    flips, distances = distributed.gather_in_order(measured, len(videos)).cpu().numpy().T
    return Sequences(
        distributed.gather_in_order(table, len(videos)).cpu().numpy(),
        perturbed.labels(perturbation)[videos],
        flips,
        distances,
    )


def _batches(indices: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    return (indices[i : i + at_once] for i in range(0, len(indices), at_once))


def _share(indices: Indices) -> list[int]:
    """What this process reads: every W-th."""
    return [int(i) for i in indices[distributed.rank() :: distributed.world_size()]]

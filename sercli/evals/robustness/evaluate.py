"""Accuracy of one classifier on shifted test sets: each image is read once, each set is a result.

- Labelled sets (ImageNet-R, -A, -Sketch, the three of -V2, and val itself): top-1 and top-5. Where
  a set has fewer classes than the head, the other logits are left out before argmax.
- ImageNet-C, and corruptions made on the fly (a protocol of its own): accuracies of the grid of
  corruptions and severities, mCE, relative mCE.
- ImageNet-P: flip probability, top-5 distance, accuracy.

Files of ImageNet-C and -P already have the model's side: they are never resized.

Beside each result stand image_ids, labels and predictions, [N] each; a grid of corruptions has
`cells` [K] and predictions [K, N] (−1 where a partial cell lacks the image); sequences have
predictions [V, T] (−1 beyond the end), flips [V] and ut5d [V].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions.catalogue import SEVERITIES
from sercli.data.robustness.imagenet_classes import is_imagenet
from sercli.evals.common import Outcome, Right
from sercli.evals.robustness import scores
from sercli.evals.robustness.classifier import Classifier
from sercli.evals.robustness.opening import Corruptions, Sets
from sercli.evals.robustness.reading import (
    AsTheyAre,
    Indices,
    Reading,
    Viewed,
    best_classes,
    watch,
)
from sercli.evals.robustness.scores import Best, Normalisers, Sequences
from sercli.runs.result import Result

if TYPE_CHECKING:
    from sercli.data.robustness.sets import LabelledSet, PerturbedSet


def evaluate(
    classifier: Classifier, sets: Sets, *, reading: Reading, alexnet: Normalisers | None = None
) -> Iterator[Outcome]:
    """Each set's outcome as soon as it is there.

    Args:
        classifier: Encoder and head, with the transform that goes before them.
        sets: On what; the error on "val" is the clean one of relative mCE.
        reading: How to read them.
        alexnet: Normalisers of ImageNet-P, which then gives a second result.
    """
    clean = None
    for name, images in sets.labelled.items():
        outcome = evaluate_images(classifier, images, variant=name, reading=reading)
        if name == "val":
            clean = outcome.result
        yield outcome
    for name, (path, corrupted) in sets.grids.items():
        yield evaluate_corruptions(
            classifier, corrupted, variant=name, path=path, clean=clean, reading=reading
        )
    if sets.perturbed is not None:
        path, perturbed = sets.perturbed
        outcome = evaluate_perturbed(classifier, perturbed, path=path, reading=reading)
        yield outcome
        if alexnet is not None:
            yield Outcome(normalised(outcome.result, alexnet), {})


# -- Protocols ------------------------------------------------------------------------------------


def evaluate_images(
    classifier: Classifier, images: LabelledSet, *, variant: str, reading: Reading
) -> Outcome:
    """Top-1 and top-5 of a labelled set.

    Args:
        classifier: Encoder and head, with the transform that goes before them.
        images: Its labels index the classifier's classes; with a `subset`, only those may be
            predicted.
        variant: Name of the set in the result's name.
        reading: How to read it.

    Raises:
        UserError: An image cannot be read, or the head does not fit its classes.
    """
    source = images.source
    indices = reading.sample(len(source))
    best = best_classes(
        classifier,
        Viewed(source, classifier.view),
        indices,
        subset=images.subset,
        reading=reading,
        tell=reading.teller(variant, len(indices)),
    )
    labels = source.labels[indices]
    masked = images.subset is not None
    result = Result(
        protocol=scores.protocol(variant, classifier.rule, scores.image_settings(masked=masked)),
        model=classifier.model,
        data={
            "path": source.name,
            "n": len(indices),
            "partial": classifier.partial or images.partial or reading.leaves_out(len(source)),
            "image_size": classifier.image_size,
            "classes": len(classifier.classes) if images.subset is None else len(images.subset),
            "warnings": list(classifier.warnings),
            "notes": [*classifier.notes, *images.notes],
        },
        metrics=Right.of(best, labels).metrics(),
    )
    identifiers = [source.identifier(index) for index in indices.tolist()]
    arrays = {"image_ids": np.array(identifiers), "labels": labels, "predictions": best[:, 0]}
    return Outcome(result, arrays)


def evaluate_corruptions(
    classifier: Classifier,
    corrupted: Corruptions,
    *,
    variant: str,
    path: str,
    clean: Result | None,
    reading: Reading,
) -> Outcome:
    """The grid of a corrupted set.

    Args:
        classifier: Encoder and head, with the transform that goes before them.
        corrupted: The grid; pictures must have the classifier's side.
        variant: "imagenet-c" or "imagenet-c-otf".
        path: Where it is, for the result.
        clean: The same classifier's on val; None leaves relative mCE undefined.
        reading: How to read it.

    Raises:
        UserError: A picture has another side, or cannot be read.
    """
    cells, left_out = _predicted_cells(classifier, corrupted, variant=variant, reading=reading)
    settings = scores.corruption_settings(
        corrupted.corruptions, on_the_fly=variant.endswith("-otf")
    )
    rights = {cell: Right.of(one.best, one.labels) for cell, one in cells.items()}
    result = Result(
        protocol=scores.protocol(variant, classifier.rule, settings),
        model=classifier.model,
        data={
            "path": path,
            "n": sum(len(cell.identifiers) for cell in cells.values()),
            "cells": len(cells),
            "partial": classifier.partial
            or corrupted.partial
            or left_out
            or (clean is not None and bool(clean.data["partial"])),
            "image_size": classifier.image_size,
            "warnings": list(classifier.warnings),
            "notes": [*classifier.notes, *corrupted.notes, *_unit(classifier)],
        },
        metrics=scores.corruption_metrics(
            rights, clean=None if clean is None else clean.metrics["top1"]
        ),
    )
    return Outcome(result, _grid_arrays(cells))


def _predicted_cells(
    classifier: Classifier, corrupted: Corruptions, *, variant: str, reading: Reading
) -> tuple[dict[tuple[str, int], _Cell], bool]:
    """(Corruption, severity) → what was predicted; and whether a limit left images out."""
    grid = itertools.product(corrupted.corruptions, SEVERITIES)
    sources = {cell: corrupted.source(*cell) for cell in grid}
    sizes = {cell: len(source) for cell, source in sources.items()}
    total = sum(min(size, reading.limit or size) for size in sizes.values())
    cells: dict[tuple[str, int], _Cell] = {}
    done = 0
    for cell, source in sources.items():
        indices = reading.sample(len(source))
        best = best_classes(
            classifier,
            AsTheyAre(source, classifier.image_size),
            indices,
            subset=None,
            reading=reading,
            tell=reading.teller(variant, total, before=done),
        )
        done += len(indices)
        prefix = f"{cell[0]}/{cell[1]}/"
        identifiers = tuple(
            source.identifier(index).removeprefix(prefix) for index in indices.tolist()
        )
        cells[cell] = _Cell(identifiers, source.labels[indices], best)
    return cells, any(map(reading.leaves_out, sizes.values()))


def _unit(classifier: Classifier) -> list[str]:
    if is_imagenet(classifier.classes):
        return []
    return ["mCE is in units of AlexNet's errors on ImageNet, whose classes these are not"]


def evaluate_perturbed(
    classifier: Classifier, perturbed: PerturbedSet, *, path: str, reading: Reading
) -> Outcome:
    """Stability of predictions over the frames of ImageNet-P's sequences.

    Raises:
        UserError: Frames have another side than the classifier's images, or cannot be read.
    """
    counts = {name: perturbed.num_videos(name) for name in perturbed.perturbations}
    total = sum(min(count, reading.limit or count) for count in counts.values())
    found: dict[str, Sequences] = {}
    identifiers: list[str] = []
    for name, count in counts.items():
        videos = reading.sample(count)
        found[name] = watch(
            classifier,
            perturbed,
            name,
            videos,
            reading=reading,
            tell=reading.teller("imagenet-p", total, before=len(identifiers)),
        )
        identifiers += [f"{name}/{perturbed.identifier(name, i)}" for i in videos.tolist()]
    everything = list(found.values())
    longest = max(one.predictions.shape[1] for one in everything)
    result = Result(
        protocol=scores.protocol("imagenet-p", classifier.rule, scores.PERTURBATION_SETTINGS),
        model=classifier.model,
        data={
            "path": path,
            "n": len(identifiers),
            "frames": sum(int((one.predictions >= 0).sum()) for one in everything),
            "partial": classifier.partial
            or perturbed.partial
            or any(map(reading.leaves_out, counts.values())),
            "image_size": classifier.image_size,
            "warnings": list(classifier.warnings),
            "notes": [*classifier.notes, *perturbed.notes],
        },
        metrics=scores.perturbation_metrics(found),
    )
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array(identifiers),
        "labels": np.concatenate([one.labels for one in everything]),
        "predictions": np.concatenate([_padded(one.predictions, longest) for one in everything]),
        "flips": np.concatenate([one.flips for one in everything]),
        "ut5d": np.concatenate([one.distances for one in everything]),
    }
    return Outcome(result, arrays)


def normalised(base: Result, alexnet: Normalisers) -> Result:
    """mFR and mT5D of an ImageNet-P result by a table of AlexNet's: a protocol of its own."""
    settings = {
        **{k: v for k, v in base.protocol["settings"].items() if k not in {"labels", "precision"}},
        "mfr": "mean over perturbations of 100 FP / FP of AlexNet, mt5d likewise",
        "alexnet": {"fp": dict(alexnet.fp), "ut5d": dict(alexnet.ut5d)},
    }
    return Result(
        protocol=scores.protocol("imagenet-p-mfr", {}, settings),
        model=base.model,
        data=base.data,
        metrics=scores.normalised_metrics(base.metrics, alexnet),
    )


# -- Arrays ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """One corruption at one severity: the images' ids, labels, and best classes."""

    identifiers: tuple[str, ...]
    labels: Indices
    best: Best


def _grid_arrays(cells: Mapping[tuple[str, int], _Cell]) -> dict[str, NDArray[Any]]:
    """All cells on one list of images: usually each holds the same."""
    first = next(iter(cells.values())).identifiers
    columns = {image: index for index, image in enumerate(first)}
    for cell in cells.values():
        if cell.identifiers != first:
            for image in cell.identifiers:
                columns.setdefault(image, len(columns))
    labels = np.full(len(columns), -1, dtype=np.int64)
    predictions = np.full((len(cells), len(columns)), -1, dtype=np.int32)
    for row, cell in zip(predictions, cells.values(), strict=True):
        places = [columns[image] for image in cell.identifiers]
        row[places] = cell.best[:, 0]
        labels[places] = cell.labels
    return {
        "cells": np.array([f"{corruption}/{severity}" for corruption, severity in cells]),
        "image_ids": np.array(list(columns)),
        "labels": labels,
        "predictions": predictions,
    }


def _padded(predictions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    missing = length - predictions.shape[1]
    return np.pad(predictions, ((0, 0), (0, missing)), constant_values=-1)

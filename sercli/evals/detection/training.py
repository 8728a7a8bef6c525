"""Training a detector on the core engine, and detecting with it: one pass, whichever the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from sercli import distributed
from sercli.data.loading import load_batches
from sercli.engine.optimiser import gradient_norm
from sercli.engine.preemption import Stopping
from sercli.engine.stepper import Stepper
from sercli.evals.common import Progress
from sercli.evals.detection.detector import Detections, Detector, in_pixels, to_coco
from sercli.evals.detection.images import DetectionImages, Sample, TrainingOrder
from sercli.randomness import seeded

Grids = Callable[[Sequence[Sample]], Tensor]  # samples → float32 [B, D, h, w]


def train(
    detector: Detector,
    grids_of: Grids,
    images: DetectionImages,
    order: TrainingOrder,
    stepper: Stepper,
    *,
    optimiser: Optimizer,
    seed: int,
    workers: int,
) -> None:
    """Train from the stepper's step to its end.

    Args:
        detector: What is trained on the features: the pyramid and the heads.
        grids_of: Gives the features of samples.
        images: Where samples and annotations are read from.
        order: Which images each step takes.
        stepper: Resumed.
        optimiser: The optimiser that the stepper steps.
        seed: Of the regions that losses are computed on.
        workers: Loader processes.

    Raises:
        Preempted, Interrupted, RunFailed: As `Stepper.done`.
    """
    module: nn.Module = detector
    if distributed.active():
        module = distributed.data_parallel(detector)
    detector.train()
    batches = order.batches(stepper.step, stepper.pace.total_steps)
    for samples in stepper.waiting(load_batches(images, batches, workers=workers)):
        stepper.set_lr()
        grids = grids_of(samples)
        with seeded(seed, "coco-detect", "regions", stepper.step, distributed.rank()):
            losses = module(grids, samples)
        total: Tensor = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        described = [images.source.describe(sample.index) for sample in samples]
        stepper.agree(losses, gradient_norm(detector.parameters()), images=described)
        optimiser.step()
        stepper.done()


def detect(
    detector: Detector,
    grids_of: Grids,
    images: DetectionImages,
    indices: NDArray[Any],
    *,
    batch_size: int,
    workers: int,
    stopping: Stopping,
    progress: Progress | None,
    keep: Sequence[int] = (),
    take: Callable[[int, Detections], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[int, Detections]]:
    """What is found in some images: rank r takes every W-th.

    Args:
        detector: Trained.
        grids_of: Features of samples.
        images: Where samples and annotations are read from.
        indices: int64 [N], of its source.
        batch_size: Images taken at a time; no number depends on it.
        workers: Loader processes.
        stopping: Asked after every batch.
        progress: Called with "detect", the images done, and all.
        keep: Indices of images whose detections are returned as they are.
        take: Called with the raw id and the detections, in pixels, of each image of this rank.

    Returns:
        COCO's results of all ranks, ordered by image; and the detections kept, in pixels.
    """
    detector.eval()
    source = images.source
    ids = [category.id for category in source.categories]
    batches = _batches_of_rank(indices, batch_size)
    loaded = load_batches(images, [batch for batch in batches if batch], workers=workers)
    found: list[dict[str, Any]] = []
    kept: dict[int, Detections] = {}
    done = 0
    if progress is not None:
        progress("detect", 0, len(indices))
    for batch in batches:
        if batch:  # a rank may have a batch less, but all ask whether to stop
            samples = next(loaded)
            detected = detector.detect(grids_of(samples), samples)
            for sample, raw in zip(samples, detected, strict=True):
                result = in_pixels(detector, raw, sample)
                image_id = int(source.image_ids[sample.index])
                found += to_coco(result, image_id=image_id, category_ids=ids)
                if take is not None:
                    take(image_id, result)
                if sample.index in keep:
                    kept[sample.index] = result
        stopping.check()
        done = min(len(indices), done + batch_size * distributed.world_size())
        if progress is not None:
            progress("detect", done, len(indices))
    gathered = distributed.gather_objects((found, kept))
    everything = [one for part, _ in gathered for one in part]
    everything.sort(key=lambda one: int(one["image_id"]))
    return everything, {index: one for _, part in gathered for index, one in part.items()}


def _batches_of_rank(indices: NDArray[Any], batch_size: int) -> list[list[tuple[int, None]]]:
    """What this rank takes: every W-th image. All have as many batches; the last may be empty.

    Args:
        indices: int64 [N], of all ranks.
        batch_size: Images taken at a time.
    """
    world = distributed.world_size()
    mine = indices[distributed.rank() :: world]
    longest = -(-len(indices) // world)
    return [
        [(int(index), None) for index in mine[start : start + batch_size]]
        for start in range(0, longest, batch_size)
    ]

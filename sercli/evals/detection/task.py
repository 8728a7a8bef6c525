"""What a detection is asked to be, and all that is decided before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli import distributed
from sercli.data.coco.source import DetectionSource, require_same_categories
from sercli.encoders.loading import LoadedEncoder
from sercli.errors import UserError
from sercli.evals.common import at_most
from sercli.evals.detection.detector import MAX_DETECTIONS, settings
from sercli.evals.detection.images import Canvas, TrainingOrder, trainable_images
from sercli.evals.detection.options import PRESETS, Heads, Options, Schedule
from sercli.protocols.contract import PRECISION
from sercli.protocols.detection import PROTOCOL
from sercli.randomness import numpy_generator

VERSION = 2


@dataclass(frozen=True)
class Task:
    """All that is decided before anything is trained.

    Attributes:
        loaded: The encoder that is frozen, and where its weights are from.
        train, val: Where the images to train on, and to score on, are read.
        options: What the user asked for, before the preset filled in the rest.
        canvas: What the encoder is shown.
        heads: Sizes.
        schedule: Steps and learning rates.
        order: Which images each step takes.
        scored: int64 [N], images of val that are scored.
    """

    loaded: LoadedEncoder
    train: DetectionSource
    val: DetectionSource
    options: Options
    canvas: Canvas
    heads: Heads
    schedule: Schedule
    order: TrainingOrder
    scored: NDArray[np.int64]

    @property
    def flips(self) -> bool:
        return self.options.flip and not self.options.cache_features

    @property
    def protocol(self) -> dict[str, Any]:
        """The rule."""
        return {
            "name": PROTOCOL.name,
            "variant": self.options.engine,
            "version": VERSION,
            "settings": {
                "detector": "Mask R-CNN on a simple feature pyramid, backbone frozen",
                "features": "patch tokens of the last block after the final norm, [CLS] kept",
                "image_size": self.canvas.size,
                "canvas": "longer side to image_size, upper left of a square",
                "augmentation": "flip" if self.flips else "none",
                "metric": f"COCO AP, at most {MAX_DETECTIONS} detections",
                "preset": self.options.preset,
                "precision": PRECISION,
                **settings(self.heads, self.schedule, batch_size=self.order.batch_size),
            },
        }

    @property
    def partial(self) -> bool:
        return len(self.scored) < len(self.val) or self.options.limit is not None


def prepare(
    loaded: LoadedEncoder, train_images: DetectionSource, val: DetectionSource, options: Options
) -> Task:
    """Decide everything.

    Raises:
        UserError: An option that cannot be, categories that differ, or nothing to train on.
    """
    options.require_valid()
    options.require_engine()
    preset = PRESETS[options.preset]
    canvas = options.canvas(loaded.encoder.patch_size)
    schedule = Schedule.of(options.schedule or preset.schedule, lr=options.lr or preset.lr)
    require_same_categories(train_images, val)
    batch_size = options.batch_size or preset.batch_size
    if batch_size < distributed.world_size():
        raise UserError(
            f"--batch-size {batch_size} on {distributed.world_size()} processes",
            "each needs an image",
        )
    usable = _some(trainable_images(train_images), options)
    scored = _some(np.arange(len(val)), options)
    if not any(not one["iscrowd"] for index in scored for one in val.annotations(int(index))):
        raise UserError(
            f"{val.name}: none of the {len(scored):,} images of val has an object to find",
            "without objects there is no average precision",
            "`ser data check` tells what is there",
        )
    return Task(
        loaded=loaded,
        train=train_images,
        val=val,
        options=options,
        canvas=canvas,
        heads=preset.heads,
        schedule=schedule,
        order=TrainingOrder(usable, batch_size, options.seed),
        scored=scored,
    )


def _some(indices: NDArray[np.int64], options: Options) -> NDArray[np.int64]:
    return at_most(options.limit, indices, numpy_generator(options.seed, "coco-detect", "limit"))

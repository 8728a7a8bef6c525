"""What a detection is asked to be, and all that is decided before anything is trained."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli import distributed
from sercli.data.coco.source import DetectionSource, require_same_categories
from sercli.encoders.loading import LoadedEncoder
from sercli.errors import UserError
from sercli.evals.common import at_most
from sercli.evals.detection.detector import (
    ENGINES,
    MAX_DETECTIONS,
    PRESETS,
    Heads,
    Schedule,
    settings,
)
from sercli.evals.detection.images import Canvas, TrainingOrder, trainable_images
from sercli.evals.detection.scores import METRICS
from sercli.protocols.detection import PROTOCOL
from sercli.randomness import numpy_generator

VERSION = 1


@dataclass(frozen=True)
class Options:
    """What a user may choose; None: the preset's.

    Attributes:
        engine: "detectron2" or "torchvision".
        preset: "standard" or "tiny".
        image_size: Side of the canvas in pixels.
        batch_size: Training images a step, of all ranks.
        schedule: "1x", "3x", or a number of steps.
        lr: Peak learning rate.
        flip: Mirror half of the training images.
        cache_features: Encode each training image once and keep its grid; then nothing is mirrored.
        seed: Of heads, order, mirroring and sampled regions.
        limit: Use at most this many images of train and of val.
        at_once: Images taken at a time in evaluation.
        metric: Implementation of average precision.
    """

    engine: str
    preset: str = "standard"
    image_size: int | None = None
    batch_size: int | None = None
    schedule: str | None = None
    lr: float | None = None
    flip: bool = True
    cache_features: bool = False
    seed: int = 0
    limit: int | None = None
    at_once: int = 8
    metric: str = "pycocotools"

    def require_valid(self) -> None:
        """Raise a UserError for what cannot be, before anything is read."""
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("preset", self.preset, tuple(PRESETS)),
            ("metric", self.metric, METRICS),
        ):
            if value not in known:
                raise UserError(f"--{name} {value}", f"it must be {' or '.join(known)}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr {self.lr:g}", "it must be above 0 and below 1")
        Schedule.of(self.schedule or PRESETS[self.preset].schedule, lr=self.lr or 1e-4)

    def require_engine(self) -> None:
        """Raise a UserError if the engine is not installed."""
        if self.engine == "detectron2":
            require_detectron2()

    def canvas(self, patch_size: int) -> Canvas:
        """What an encoder of this patch size is shown.

        Raises:
            UserError: The size is no multiple of two patches.
        """
        return Canvas.of(self.image_size or PRESETS[self.preset].image_size, patch_size=patch_size)


INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
)


def require_detectron2() -> None:
    """Raise a UserError that says how to install detectron2, if it is missing or does not load."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "detectron2"
        raise UserError(
            "detectron2 is not installed" if missing else f"detectron2 does not load ({error})",
            "it is built from source against the torch that is installed: " + INSTALL_DETECTRON2,
            "or use --engine torchvision, which needs no build",
        ) from error


@dataclass(frozen=True)
class Task:
    """All that is decided before anything is trained.

    Attributes:
        loaded: The encoder.
        train, val: The images.
        options: As given.
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

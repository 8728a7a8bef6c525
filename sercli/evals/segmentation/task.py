"""What a probe of patch tokens is: which images serve for what, how they are cut, and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.masks.source import MaskSource, require_same_classes
from sercli.encoders.loading import LoadedEncoder
from sercli.errors import UserError
from sercli.evals.common import RESAMPLES, at_most
from sercli.evals.segmentation.frames import LONGEST, POINTS, STRIDE, Frame
from sercli.evals.segmentation.heads import INIT_STD, WARM_UP, WEIGHT_DECAY
from sercli.evals.segmentation.options import Options
from sercli.evals.segmentation.tokens import Key
from sercli.protocols.contract import PRECISION
from sercli.protocols.segment import PROTOCOL
from sercli.randomness import numpy_generator
from sercli.statistics import CONFIDENCE

HOLD_OUT, HOLD_OUT_MOST = 0.1, 512  # of the images of train
SCALE_WINDOWS = 512


@dataclass(frozen=True)
class Split:
    """Which images serve for what; indices, ascending.

    Attributes:
        train: Of train, trained on.
        hold_out: Of train, chosen on.
        test: Of val, scored.
        partial: Whether a limit left images out.
    """

    train: NDArray[np.int64]
    hold_out: NDArray[np.int64]
    test: NDArray[np.int64]
    partial: bool


def split_images(train: MaskSource, val: MaskSource, options: Options) -> Split:
    """Choose the images: a limit, then the hold-out, a seeded tenth of train, at most 512 images.

    Raises:
        UserError: Nothing can be held out.
    """
    draws = numpy_generator(options.seed, "segment", "limit")
    pool = at_most(options.limit, np.arange(len(train)), draws)
    test = at_most(options.limit, np.arange(len(val)), draws)
    if len(pool) < 2:
        raise UserError(
            f"{len(pool)} training images of {train.name}",
            "some are held out to choose the learning rate on",
            "use at least 2",
        )
    number = min(HOLD_OUT_MOST, max(1, round(HOLD_OUT * len(pool))))
    random = numpy_generator(options.seed, "segment", "hold-out")
    held = np.sort(random.permutation(pool)[:number])
    partial = len(pool) < len(train) or len(test) < len(val)
    return Split(np.setdiff1d(pool, held), held, test, partial)


def frames_of(source: MaskSource, indices: NDArray[np.int64], side: int) -> dict[int, Frame]:
    """How each image is cut, by its index; sizes are read, and no pixel.

    Raises:
        UnreadableImage: An image or its mask cannot be opened, or they do not fit.
    """
    return {index: Frame(*source.size(index), side) for index in indices.tolist()}


def keys_of(frames: dict[int, Frame], indices: NDArray[np.int64]) -> list[Key]:
    """All windows of some images, image by image."""
    return [
        (index, window) for index in indices.tolist() for window in range(len(frames[index].starts))
    ]


@dataclass(frozen=True)
class Task:
    """A probe that is checked, but has decoded no image yet.

    Attributes:
        loaded: The encoder that is frozen, and where its weights are from.
        layers: Blocks that are probed, the last one last.
        train: Source of the training images and the hold-out.
        val: Source of the test images.
        options: What the user asked for.
        split: Which images serve for what.
        frames: How those of train are cut, by index.
        test_frames: How those of val are cut, by index.
    """

    loaded: LoadedEncoder
    layers: tuple[int, ...]
    train: MaskSource
    val: MaskSource
    options: Options
    split: Split
    frames: dict[int, Frame]
    test_frames: dict[int, Frame]

    @property
    def training(self) -> list[Key]:
        """The windows that are trained on."""
        return keys_of(self.frames, self.split.train)

    @property
    def scale_rows(self) -> NDArray[np.int64]:
        """Positions in `training` of the windows whose tokens say how tokens are standardised."""
        number = len(self.training)
        draws = numpy_generator(self.options.seed, "segment", "scale")
        return np.sort(draws.permutation(number)[:SCALE_WINDOWS])

    @property
    def protocol(self) -> dict[str, Any]:
        """The rule, all of it hashed; nothing that follows from the model or the images.

        Which layers are scored beside the last one is left out: no number depends on it.
        """
        options = self.options
        settings = {
            "features": "patch tokens after the final norm",
            "standardised": f"by mean and deviation of {SCALE_WINDOWS} seeded windows of train",
            "classifier": "linear, logits upsampled bilinearly",
            "windows": f"shorter side resized to that of a window, bicubic; longer side at most "
            f"{LONGEST} of it; windows {STRIDE:.3f} of a side apart, averaged where they overlap",
            "loss": f"mean cross entropy at {POINTS} x {POINTS} points a patch",
            "augmentation": "none",
            "learning_rates": list(options.learning_rates),
            "optimiser": "AdamW (0.9, 0.999)",
            "weight_decay": WEIGHT_DECAY,
            "schedule": f"linear to 0 after a warm-up of {WARM_UP:.4f} of the steps",
            "steps": options.steps,
            "batch_size": options.batch_size,
            "init": f"N(0, {INIT_STD}), bias 0",
            "hold_out": {"share": HOLD_OUT, "most": HOLD_OUT_MOST},
            "choice": "mean IoU of the hold-out at the points of the loss",
            "test": "val, every pixel of the mask's own size but those ignored",
            "mean_over": "classes that occur in the test images",
            "image_size": options.image_size or "of training",
            "precision": PRECISION,
            "interval": "expanded percentile bootstrap over images",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": options.seed,
        }
        return {
            "name": PROTOCOL.name,
            "variant": self.val.layout or None,
            "version": 1,
            "settings": settings,
        }


def prepare(loaded: LoadedEncoder, train: MaskSource, val: MaskSource, options: Options) -> Task:
    """Check everything that can be wrong before a pixel is read.

    Raises:
        UserError: The options, the encoder or the images do not allow such a probe.
        UnreadableImage: An image or its mask cannot be opened, or they do not fit.
    """
    options.require_valid()
    loaded = loaded.at(options.image_size)
    layers = options.layers_of(loaded.encoder.depth)
    require_same_classes(train, val)
    split = split_images(train, val, options)
    side = loaded.image_size
    return Task(
        loaded,
        layers,
        train,
        val,
        options,
        split,
        frames_of(train, np.union1d(split.train, split.hold_out), side),
        frames_of(val, split.test, side),
    )


def pictured(test: NDArray[np.int64], number: int = 4) -> Sequence[int]:
    """Indices of a few images, evenly spaced among those scored."""
    places = np.linspace(0, len(test) - 1, min(number, len(test)))
    return [int(test[int(place)]) for place in places.round()]

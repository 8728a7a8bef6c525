"""What a linear probe is: presets; which images serve for training, choice and test; the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data import ImageSource
from sercli.data.source import require_labels
from sercli.data.subset import class_settings
from sercli.encoders.loading import LoadedEncoder
from sercli.errors import UserError
from sercli.evals.common import HELD_OUT as TEST_SHARE
from sercli.evals.common import at_most
from sercli.evals.common import hold_out as hold_out_test
from sercli.evals.linear.classifiers import INIT_STD, MOMENTUM
from sercli.evals.linear.features import (
    CROP_AREA,
    CROP_ASPECT,
    CROP_INTERPOLATION,
    FLIP_P,
    FeaturePlan,
    plan_features,
)
from sercli.evals.linear.options import WIDE, Options, Preset
from sercli.evals.linear.training import Order
from sercli.protocols.contract import PRECISION
from sercli.protocols.linear import PROTOCOL
from sercli.randomness import numpy_generator
from sercli.statistics import CONFIDENCE

HOLD_OUT, HOLD_OUT_LEAST, HOLD_OUT_MOST = 0.02, 20, 0.2
STEPS_PER_EPOCH, SMALLEST_BATCH = 16, 32


@dataclass(frozen=True)
class Split:
    """Which images serve for what; indices, ascending.

    Attributes:
        train: Of the training source, trained on.
        hold_out: Of the training source, chosen on.
        test: Of the test source.
        partial: Whether a limit left images out.
    """

    train: NDArray[np.int64]
    hold_out: NDArray[np.int64]
    test: NDArray[np.int64]
    partial: bool


def split_images(train: ImageSource, val: ImageSource | None, options: Options) -> Split:
    """Choose the images: shots, then a limit, then the hold-out.

    Without `val`, the test images are those of kNN: a seeded fifth of each class of `train`.

    Raises:
        UserError: Nothing can be held out, or there are no labels.
    """
    for source in (train, *(() if val is None else (val,))):
        require_labels(source, "the linear probe")
    if val is None:
        pool, test = hold_out_test(train)
    else:
        pool, test = np.arange(len(train)), np.arange(len(val))
    random = partial(numpy_generator, options.seed, "linear-eval")
    num_classes = len(train.classes)
    if options.shots is not None:
        each = max(2, round(options.shots * len(pool) / num_classes))
        pool = _of_each_class(pool, train.labels, random("shots"), lambda _count: each)
    whole = len(pool) + len(test)
    draws = random("limit")
    pool, test = (at_most(options.limit, indices, draws) for indices in (pool, test))
    held = _of_each_class(pool, train.labels, random("hold-out"), _held_of)
    if not len(held):
        raise UserError(
            f"the {len(pool)} training images of {train.name} have no two of one class",
            "some are held out to choose the head on",
            "use more images",
        )
    return Split(np.setdiff1d(pool, held), held, test, len(pool) + len(test) < whole)


def _held_of(count: int) -> int:
    """2 % of a class, but at least 20 images, but at most a fifth (of 2 to 4 images, one)."""
    if count < 2:
        return 0
    return max(1, min(max(HOLD_OUT_LEAST, round(HOLD_OUT * count)), int(HOLD_OUT_MOST * count)))


def _of_each_class(
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    random: np.random.Generator,
    how_many: Callable[[int], int],
) -> NDArray[np.int64]:
    """`how_many(n)` of the n images of each class, ascending; all where that is more."""
    taken = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(labels[indices]):
        members = indices[labels[indices] == label]
        taken.append(random.permutation(members)[: how_many(len(members))])
    return np.sort(np.concatenate(taken))


def batch_size_for(preset: Preset, options: Options, num_images: int) -> int:
    """The batch asked for, else the preset's, but no more than gives 16 steps an epoch.

    That is a power of two and at least 32: 2048 from 32,768 images on.
    """
    if options.batch_size is not None:
        return options.batch_size
    most = 1 << max(0, (num_images // STEPS_PER_EPOCH).bit_length() - 1)
    return min(preset.batch_size, max(SMALLEST_BATCH, most))


# -- The probe ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A linear probe that is checked, but has not read an image yet.

    Attributes:
        loaded: The encoder that is frozen, and where its weights are from.
        train: Source of the training images and the hold-out.
        test: Source of the test images.
        has_val: Whether `test` is a val split.
        options: What the user asked for, before the preset filled in the rest.
        preset: Resolved.
        plan: What is taken from the encoder.
        split: Which images serve for what.
        batch_size: Images a step.
    """

    loaded: LoadedEncoder
    train: ImageSource
    test: ImageSource
    has_val: bool
    options: Options
    preset: Preset
    plan: FeaturePlan
    split: Split
    batch_size: int

    @property
    def protocol(self) -> dict[str, Any]:
        """The rule, all of it hashed; nothing that follows from the model or the images."""
        options, preset = self.options, self.preset
        crops: dict[str, Any] = {
            "area": list(CROP_AREA),
            "aspect": list(CROP_ASPECT),
            "interpolation": CROP_INTERPOLATION,
            "flip": FLIP_P,
        }
        wide = preset.feature_sets_wide
        settings = {
            "feature_sets": list(preset.feature_sets),
            **({f"feature_sets_from_width_{WIDE}": list(wide)} if wide else {}),
            "features": "after the final norm; cls4: [CLS] of those of the last 4 blocks that "
            "have it; pooled: the mean patch token",
            "standardised": not options.augment,
            "learning_rates": list(preset.learning_rates),
            "learning_rate_unit": "x batch size / 256",
            "epochs": preset.epochs,
            "batch_size": preset.batch_size,
            "batch_size_rule": "as given"
            if options.batch_size is not None
            else f"at most 1/{STEPS_PER_EPOCH} of the images, a power of two >= {SMALLEST_BATCH}",
            "optimiser": "SGD on the mean cross entropy",
            "momentum": MOMENTUM,
            "weight_decay": 0.0,
            "schedule": "cosine to 0, by step",
            "init": f"N(0, {INIT_STD}), bias 0",
            "augmentation": crops if options.augment else "none: the central crop",
            "shots": options.shots,
            "hold_out": {
                "share": HOLD_OUT,
                "least_of_a_class": HOLD_OUT_LEAST,
                "most_of_a_class": HOLD_OUT_MOST,
            },
            "choice": "most of the hold-out right, then lowest loss, over all heads and epochs",
            "test": "val" if self.has_val else f"a seeded {TEST_SHARE:.0%} of each class of train",
            "image_size": options.image_size or "of training",
            "resize": "256/224 of the side, central crop",
            "interpolation": preset.interpolation,
            "precision": PRECISION,
            "interval": "Wilson over test images",
            "confidence": CONFIDENCE,
            "seed": options.seed,
            **class_settings(self.train),
        }
        return {
            "name": PROTOCOL.name,
            "variant": options.variant,
            "version": 2,
            "settings": settings,
        }

    @property
    def name(self) -> str:
        """The result's: `linear-eval--ser`."""
        return f"linear-eval--{self.options.variant}"

    @property
    def order(self) -> Order:
        """Of the training images."""
        return Order(len(self.split.train), self.batch_size, self.preset.epochs, self.options.seed)


def prepare(
    loaded: LoadedEncoder, train: ImageSource, val: ImageSource | None, options: Options
) -> Probe:
    """Check everything that can be wrong before an image is read.

    Raises:
        UserError: The options, the encoder or the images do not allow such a probe.
    """
    preset = options.resolve()
    loaded = loaded.at(options.image_size)
    plan = plan_features(loaded.encoder, preset.feature_sets_of(loaded.encoder))
    split = split_images(train, val, options)
    return Probe(
        loaded,
        train,
        train if val is None else val,
        val is not None,
        options,
        preset,
        plan,
        split,
        batch_size_for(preset, options, len(split.train)),
    )

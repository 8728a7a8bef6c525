"""What follows from a recipe's durations: schedules in steps, converted once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sercli.errors import UserError
from sercli.recipe.schema import Train
from sercli.visible import counted


@dataclass(frozen=True)
class Moment:
    """Where in a run a step is.

    Attributes:
        epoch: Epochs done.
        progress: Share of the run that is done, 0…1.
    """

    epoch: float
    progress: float


START = Moment(0.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """Durations in steps, converted once.

    Attributes:
        steps_per_epoch: Full batches in the data set.
        total_steps: Length of the run (and of the cosine).
        warmup_steps: Linear warm-up from 0, at most `total_steps`.
        ramp_steps: Steps from 0 to the peak: as many, or one less (`train.warmup_ramp`).
        checkpoint_steps: Steps between checkpoints.
        keep_steps: Steps between milestones, checkpoints that are never dropped (0: none).
        monitor_steps: Steps between kNN and collapse measurements (0: none).
        lr: Peak learning rate, train.lr × batch_size / 256.
        min_lr: Final learning rate, scaled alike.
        weight_decay: At the start and at the end.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    ramp_steps: int
    checkpoint_steps: int
    keep_steps: int
    monitor_steps: int
    lr: float
    min_lr: float
    weight_decay: tuple[float, float]

    @classmethod
    def of(cls, train: Train, num_images: int) -> Schedule:
        """Convert epochs to steps for a data set of `num_images`.

        Raises:
            UserError: The batch is larger than the data set.
        """
        if train.batch_size > num_images:
            raise UserError(
                f"train.batch_size {train.batch_size} with {counted(num_images, 'image')}",
                "a batch must not be larger than the data set",
                f"use --set train.batch_size={max(2, num_images // 2)} or more images",
            )
        per_epoch = num_images // train.batch_size
        total = total_steps(train.epochs, per_epoch, train.max_steps)
        final = train.final_weight_decay

        warmup = min(total, round(train.warmup_epochs * per_epoch))

        def steps(epochs: float) -> int:
            return max(1, round(epochs * per_epoch))

        return cls(
            steps_per_epoch=per_epoch,
            total_steps=total,
            warmup_steps=warmup,
            ramp_steps=max(1, warmup - (train.warmup_ramp == "step/(W-1)")),
            checkpoint_steps=steps(train.checkpoint_epochs),
            keep_steps=steps(train.keep_epochs) if train.keep_epochs else 0,
            monitor_steps=steps(train.monitor_epochs) if train.monitor_epochs else 0,
            lr=train.lr * train.batch_size / 256,
            min_lr=train.min_lr * train.batch_size / 256,
            weight_decay=(train.weight_decay, train.weight_decay if final is None else final),
        )

    def moment(self, step: int) -> Moment:
        """Of step 0…total−1."""
        return Moment(step / self.steps_per_epoch, step / self.total_steps)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of step 0…total−1: half a cosine from the first to the last value."""
        return cosine(*self.weight_decay, step / self.total_steps)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0…total−1: linear warm-up, then half a cosine to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * step / self.ramp_steps
        span = max(1, self.total_steps - self.warmup_steps)
        return cosine(self.lr, self.min_lr, (step - self.warmup_steps) / span)


def total_steps(epochs: float, steps_per_epoch: int, most: int | None) -> int:
    """Length of a run in steps.

    Args:
        epochs: `train.epochs`.
        steps_per_epoch: Full batches in the data set.
        most: `train.max_steps`; None: no bound.
    """
    total = max(1, round(epochs * steps_per_epoch))
    return min(total, most or total)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

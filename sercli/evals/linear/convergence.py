"""Has a linear probe converged? By its steps, and by what half of the training would have given.

A schedule that ends at 0 flattens every curve at its end, so that the last epochs tell nothing. Far
from the optimum, though, SGD at half the learning rate goes about half as far in as many steps: the
same classifier at the rate below says, at the end of the same schedule, whether the second half of
the way still paid. It did where at least `LEAST_GAIN` points more of the hold-out are right, and
that is no chance: by McNemar's test over the images or, as a few hundred images seldom let it
tell, by a paired test of the loss, which is then lower as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sercli.evals.linear.classifiers import Judgement
from sercli.statistics import CONFIDENCE, mcnemar_p_value
from sercli.visible import counted

# What the default gives any set of 512 images or more: 50 epochs of 16 steps.
FEW_STEPS = 800
LEAST_GAIN = 1.0  # percentage points
_FARTHEST, _NEAREST = 1 / 3, 1 / 2  # what a rate may be multiplied by to be the rate below


def companion_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Half of each rate that has no other at a third to a half of it."""
    return tuple(sorted({rate / 2 for rate in rates if _below(rate, rates) is None}))


def _below(rate: float, rates: Sequence[float]) -> float | None:
    near = [other for other in rates if _FARTHEST * rate <= other <= _NEAREST * rate]
    return max(near) if near else None


@dataclass(frozen=True)
class Training:
    """What a probe's training was like.

    Attributes:
        epochs: Passes over the images.
        steps: Optimiser's steps in all.
        augmented: Whether images were encoded anew in every epoch.
    """

    epochs: int
    steps: int
    augmented: bool


def doubt(
    training: Training, *, rate: float, rates: Sequence[float], judged: Judgement
) -> str | None:
    """Why the chosen classifier may not have converged, and the remedy; None: nothing says so.

    Args:
        training: How long, and on what, all classifiers were trained.
        rate: Learning rate of the classifier that was chosen.
        rates: H learning rates of its feature set, companions among them.
        judged: How they do on the images of the hold-out after the last step.
    """
    reasons = []
    if training.steps < FEW_STEPS:
        reasons.append(f"it took {counted(training.steps, 'step')}, fewer than {FEW_STEPS}")
    below = _below(rate, rates)
    if below is not None:
        gain, chance = _rise(judged, rates.index(below), rates.index(rate))
        if gain >= LEAST_GAIN and chance < 1 - CONFIDENCE:
            reasons.append(
                f"accuracy on the hold-out still rises, by {gain:.1f} points over what the "
                f"learning rate {below:g} gives (p = {chance:.1g})"
            )
    if not reasons:
        return None
    per_epoch = training.steps / training.epochs
    epochs = max(4 * training.epochs, math.ceil(FEW_STEPS / per_epoch))
    remedy = f"repeat with --epochs {epochs}"
    if training.augmented:
        remedy += f", or in less time with --cached-features --epochs {max(500, epochs)}"
    return f"the probe may not have converged: {' and '.join(reasons)}; {remedy}"


def _rise(judged: Judgement, less: int, more: int) -> tuple[float, float]:
    """By how many points head `more` is above head `less`, and how likely chance alone is."""
    before, after = judged.right[less], judged.right[more]
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    chance = mcnemar_p_value(won, lost)
    falls = judged.loss[less] - judged.loss[more]
    fall, error = falls.mean().item(), falls.std().item() / math.sqrt(len(falls))
    if fall > 0 and error > 0:  # not where a head diverged
        chance = min(chance, math.erfc(fall / error / math.sqrt(2)))  # two-sided, normal
    return 100 * (won - lost) / len(falls), chance

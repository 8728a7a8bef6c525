"""Metrics of ImageNet-C and -P (Hendrycks and Dietterich, ICLR 2019): pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli.data.corruptions.catalogue import CATALOGUE, CORRUPTIONS, SEVERITIES

ALEXNET_CLEAN_ERROR = 0.43478  # on val, 0…1, as in the paper
# Perturbations whose frames are independent draws: each is compared with the first frame.
NOISE_PERTURBATIONS = frozenset({"gaussian_noise", "shot_noise"})
_RANKS = 5


@dataclass(frozen=True)
class CorruptionErrors:
    """Errors under corruption relative to AlexNet's, in percent.

    Attributes:
        ce: Corruption → CE; None where AlexNet's error is not known.
        relative_ce: Corruption → relative CE, likewise; empty without a clean error.
        mce: Mean CE of the fifteen corruptions; None unless all are there.
        relative_mce: The same of the relative CE; None without a clean error as well.
    """

    ce: dict[str, float | None]
    relative_ce: dict[str, float | None]
    mce: float | None
    relative_mce: float | None


def corruption_errors(
    errors: Mapping[str, Sequence[float]], *, clean: float | None = None
) -> CorruptionErrors:
    """CE, relative CE and their means, normalised by AlexNet.

    With E_{s,c} the error at severity s of corruption c, and A for AlexNet:
    CE_c = 100 Σ_s E_{s,c} / Σ_s A_{s,c},
    relative CE_c = 100 Σ_s (E_{s,c} − E_clean) / Σ_s (A_{s,c} − A_clean);
    mCE and relative mCE are the means over ImageNet-C's fifteen corruptions, without all others.

    Args:
        errors: Corruption → the errors at severities 1…5, each in 0…1.
        clean: Error on the uncorrupted images, 0…1.

    Raises:
        ValueError: Not five severities.
    """
    ce: dict[str, float | None] = {}
    relative: dict[str, float | None] = {}
    for name, values in errors.items():
        if len(values) != len(SEVERITIES):
            raise ValueError(f"{name}, {len(values)} severities: need {len(SEVERITIES)}")
        entry = CATALOGUE.get(name)
        alexnet = None if entry is None else entry.alexnet_error
        ce[name] = None if alexnet is None else _ratio(values, alexnet, above=0)
        if clean is not None:
            usual = None if alexnet is None else alexnet - ALEXNET_CLEAN_ERROR
            relative[name] = None if usual is None else _ratio(values, usual, above=clean)
    return CorruptionErrors(ce, relative, _mean_of_fifteen(ce), _mean_of_fifteen(relative))


def _ratio(errors: Sequence[float], alexnet: float, *, above: float) -> float:
    """Errors above a level, in percent of AlexNet's."""
    rises = math.fsum(error - above for error in errors)
    return 100 * (rises / math.fsum([alexnet] * len(errors)))


def _mean_of_fifteen(values: Mapping[str, float | None]) -> float | None:
    measured = [value for name in CORRUPTIONS if (value := values.get(name)) is not None]
    return math.fsum(measured) / len(measured) if len(measured) == len(CORRUPTIONS) else None


def flip_probability(predictions: Tensor, *, noise: bool) -> Tensor:
    """Share of frames whose prediction differs from that of the frame before.

    FP = 1/(T−1) Σ_{j=2…T} [p_j ≠ p_{j−1}]; under noise, whose frames have no order, p_1 stands
    for p_{j−1}.

    Args:
        predictions: int [..., T], T ≥ 2, classes predicted for the frames of a sequence.
        noise: Whether frames are independent draws (`NOISE_PERTURBATIONS`).

    Returns:
        float64 [...], 0…1.
    """
    before, after = _frame_pairs(predictions, -1, noise=noise)
    return (before != after).double().mean(-1)


def top5_distance(best: Tensor, *, noise: bool) -> Tensor:
    """Unnormalised top-5 distance (uT5D) of a sequence: how the five best classes change places.

    With σ(i) the rank, from 1, in one frame of the class that is at place i = 0…4 in the frame
    before (under noise, in the first frame), T5D = Σ_{i=0…4} |C[i] − C[σ(i)−1]|, where
    C = cumsum(0, 1, 1, 1, 1, 1, 0, …), that is C[j] = min(j, 5). Equal rankings give 0, a swap of
    the first two 2, a reversal of ten or more classes 15. The mean over pairs of frames is
    returned.

    Args:
        best: int [..., T, 5], T ≥ 2, the five best classes of each frame, best first (all classes
            where there are fewer).
        noise: Whether frames are compared with the first one (noise) or with that before.

    Returns:
        float64 [...], 0…15.
    """
    before, after = _frame_pairs(best, -2, noise=noise)
    equal = before[..., :, None] == after[..., None, :]
    place = torch.where(equal.any(-1), equal.int().argmax(-1), _RANKS)  # σ(i) − 1, at most 5
    own = torch.arange(best.shape[-1], device=best.device)
    return (place - own).abs().sum(-1).double().mean(-1)


def _frame_pairs(frames: Tensor, dim: int, *, noise: bool) -> tuple[Tensor, Tensor]:
    """Each frame but the first, and what it is compared with; frames run along `dim`."""
    count = frames.shape[dim]
    if count < 2:
        raise ValueError(f"{count} frames: need two to compare")
    before = frames.narrow(dim, 0, 1 if noise else count - 1)
    return before, frames.narrow(dim, 1, count - 1)

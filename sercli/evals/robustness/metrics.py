"""Metrics of ImageNet-C and -P (Hendrycks and Dietterich, ICLR 2019): pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

# -- Robustness -----------------------------------------------------------------------------------

# Mean error of AlexNet over the five severities of each corruption, and its clean error, as in
# Hendrycks & Dietterich, "Benchmarking Neural Network Robustness" (2019).
ALEXNET_CLEAN_ERROR = 0.43478
ALEXNET_ERRORS: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    }
)
# The four extra corruptions, which never enter a mean.
ALEXNET_EXTRA_ERRORS: Mapping[str, float] = MappingProxyType(
    {
        "speckle_noise": 0.845388,
        "gaussian_blur": 0.787108,
        "spatter": 0.717512,
        "saturate": 0.658248,
    }
)
NUM_SEVERITIES = 5
# Perturbations whose frames are independent draws: each is compared with the first frame.
NOISE_PERTURBATIONS = frozenset({"gaussian_noise", "shot_noise"})
_RANKS = 5


@dataclass(frozen=True)
class CorruptionErrors:
    """Errors under corruption relative to AlexNet's, in percent.

    Attributes:
        ce: Corruption → CE.
        relative_ce: Corruption → relative CE; empty without a clean error.
        mce: Mean CE of the fifteen corruptions; None unless all are there.
        relative_mce: The same of the relative CE; None without a clean error as well.
    """

    ce: dict[str, float]
    relative_ce: dict[str, float]
    mce: float | None
    relative_mce: float | None


def corruption_errors(
    errors: Mapping[str, Sequence[float]], *, clean: float | None = None
) -> CorruptionErrors:
    """CE, relative CE and their means, normalised by AlexNet.

    With E_{s,c} the error at severity s of corruption c, and A for AlexNet:
    CE_c = 100 Σ_s E_{s,c} / Σ_s A_{s,c},
    relative CE_c = 100 Σ_s (E_{s,c} − E_clean) / Σ_s (A_{s,c} − A_clean);
    mCE and relative mCE are the means over the fifteen corruptions, without the extra four.

    Args:
        errors: Corruption → the errors at severities 1…5, each in 0…1.
        clean: Error on the uncorrupted images, 0…1.

    Raises:
        ValueError: An unknown corruption, or not five severities.
    """
    ce: dict[str, float] = {}
    relative: dict[str, float] = {}
    for name, values in errors.items():
        alexnet = ALEXNET_ERRORS.get(name, ALEXNET_EXTRA_ERRORS.get(name))
        if alexnet is None or len(values) != NUM_SEVERITIES:
            raise ValueError(f"{name}, {len(values)} severities: need a known corruption and 5")
        ce[name] = 100 * (math.fsum(values) / math.fsum([alexnet] * NUM_SEVERITIES))
        if clean is not None:
            rise = math.fsum(value - clean for value in values)
            usual = math.fsum([alexnet - ALEXNET_CLEAN_ERROR] * NUM_SEVERITIES)
            relative[name] = 100 * (rise / usual)
    return CorruptionErrors(ce, relative, _mean_of_fifteen(ce), _mean_of_fifteen(relative))


def _mean_of_fifteen(values: Mapping[str, float]) -> float | None:
    if not values.keys() >= ALEXNET_ERRORS.keys():
        return None
    return math.fsum(values[name] for name in ALEXNET_ERRORS) / len(ALEXNET_ERRORS)


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
        noise: As in `flip_probability`.

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

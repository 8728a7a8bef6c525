"""Metrics: pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

UNDEFINED_ENERGY = 1e-4


@dataclass(frozen=True)
class EquivarianceScore:
    """Equivariance of a batch of token maps.

    Attributes:
        es: 2Σ⟨F̃,Ã⟩ / (Σ‖F̃‖² + Σ‖Ã‖²); 1 is exact, 0 is shuffled tokens, None is undefined.
        energy: Share of the observed map's variance that is spatial, Σ‖F̃‖² / Σ‖F−μ‖².
        numerator: [B], float64, 2⟨F̃,Ã⟩ of each image. A data set's ES is the ratio of the sums.
        denominator: [B], float64, ‖F̃‖² + ‖Ã‖² of each image.
    """

    es: float | None
    energy: float
    numerator: Tensor
    denominator: Tensor


def equivariance_score(moved: Tensor, observed: Tensor) -> EquivarianceScore:
    """Compare A = ρ_g⁻¹ f(g x) with F = f(x), both without each image's spatial mean.

    A map that is constant over each image follows every transformation trivially: its ES is
    undefined (None), as it is wherever less than 1e-4 of either map's variance is spatial.

    Args:
        moved: A, raw tokens [B, N, D].
        observed: F, raw tokens [B, N, D].

    Raises:
        ValueError: The shapes differ or are not [B, N, D].
    """
    if moved.shape != observed.shape or moved.dim() != 3:
        raise ValueError(
            f"moved {tuple(moved.shape)}, observed {tuple(observed.shape)}: need [B, N, D]"
        )
    a, f = moved.double(), observed.double()
    a_centred, f_centred = a - a.mean(1, keepdim=True), f - f.mean(1, keepdim=True)
    numerator = 2 * (a_centred * f_centred).sum((1, 2))
    denominator = a_centred.square().sum((1, 2)) + f_centred.square().sum((1, 2))
    energy = spatial_energy(f)
    defined = min(energy, spatial_energy(a)) >= UNDEFINED_ENERGY
    es = (numerator.sum() / denominator.sum()).item() if defined else None
    return EquivarianceScore(es, energy, numerator, denominator)


def spatial_energy(tokens: Tensor) -> float:
    """Share of the variance of tokens [B, N, D] that lies within images; 0 for a constant."""
    total = (tokens - tokens.mean((0, 1))).square().sum().item()
    within = (tokens - tokens.mean(1, keepdim=True)).square().sum().item()
    return within / total if total > 0 else 0.0


def accuracy(logits: Tensor, labels: Tensor, *, top: int = 1) -> float:
    """Top-k accuracy in percent; logits [B, C], labels int64 [B]."""
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices
    return 100 * (best == labels[:, None]).any(dim=1).double().mean().item()


def embedding_std(embeddings: Tensor) -> float:
    """Mean over dimensions of the std of L2-normalised embeddings [B, D].

    1/√D for embeddings spread evenly over the sphere, 0 for collapsed ones.
    """
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    return unit.std(dim=0).mean().item()


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred embeddings [B, D].

    Roy & Vetterli, "The effective rank" (2007); between 1 and min(B−1, D), 0 for a constant.
    """
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total <= 0:
        return 0.0
    share = values / total
    return torch.exp(torch.special.entr(share).sum()).item()


# -- Classification -------------------------------------------------------------------------------


def top_classes(logits: Tensor, *, top: int = 5, subset: Tensor | None = None) -> Tensor:
    """The classes with the largest logits, largest first; of equal ones the first class.

    Args:
        logits: [B, C].
        top: How many.
        subset: int64 [S], the only classes that may be predicted; the others are left out before
            any comparison.

    Returns:
        int64 [B, min(top, number of classes that may be predicted)], indices into the C classes.
    """
    if subset is None:
        return logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return subset[top_classes(logits[:, subset], top=top)]


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

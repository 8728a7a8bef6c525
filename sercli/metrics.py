"""Metrics: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

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
        logits: Of B images for C classes, [B, C].
        top: How many classes an image gets at most.
        subset: int64 [S], the only classes that may be predicted; the others are left out before
            any comparison.

    Returns:
        int64 [B, min(top, number of classes that may be predicted)], indices into the C classes.
    """
    if subset is None:
        return logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return subset[top_classes(logits[:, subset], top=top)]

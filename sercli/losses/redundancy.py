"""Barlow Twins: features of two views that agree, and say nothing twice."""

from __future__ import annotations

from torch import Tensor

from sercli.losses.checks import require_pair
from sercli.precision import at_least_fp32, without_autocast


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Σ_i first_iᵀ second_i, not divided by the number of rows, so that ranks can be summed.

    Args:
        first: [n, E] rows of this rank, normalised over the global batch.
        second: [n, E] likewise; row i belongs to row i of `first`.

    Returns:
        [E, E], fp32 (float64 for float64 input; zeros for no rows).

    Raises:
        ValueError: Shapes do not fit.
    """
    require_pair(first, second, "first", "second")
    wide = at_least_fp32(first, second)
    with without_autocast(first):
        return first.to(wide).T @ second.to(wide)


def barlow_twins(correlation: Tensor, *, off_diagonal: float) -> Tensor:
    """Barlow Twins (Zbontar et al., 2021) of a cross-correlation matrix C.

        Σ_i (1 − C_ii)² + off_diagonal · Σ_{i≠j} C_ij²

    Args:
        correlation: C [E, E], of the global batch and divided by its number of rows.
        off_diagonal: Weight of the redundancy term (λ in the paper).

    Returns:
        fp32 scalar (float64 for float64 input).

    Raises:
        ValueError: C is not a square matrix.
    """
    if correlation.ndim != 2 or correlation.shape[0] != correlation.shape[1]:
        raise ValueError(f"correlation {tuple(correlation.shape)}: must be square, [E, E]")
    dim = len(correlation)
    if dim == 0:
        raise ValueError("correlation (0, 0): must have at least one feature")
    with without_autocast(correlation):
        c = correlation.to(at_least_fp32(correlation))
        # Without its first entry, C read in rows of E + 1 has the diagonal as its last column.
        others = c.flatten()[1:].view(dim - 1, dim + 1)[:, :-1]
        return (1 - c.diagonal()).square().sum() + off_diagonal * others.square().sum()

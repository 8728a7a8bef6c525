"""Contrast of whole images: the twin of an image against all other images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.losses.checks import require_contrast, require_pair
from sercli.precision import at_least_fp32, without_autocast


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float, query_offset: int = 0) -> Tensor:
    """InfoNCE of MoCo-v3: cross entropy of cosine/τ against the key of the same image, ×2τ.

    Args:
        queries: [Bq, E] of this rank, un-normalised.
        keys: [Bk, E] gathered over ranks, un-normalised; no gradient is kept to them by the
            caller if it detaches them.
        temperature: τ > 0.
        query_offset: Query i belongs to key `query_offset + i`.

    Returns:
        2τ · mean over this call's queries, fp32 (float64 for float64 input; 0 for no queries).

    Raises:
        ValueError: Shapes do not fit, or there is nothing to contrast with.
    """
    require_contrast(queries, keys, "queries", "keys", query_offset, temperature)
    wide = at_least_fp32(queries, keys)
    with without_autocast(queries):
        logits = _cosines(queries.to(wide), keys.to(wide)) / temperature
        labels = torch.arange(len(queries), device=queries.device) + query_offset
        return _mean_cross_entropy(logits, labels) * (2 * temperature)


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    all_first: Tensor | None = None,
    all_second: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """NT-Xent of SimCLR: every row of either view is an anchor, its twin the positive.

    Each of the 2n anchors z with its twin z' (same image, other view) is contrasted with the
    2N − 1 rows of both gathered views that are not itself, s = cosine / τ:

        −log( e^{s(z,z')} / Σ_{y ≠ z} e^{s(z,y)} )

    Args:
        first: [n, E] of this rank, un-normalised.
        second: [n, E] of this rank, un-normalised; row i belongs to row i of `first`.
        temperature: τ > 0.
        all_first: [N, E] gathered over ranks (default: `first`).
        all_second: [N, E] gathered over ranks (default: `second`).
        offset: Row i of this rank is row `offset + i` of the gathered ones.

    Returns:
        Mean over this call's 2n anchors, fp32 (float64 for float64 input; 0 for no anchors).
        Gradient reaches all four where they carry one.

    Raises:
        ValueError: Shapes do not fit, or there is nothing to contrast with.
    """
    all_first = first if all_first is None else all_first
    all_second = second if all_second is None else all_second
    require_pair(first, second, "first", "second")
    require_pair(all_first, all_second, "all_first", "all_second")
    require_contrast(first, all_first, "first", "all_first", offset, temperature)
    wide = at_least_fp32(first, second, all_first, all_second)
    with without_autocast(first):
        anchors = torch.cat([first.to(wide), second.to(wide)])
        logits = _cosines(anchors, torch.cat([all_first.to(wide), all_second.to(wide)]))
        logits = logits / temperature
        in_first = torch.arange(len(first), device=first.device) + offset
        in_second = in_first + len(all_first)
        own, twin = torch.cat([in_first, in_second]), torch.cat([in_second, in_first])
        logits.scatter_(1, own[:, None], -torch.inf)
        return _mean_cross_entropy(logits, twin)


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """[R, E], [C, E] → [R, C]."""
    return F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows; for none of them a zero that keeps its place in the graph."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)

"""SER's loss: each patch token against the tokens of other images (and far ones of its own)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sercli.losses.tiles import PatchNTXent, Problem
from sercli.negatives import Negatives
from sercli.precision import without_autocast
from sercli.visible import counted


def patch_nt_xent(
    anchors: Tensor,
    keys: Tensor,
    *,
    temperature: float,
    negatives: str = "cross-view",
    grid: tuple[int, int] | None = None,
    anchor_offset: int = 0,
    own_view: Tensor | None = None,
) -> Tensor:
    """Patch-wise NT-Xent, one direction; memory grows with N, not with N².

    For each anchor token z with its key z' (same image, same place), s = cosine / τ:

        −log( e^{s(z,z')} / (e^{s(z,z')} + Σ_neg e^{s(z,·)}) )

    Args:
        anchors: [Ba, N, D] of this rank, un-normalised.
        keys: [Bk, N, D] gathered over ranks, un-normalised, moved to the anchors' frame.
        temperature: τ > 0.
        negatives: "cross-view" (tokens of *other images* in the other view), "both-views" (also
            those of the anchor's own view), each optionally with "+spatial:r" (also tokens of the
            same image at a Euclidean distance of more than r patches).
        grid: (h, w) with h·w = N, tokens row by row; needed by "+spatial:r".
        anchor_offset: The anchors' image i is the keys' image `anchor_offset + i`.
        own_view: [Bk, N, D] gathered tokens of the anchors' own view, indexed as `keys`; only for
            "both-views" (default: the anchors themselves).

    Returns:
        Mean over this call's anchors: fp32 scalar (float64 for float64 input; 0 for no anchors).
        Products run in the inputs' dtype, sums and exponentials in fp32 at least. Gradient
        reaches anchors, keys and own_view where they require it.

    Raises:
        ValueError: Shapes do not fit, or there is nothing to contrast with.
    """
    which = Negatives.parse(negatives)
    _require_fit(anchors, keys, which, temperature=temperature, grid=grid, offset=anchor_offset)
    columns = [keys]
    if which.own_view:
        columns.append(anchors if own_view is None else own_view)
        if columns[1].shape != keys.shape:
            raise ValueError(
                f"own_view {tuple(columns[1].shape)}: must be gathered like the keys "
                f"{tuple(keys.shape)}"
            )
    elif own_view is not None:
        raise ValueError('own_view is only used with negatives="both-views"')
    far = None
    if which.radius is not None and grid is not None:
        far = _distances(grid, anchors.device) > which.radius
    problem = Problem(float(temperature), anchor_offset, far, torch.is_grad_enabled())
    with without_autocast(anchors):
        return cast(Tensor, PatchNTXent.apply(problem, anchors, *columns))


def _require_fit(
    anchors: Tensor,
    keys: Tensor,
    which: Negatives,
    *,
    temperature: float,
    grid: tuple[int, int] | None,
    offset: int,
) -> None:
    (num_anchors, tokens, dim), num_keys = anchors.shape, len(keys)
    if keys.shape[1:] != (tokens, dim):
        raise ValueError(f"keys {tuple(keys.shape)} do not fit anchors {tuple(anchors.shape)}")
    if not 0 <= offset <= num_keys - num_anchors:
        raise ValueError(f"anchor_offset {offset}: {num_anchors} anchors, {num_keys} keys")
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")
    if which.radius is not None and (grid is None or grid[0] * grid[1] != tokens):
        raise ValueError(f"grid {grid}: +spatial needs (h, w) with h·w = {tokens}")
    if num_keys < 2 and which.radius is None:
        raise ValueError(
            f"{counted(num_keys, 'image')} in the keys: no negatives, at least 2 are needed"
        )


def _distances(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Euclidean distances between the cells of a grid, [N, N], in patches."""
    height, width = grid
    cells = torch.arange(height * width, device=device)  # made there: a copy would wait
    rows, columns = cells.div(width, rounding_mode="floor"), cells % width
    squares = sum((x[:, None] - x).square() for x in (rows, columns))
    return torch.as_tensor(squares).double().sqrt()

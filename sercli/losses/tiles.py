"""Patch-wise NT-Xent in tiles of whole rows: logits are neither stored nor computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sercli.precision import at_least_fp32

_EPS = 1e-12  # as in torch.nn.functional.normalize
# Logits lie in [-1/τ, 1/τ]: below this width of the range, exp(s - 1/τ) cannot underflow in fp32.
_SAFE_LOGIT_RANGE = 80.0
# A tile holds whole rows of logits, so that softmax needs no running sums: bytes of one tile, and
# rows that it has at least. Fewer make products thin, and the gradient of all keys is read and
# written for every tile; with as many as tokens are long, a tile is as large as the keys.
_TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20, "meta": 2**62}  # meta: shapes alone
_LEAST_ROWS = 512
# Columns that are converted and multiplied at a time, so that a CPU's cache holds them.
_COLUMNS = {"cpu": 4096}


@dataclass(frozen=True)
class Problem:
    """What is asked of the sweep beside the tokens.

    Attributes:
        temperature: τ, by which cosines are divided.
        anchor_offset: The anchors' image i is the keys' image `anchor_offset + i`.
        far: bool [N, N], tokens of the same image that count as negatives; None: none do.
        with_gradient: Whether gradients are found in the sweep, for the backward pass.
        tiles: Do the first so many only, which gives no loss but tells what a tile costs; None:
            all.
    """

    temperature: float
    anchor_offset: int
    far: Tensor | None
    with_gradient: bool
    tiles: int | None = None


class PatchNTXent(torch.autograd.Function):
    """Sweeps over tiles of whole rows; the gradient is found in the same sweep, while a tile's
    softmax is at hand, so the logits are neither stored nor computed twice."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, anchors: Tensor, *columns: Tensor) -> Tensor:
        wide = at_least_fp32(anchors, *columns)
        units, norms = zip(*(_unit(x, wide) for x in (anchors, *columns)), strict=True)
        wanted = [flag and problem.with_gradient for flag in ctx.needs_input_grad[1:]]
        gradients = [
            torch.zeros_like(u, dtype=wide) if w else None
            for u, w in zip(units, wanted, strict=True)
        ]
        loss = _sweep(problem, units, gradients, tokens=anchors.shape[1], wide=wide)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                _through_normalisation(gradient, units[index], norms[index])
        ctx.save_for_backward(*gradients)
        ctx.shapes = [(x.shape, x.dtype) for x in (anchors, *columns)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        scaled = (
            None if g is None else (g * grad_output).to(dtype).view(shape)
            for g, (shape, dtype) in zip(ctx.saved_tensors, ctx.shapes, strict=True)
        )
        return (None, *scaled)


def _unit(tokens: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Flattened L2-normalised tokens [M, D] in the input's dtype, and norms [M, 1]."""
    flat = tokens.detach().reshape(-1, tokens.shape[-1])
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=wide).clamp_min_(_EPS)
    return (flat / norms).to(flat.dtype), norms


def _through_normalisation(gradient: Tensor, unit: Tensor, norms: Tensor) -> None:
    """In place: ∂/∂x of a function of u = x/‖x‖, i.e. (g − u⟨u, g⟩) / ‖x‖."""
    radial = torch.linalg.vecdot(unit.to(gradient.dtype), gradient).unsqueeze_(1)
    gradient.addcmul_(unit.to(gradient.dtype), radial, value=-1).div_(norms)


def rows_of_tile(width: int, device: torch.device, wide: torch.dtype) -> int:
    """How many anchors a tile holds, for `width` columns."""
    tile_bytes = _TILE_BYTES.get(device.type, _TILE_BYTES["cpu"])
    return max(_LEAST_ROWS, tile_bytes // max(1, width * torch.finfo(wide).bits // 8))


def _sweep(
    problem: Problem,
    units: tuple[Tensor, ...],
    gradients: list[Tensor | None],
    *,
    tokens: int,
    wide: torch.dtype,
) -> Tensor:
    """Mean loss; adds ∂loss/∂unit to `gradients` where given. `units`: anchors, keys[, own]."""
    anchors, columns = units[0], units[1:]
    rows, width = len(anchors), sum(len(c) for c in columns)
    scale = 1 / problem.temperature
    step = rows_of_tile(width, anchors.device, wide)
    last = rows if problem.tiles is None else min(rows, problem.tiles * step)
    # One memory for all tiles: a fresh one costs a page fault for each of its pages.
    memory = [anchors.new_empty(min(step, last), len(c), dtype=wide) for c in columns]
    total = torch.zeros((), dtype=wide, device=anchors.device)
    for start in range(0, last, step):
        tile = anchors[start : start + step]
        parts = [one[: len(tile)] for one in memory]
        for part, column in zip(parts, columns, strict=True):
            _cosines(tile, column, part)
            part.mul_(scale)
        positives = parts[0].diagonal(start + problem.anchor_offset * tokens)[: len(tile)]
        positive = positives.clone()
        _exclude(parts, start, problem, tokens)
        if 2 * scale < _SAFE_LOGIT_RANGE:
            shift = positive.new_full((), scale)
        else:  # the largest negative; an anchor without any keeps a finite shift
            shift = torch.stack([part.amax(dim=1) for part in parts]).amax(dim=0)
            shift.clamp_min_(torch.finfo(wide).min)
        for part in parts:
            part.sub_(shift.unsqueeze(-1)).exp_()
        sums = parts[0].sum(dim=1)
        for part in parts[1:]:
            sums += part.sum(dim=1)
        # log(1 + Σ_neg e^s / e^positive), by its logarithm, as the quotient may be out of range.
        excess = sums.log().add_(shift).sub_(positive)
        total -= F.logsigmoid(-excess).sum()
        if any(g is not None for g in gradients):
            wrong = excess.sigmoid_().mul_(scale / rows)  # the negatives' share of the softmax
            weight = (wrong / sums.clamp_min_(torch.finfo(wide).tiny)).unsqueeze_(1)
            for part in parts:
                part.mul_(weight)
            positives.copy_(wrong.neg_())
            to_tile = None if gradients[0] is None else gradients[0][start : start + step]
            for part, column, to_column in zip(parts, columns, gradients[1:], strict=True):
                _accumulate(part, tile, column, to_tile, to_column)
    return total / max(rows, 1)


def _exclude(parts: list[Tensor], start: int, problem: Problem, tokens: int) -> None:
    """Write −∞ at same-image columns that are no negatives (the positive's too)."""
    stop = start + len(parts[0])
    for image in range(start // tokens, (stop - 1) // tokens + 1):
        top, bottom = max(start, image * tokens), min(stop, (image + 1) * tokens)
        first = (problem.anchor_offset + image) * tokens
        for part in parts:
            block = part[top - start : bottom - start, first : first + tokens]
            if problem.far is None:
                block.fill_(-torch.inf)
            else:
                block.masked_fill_(
                    ~problem.far[top - image * tokens : bottom - image * tokens], -torch.inf
                )


def _cosines(tile: Tensor, column: Tensor, out: Tensor) -> None:
    """Write tile · columnᵀ, [rows, columns], in `out`'s dtype."""
    if out.dtype == tile.dtype:
        torch.mm(tile, column.T, out=out)
        return
    for some in _slices(column):
        out[:, some].copy_(tile @ column[some].T)


def _accumulate(
    softmax: Tensor,
    tile: Tensor,
    column: Tensor,
    to_tile: Tensor | None,
    to_column: Tensor | None,
) -> None:
    """Add a tile's share: ∂/∂anchor = Σ_column P·column, ∂/∂column = Pᵀ·anchor.

    In place where products have the dtype of the sums; else of some columns at a time, so that no
    product as large as all keys is written and read again.
    """
    for some in _slices(column):
        share = softmax[:, some].to(tile.dtype)
        if to_tile is not None:
            _add_product(to_tile, share, column[some])
        if to_column is not None:
            _add_product(to_column[some], share.T, tile)


def _add_product(to: Tensor, one: Tensor, other: Tensor) -> None:
    """to += one @ other; the sum is in `to`'s dtype."""
    if to.dtype == one.dtype:
        torch.addmm(to, one, other, out=to)  # torch's counter of FLOPs does not know `addmm_`
    else:
        to += one @ other


def _slices(column: Tensor) -> Iterator[slice]:
    """Columns that are taken at a time."""
    step = _COLUMNS.get(column.device.type, max(1, len(column)))
    for start in range(0, len(column), step):
        yield slice(start, start + step)

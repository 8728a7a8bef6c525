"""Losses: pure functions of tensors. Gathering over ranks happens outside, before the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sercli.negatives import Negatives
from sercli.precision import at_least_fp32, without_autocast

_EPS = 1e-12  # as in torch.nn.functional.normalize
# Logits lie in [-1/τ, 1/τ]: below this width of the range, exp(s - 1/τ) cannot underflow in fp32.
_SAFE_LOGIT_RANGE = 80.0
# A tile holds whole rows of logits, so that softmax needs no running sums: bytes of one tile.
_TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20, "meta": 2**62}  # meta: shapes alone


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
    (num_anchors, tokens, dim), num_keys = anchors.shape, len(keys)
    if keys.shape[1:] != (tokens, dim):
        raise ValueError(f"keys {tuple(keys.shape)} do not fit anchors {tuple(anchors.shape)}")
    if not 0 <= anchor_offset <= num_keys - num_anchors:
        raise ValueError(f"anchor_offset {anchor_offset}: {num_anchors} anchors, {num_keys} keys")
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")
    if which.radius is not None and (grid is None or grid[0] * grid[1] != tokens):
        raise ValueError(f"grid {grid}: +spatial needs (h, w) with h·w = {tokens}")
    if num_keys < 2 and which.radius is None:
        raise ValueError(f"{num_keys} image(s) in the keys: no negatives, at least 2 are needed")
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
    problem = _Problem(float(temperature), anchor_offset, far, torch.is_grad_enabled())
    with without_autocast(anchors):
        return cast(Tensor, _PatchNTXent.apply(problem, anchors, *columns))


def _distances(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Euclidean distances between the cells of a grid, [N, N], in patches."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()], dim=1).double()
    return torch.cdist(places, places).to(device)


@dataclass(frozen=True)
class _Problem:
    temperature: float
    anchor_offset: int
    far: Tensor | None  # bool [N, N]: same-image tokens that count as negatives
    with_gradient: bool


class _PatchNTXent(torch.autograd.Function):
    """Sweeps over tiles of whole rows; the gradient is found in the same sweep, while a tile's
    softmax is at hand, so the logits are neither stored nor computed twice."""

    @staticmethod
    def forward(ctx: Any, problem: _Problem, anchors: Tensor, *columns: Tensor) -> Tensor:
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


def _sweep(
    problem: _Problem,
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
    tile_bytes = _TILE_BYTES.get(anchors.device.type, _TILE_BYTES["cpu"])
    step = max(64, tile_bytes // max(1, width * torch.finfo(wide).bits // 8))
    total = torch.zeros((), dtype=wide, device=anchors.device)
    for start in range(0, rows, step):
        tile = anchors[start : start + step]
        parts = [(tile @ column.T).to(wide).mul_(scale) for column in columns]
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
            _accumulate(parts, tile, columns, gradients, start)
    return total / max(rows, 1)


def _exclude(parts: list[Tensor], start: int, problem: _Problem, tokens: int) -> None:
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


def _accumulate(
    parts: list[Tensor],
    tile: Tensor,
    columns: tuple[Tensor, ...],
    gradients: list[Tensor | None],
    start: int,
) -> None:
    """Add a tile's share: ∂/∂anchor = Σ_column P·column, ∂/∂column = Pᵀ·anchor."""
    to_anchors = gradients[0]
    for part, column, to_column in zip(parts, columns, gradients[1:], strict=True):
        softmax = part.to(tile.dtype)
        if to_anchors is not None:
            to_anchors[start : start + len(tile)] += softmax @ column
        if to_column is not None:
            to_column += softmax.T @ tile


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
    _check_contrast(queries, keys, "queries", "keys", query_offset, temperature)
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
    _check_pair(first, second, "first", "second")
    _check_pair(all_first, all_second, "all_first", "all_second")
    _check_contrast(first, all_first, "first", "all_first", offset, temperature)
    wide = at_least_fp32(first, second, all_first, all_second)
    with without_autocast(first):
        anchors = torch.cat([first.to(wide), second.to(wide)])
        logits = _cosines(anchors, torch.cat([all_first.to(wide), all_second.to(wide)]))
        logits = logits / temperature
        in_first = torch.arange(len(first), device=first.device) + offset
        in_second = in_first + len(all_first)
        own, twin = torch.cat([in_first, in_second]), torch.cat([in_second, in_first])
        logits[torch.arange(len(anchors), device=first.device), own] = -torch.inf
        return _mean_cross_entropy(logits, twin)


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
    _check_pair(first, second, "first", "second")
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


def dino_cross_entropy(
    students: Sequence[Tensor], targets: Sequence[Tensor], *, temperature: float
) -> Tensor:
    """Cross entropy of DINO between the teacher's and the student's views of the same images.

    Mean over all pairs (t, v), v ≠ t, of the mean over rows of

        −Σ_k targets[t]_k · log softmax(students[v] / τ)_k

    Args:
        students: V tensors of logits [n, K].
        targets: T ≤ V tensors of probabilities [n, K]: the teacher's, centred and sharpened, of
            the first T views. They get no gradient.
        temperature: τ > 0, of the student.

    Returns:
        fp32 scalar (float64 for float64 input; 0 for no rows).

    Raises:
        ValueError: Shapes or numbers of views do not fit.
    """
    if len(students) < 2:
        raise ValueError(f"{len(students)} student view(s): at least 2 are needed")
    if not 1 <= len(targets) <= len(students):
        raise ValueError(
            f"{len(targets)} target view(s): must be 1 to {len(students)}, the student's views"
        )
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")
    for name, views in (("students", students), ("targets", targets)):
        for index, view in enumerate(views):
            _check_pair(students[0], view, "students[0]", f"{name}[{index}]")
    wide = at_least_fp32(*students, *targets)
    with without_autocast(students[0]):
        fixed = [target.detach().to(wide) for target in targets]
        total = torch.zeros((), dtype=wide, device=students[0].device)
        for v, student in enumerate(students):
            log_probability = F.log_softmax(student.to(wide) / temperature, dim=1)
            for t, target in enumerate(fixed):
                if t != v:
                    total = total - (target * log_probability).sum()
        pairs = len(targets) * (len(students) - 1)
        return total / (pairs * max(len(students[0]), 1))


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """[R, E], [C, E] → [R, C]."""
    return F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows; for none of them a zero that keeps its place in the graph."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


def _check_pair(one: Tensor, other: Tensor, one_name: str, other_name: str) -> None:
    if one.ndim != 2:
        raise ValueError(f"{one_name} {tuple(one.shape)}: must be a matrix, one row an image")
    if other.shape != one.shape:
        raise ValueError(
            f"{other_name} {tuple(other.shape)} does not fit {one_name} {tuple(one.shape)}: "
            "shapes must be equal"
        )


def _check_contrast(
    rows: Tensor,
    gathered: Tensor,
    rows_name: str,
    gathered_name: str,
    offset: int,
    temperature: float,
) -> None:
    if rows.ndim != 2 or gathered.ndim != 2 or rows.shape[1] != gathered.shape[1]:
        raise ValueError(
            f"{gathered_name} {tuple(gathered.shape)}: must be a matrix as wide as {rows_name} "
            f"{tuple(rows.shape)}"
        )
    if len(gathered) < 2:
        raise ValueError(
            f"{len(gathered)} row(s) in {gathered_name}: no negatives, at least 2 are needed"
        )
    if not 0 <= offset <= len(gathered) - len(rows):
        raise ValueError(
            f"offset {offset}: {len(rows)} row(s) of {rows_name} must lie among the "
            f"{len(gathered)} of {gathered_name}"
        )
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")

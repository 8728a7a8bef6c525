"""All collectives. With one process every function is the identity and needs no process group.

Rows that ranks hold are in *rank order* after a gather; ranks may hold different numbers of rows,
which every rank can work out, so no sizes are sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sercli import stages
from sercli.precision import widened

_T = TypeVar("_T")

_alone = False
_even_of_one = False


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process acts as if it were the only one (for counting FLOPs)."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def even_of_one() -> Iterator[None]:
    """Inside, a process group counts even if it is of one process.

    All collectives then run on a machine with one device, as they would between several.
    """
    global _even_of_one
    before, _even_of_one = _even_of_one, True
    try:
        yield
    finally:
        _even_of_one = before


def active() -> bool:
    """Whether there are other processes to talk to."""
    if _alone or not dist.is_available() or not dist.is_initialized():
        return False
    return _even_of_one or dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def rows_of_rank(total: int, *, first: int = 0, world: int | None = None) -> list[int]:
    """How many of the global positions first…total−1 each rank holds (position p: rank p mod W)."""
    world = world or world_size()
    return [len(range(first + (r - first) % world, total, world)) for r in range(world)]


def share_of(counts: Sequence[int]) -> float:
    """What a mean over this rank's rows is scaled by, for the mean over ranks to be that of all."""
    return counts[rank()] * len(counts) / sum(counts)


def offset_of(counts: Sequence[int]) -> int:
    """Where this rank's rows start among the gathered ones."""
    return sum(counts[: rank()])


def _gather(gathered: Tensor, rows: Tensor) -> None:
    """Gather by the name that this torch has for it; what has two warns of the older."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(len(counts) * most, *rows.shape[1:])
        stages.take_turn()
        _gather(gathered, padded)
        pieces = gathered.view(len(counts), most, *rows.shape[1:])
        return torch.cat([piece[:n] for piece, n in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        counts: Sequence[int] = ctx.counts
        total = widened(gradient).contiguous().clone()  # a sum over many ranks
        stages.take_turn()
        dist.all_reduce(total)
        start = sum(counts[: dist.get_rank()])
        return total[start : start + counts[dist.get_rank()]].to(gradient.dtype), None


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks, in rank order, with gradient where `rows` carries one.

    Every rank must call it, and, if any rank's rows carry gradient, run backward through it: the
    gradient of a row is the sum of what all ranks' losses send to it.

    Args:
        rows: This rank's rows, [counts[rank], …].
        counts: Number of rows of each rank.

    Returns:
        [sum(counts), …]. On shapes (the meta device) also of ranks that are not there, so that what
        is counted before they start is of as many rows as they will see.
    """
    if not active():
        others = sum(counts) - len(rows) if rows.is_meta else 0
        return torch.cat([rows, rows.new_empty(others, *rows.shape[1:])]) if others > 0 else rows
    if len(rows) != counts[dist.get_rank()]:
        raise ValueError(f"{len(rows)} rows, but counts say {counts[dist.get_rank()]}")
    return cast(Tensor, _GatherRows.apply(rows, counts))


def gather_in_order(rows: Tensor, total: int) -> Tensor:
    """The rows of all ranks, of which rank r holds the positions r, r + W, …, by position.

    Args:
        rows: [positions of this rank, …].
        total: Positions of all ranks.

    Returns:
        [total, …].
    """
    world = world_size()
    gathered = gather_rows(rows, rows_of_rank(total))
    if world == 1:
        return gathered
    places = torch.cat([torch.arange(first, total, world) for first in range(world)])
    ordered = torch.empty_like(gathered)
    ordered[places.to(gathered.device)] = gathered
    return ordered


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        stages.take_turn()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        stages.take_turn()
        dist.all_reduce(total)
        return total


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks, differentiable: each rank's loss may depend on it."""
    return cast(Tensor, _SumOverRanks.apply(value)) if active() else value


def data_parallel(module: nn.Module, **options: Any) -> DistributedDataParallel:
    """A module whose gradients are averaged over the ranks; no buffer is sent in a pass.

    Every rank works out the same buffers.

    Args:
        module: The same on every rank.
        **options: What else `DistributedDataParallel` takes.
    """
    # Where there is the newer name, the older one gets a warning.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options[name] = False
    return DistributedDataParallel(module, **options)


_BUCKET = 2**23  # numbers that are sent at once


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the ranks, as DDP does; all ranks must call it.

    Args:
        parameters: The same on every rank. One that has no gradient counts, and gets, zeros.
    """
    if not active():
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(one.numel() for one in bucket) >= _BUCKET:
            _average(bucket)
            bucket = []
    if bucket:
        _average(bucket)


def _average(gradients: Sequence[Tensor]) -> None:
    joined = torch.cat([one.flatten() for one in gradients]).div_(world_size())
    stages.take_turn()
    dist.all_reduce(joined)
    parts = joined.split([one.numel() for one in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def any_rank(flag: int, device: torch.device) -> int:
    """The largest `flag` of all ranks."""
    if not active():
        return flag
    value = torch.tensor(flag, device=device)
    stages.take_turn()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not active():
        return value
    box = [value]
    stages.take_turn()
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: _T) -> list[_T]:
    """What each rank holds, in rank order, on every rank."""
    if not active():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    stages.take_turn()
    dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    if active():
        stages.take_turn()
        dist.barrier()

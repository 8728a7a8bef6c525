"""How many operators a piece of work calls, and how many bytes they read and write."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sercli.benchmarks.measure import synchronise

# They give memory, and put nothing into it.
_NO_WORK = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


class OperatorCount(TorchDispatchMode):
    """Counts operators that compute or copy something, forward and backward.

    On CUDA each launches a kernel or more; on a CPU it is what stands for that. Views, and memory
    without content, are no work.

    Attributes:
        calls: By operator.
        num_bytes: All inputs and outputs of those, as if no cache held them: an upper bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in _NO_WORK or (not func._schema.is_mutable and _only_views(made, given)):
            return out
        self.calls[name] += 1
        each = {id(x): x for x in (*given, *made)}
        self.num_bytes += sum(x.numel() * x.element_size() for x in each.values())
        return out


def launched_kernels(call: Callable[[], object], device: torch.device) -> int | None:
    """How many kernels a call launches on a CUDA device, by the profiler; None where it says none.

    Copies and fills by the driver are no kernels.
    """
    if device.type != "cuda" or ProfilerActivity.CUDA not in supported_activities():
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        synchronise(device)
    names = [event.name for event in seen.events() if event.device_type.name == "CUDA"]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) or None


def _only_views(made: list[Tensor], given: list[Tensor]) -> bool:
    """Whether all that an operator gave lies in what it was given (or it gave nothing)."""
    there = {_memory(x) for x in given}
    return all(_memory(x) in there for x in made)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

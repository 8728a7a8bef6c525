"""Which operators a piece of code calls, and in which dtypes: what autocast made of it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATTENTION = "scaled_dot_product_attention"  # its operators are named after the device


class Call(NamedTuple):
    """One operator with the dtypes of its floating-point tensors."""

    name: str
    inputs: tuple[torch.dtype, ...]
    outputs: tuple[torch.dtype, ...]


class Operators(TorchDispatchMode):
    """Records calls; autocast has done its casts by then. `with Operators() as seen: …`"""

    def __init__(self):
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        inputs, outputs = _dtypes((args, kwargs)), _dtypes(out)
        if name.startswith("_scaled_dot_product"):  # by-products differ: sums, random state
            name, outputs = ATTENTION, outputs[:1]
        self.calls[Call(name, inputs, outputs)] += 1
        return out


def _dtypes(tree):
    return tuple(
        leaf.dtype
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    )

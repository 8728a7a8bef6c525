"""Compiling what a step computes token by token: the parts of blocks around their attention.

Attention stays as it is: it has kernels of its own. What lies around it has one dimension that
varies, the number of tokens of a pass, whatever views and grids they are of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from sercli.encoders.blocks import Parts, ViTBlock, after_attention, before_attention


def compile_blocks(blocks: Iterable[nn.Module], *, backend: str = "inductor") -> int:
    """Have the blocks run compiled, from their first call on; names of parameters do not change.

    All blocks share what is compiled: once for each way they are called (with gradient or without,
    training or evaluation, branches dropped or not).

    Args:
        blocks: Of encoders; those that are not ours stay as they are.
        backend: Of `torch.compile`.

    Returns:
        How many blocks run compiled.
    """
    parts = _compiled(backend)
    ours = [block for block in blocks if isinstance(block, ViTBlock)]
    for block in ours:
        block.parts = parts
    return len(ours)


def _compiled(backend: str) -> Parts:
    compiled_before: Any = torch.compile(before_attention, backend=backend)
    compiled_after: Any = torch.compile(after_attention, backend=backend)

    def before(block: ViTBlock, tokens: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(tokens, 0)
        packed: Tensor = compiled_before(block, tokens)
        return packed

    def after(block: ViTBlock, tokens: Tensor, attended: Tensor, keep: Tensor | None) -> Tensor:
        for varying, dim in ((tokens, 0), (attended, 0), (keep, 1)):
            if varying is not None:
                torch._dynamo.mark_dynamic(varying, dim)
        passed: Tensor = compiled_after(block, tokens, attended, keep)
        return passed

    return Parts(before, after)

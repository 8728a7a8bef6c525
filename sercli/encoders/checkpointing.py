"""Activation checkpointing: a block's insides are computed again instead of kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sercli.encoders.blocks import TokenBlock
from sercli.encoders.tokens import Layout


def through(
    block: TokenBlock, tokens: Tensor, layout: Layout, keep: Tensor | None = None, *, again: bool
) -> Tensor:
    """What a block makes of its input.

    Args:
        block: Of ours: it draws nothing, as stochastic depth is given to it.
        tokens, layout, keep: What it is called with.
        again: Keep nothing but the input, and compute the rest again in the backward pass.
    """
    passed: Tensor
    if again and torch.is_grad_enabled():
        passed = checkpoint(
            block, tokens, layout, keep, use_reentrant=False, preserve_rng_state=False
        )
    else:
        passed = block(tokens, layout, keep)
    return passed

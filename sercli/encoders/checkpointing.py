"""Activation checkpointing: a block's insides are computed again instead of kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def through(block: nn.Module, *given: Tensor, again: bool) -> Tensor:
    """What a block makes of its input.

    Args:
        block: Any module that draws nothing (stochastic depth is given to blocks of ours).
        *given: Its input.
        again: Keep nothing but the input, and compute the rest again in the backward pass.
    """
    passed: Tensor
    if again and torch.is_grad_enabled():
        passed = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
    else:
        passed = block(*given)
    return passed

"""How the weights of a module are drawn, by scheme."""

from __future__ import annotations

import math

from timm.layers import LayerScale
from torch import nn

from sercli.errors import UserError
from sercli.randomness import truncated_normal_
from sercli.recipe.schema import Initialiser


def draw_weights(module: nn.Module, scheme: Initialiser, *, parts: int) -> None:
    """Draw a module's own weights; a linear layer may be `parts` maps of one input in one."""
    match module:
        case nn.Linear():
            if scheme in (Initialiser.MOCO_V3, Initialiser.SER_MOCO):
                limit = math.sqrt(6 / (module.in_features + module.out_features // parts))
                module.weight.uniform_(-limit, limit)
            else:
                truncated_normal_(module.weight, std=0.02)
            if module.bias is not None:
                module.bias.zero_()
        case nn.Conv2d() | nn.LayerNorm():
            module.reset_parameters()
        case LayerScale():
            module.gamma.fill_(module.init_values)
        case _ if any(True for _ in module.parameters(recurse=False)):
            raise UserError(f"cannot initialise a {type(module).__name__}")

"""AdamW over parameter groups that cover every trainable parameter once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sercli.recipe import Train


def make_optimiser(objective: nn.Module, train: Train) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set at every step by the schedule.

    `train.decay`: "all" decays every parameter, "weights" spares biases, norms and tokens (all
    that is not a matrix or a convolution).
    """
    trainable = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    tokens = ("cls_token", "reg_token", "pos_embed")

    def spared(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim < 2 or name.rpartition(".")[2] in tokens

    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": train.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in trainable.items():
        exempt = train.decay == "weights" and spared(name, parameter)
        groups[exempt]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    covered = [p for group in groups for p in group["params"]]
    assert len(covered) == len(trainable)
    assert {id(p) for p in covered} == {id(p) for p in trainable.values()}
    return torch.optim.AdamW(groups, lr=0.0, fused=True)

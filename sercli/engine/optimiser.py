"""AdamW over parameter groups that cover every trainable parameter once, and its schedules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sercli.recipe.schema import Train


def make_optimiser(objective: nn.Module, train: Train) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set at every step by the schedule.

    `train.decay`: "all" decays every parameter (MoCo-v3, SER's Barlow Twins), "not-1d" spares
    biases and all else that has one dimension (DINO, whose [CLS], positions and lengths of
    prototypes decay), "weights" spares tokens and positions too.
    """
    trainable = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    tokens = ("cls_token", "reg_token", "pos_embed")

    def spared(name: str, parameter: nn.Parameter) -> bool:
        if parameter.ndim < 2:
            return train.decay != "all"
        return train.decay == "weights" and name.rpartition(".")[2] in tokens

    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": train.weight_decay, "decays": True},
        {"params": [], "weight_decay": 0.0, "decays": False},
    ]
    for name, parameter in trainable.items():
        groups[spared(name, parameter)]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    covered = [p for group in groups for p in group["params"]]
    assert len(covered) == len(trainable)
    assert {id(p) for p in covered} == {id(p) for p in trainable.values()}
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_schedule(optimiser: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Give a step its learning rate and weight decay."""
    for group in optimiser.param_groups:
        group["lr"] = lr
        if group["decays"]:
            group["weight_decay"] = weight_decay


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the whole gradient, a scalar on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def clip_gradients(parameters: Sequence[nn.Parameter], train: Train) -> Tensor:
    """Clip gradients in place as `train.clip_norm` and `train.clip` say.

    Returns:
        The norm of the whole gradient before clipping, a scalar on the device.
    """
    norm = gradient_norm(parameters)
    if train.clip_norm is not None and train.clip == "each":
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        scales = (train.clip_norm / (torch.stack(norms) + 1e-6)).clamp_(max=1).unbind()
        torch._foreach_mul_(gradients, scales)
    elif train.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, train.clip_norm, norm, foreach=True)
    return norm

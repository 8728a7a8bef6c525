"""Optimisers over parameter groups that cover every trainable parameter once; their schedules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sercli.encoders.vit import Encoder
from sercli.engine.momentum import Momentum
from sercli.objective import Objective
from sercli.recipe.schema import Train

# What each keeps of every parameter, of its shape.
MOMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"adamw": ("exp_avg", "exp_avg_sq"), "lars": Momentum.moments, "sgd": Momentum.moments}
)


def make_optimiser(objective: Objective, train: Train) -> torch.optim.Optimizer:
    """Fused AdamW, LARS or SGD; `set_schedule` gives every step its learning rate.

    `train.decay`: "all" decays every parameter (MoCo-v3, SER's Barlow Twins), "not-1d" spares
    biases and all else that has one dimension (DINO, whose [CLS], positions and lengths of
    prototypes decay), "weights" spares tokens and positions too. LARS adapts the rate of what
    decays and has more than one dimension, as its originals do.

    A group's learning rate is that of the schedule times its `lr_scale`: of `train.lr_biases` and
    `train.layer_decay`, see `depths`. Where that is 1, as without these, it is left out: so are
    checkpoints of before it as they were.
    """
    depth_of, last = depths(objective.encoder), objective.encoder.depth + 1
    biases = 1.0 if train.lr_biases is None else train.lr_biases / train.lr
    by_setting: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    trainable = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        decays = _decays(name, parameter, train)
        adapts = train.optimiser == "lars" and decays and parameter.ndim > 1
        scale = (train.layer_decay or 1.0) ** (last - depth_of.get(parameter, last))
        scale *= biases if parameter.ndim < 2 else 1.0
        by_setting.setdefault((not decays, not adapts, scale), []).append(parameter)
    covered = [p for parameters in by_setting.values() for p in parameters]
    assert len(covered) == len(trainable)
    assert {id(p) for p in covered} == {id(p) for p in trainable.values()}
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": 0.0 if spared else train.weight_decay,
            "decays": not spared,
            **({} if scale == 1 else {"lr_scale": scale}),
            **({} if rigid else {"trust_coefficient": train.trust_coefficient}),
        }
        for (spared, rigid, scale), parameters in sorted(by_setting.items(), key=lambda one: one[0])
    ]
    if train.optimiser == "adamw":
        assert train.betas is not None
        return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, fused=True)
    assert train.momentum is not None
    return Momentum(groups, momentum=train.momentum)


def _decays(name: str, parameter: nn.Parameter, train: Train) -> bool:
    """Whether weight decay is for a parameter of this name."""
    if parameter.ndim < 2:
        return train.decay == "all"
    tokens = ("cls_token", "reg_token", "pos_embed")
    return not (train.decay == "weights" and name.rpartition(".")[2] in tokens)


def depths(encoder: Encoder) -> dict[Tensor, int]:
    """Where in the encoder each of its parameters works, for `train.layer_decay`.

    0 is what makes tokens of patches and positions, l is block l, depth + 1 the final norm: BEiT's
    and MAE's count. [CLS] and registers count as the block after which they join: 0 as there,
    unless they are delayed, one less than the block that first sees them in any case.
    """
    found: dict[Tensor, int] = dict.fromkeys(encoder.parameters(), 0)
    for token in (encoder.cls_token, encoder.reg_token):
        if token is not None:
            found[token] = encoder.cls_after or 0
    for layer, block in enumerate(encoder.blocks, start=1):
        found |= dict.fromkeys(block.parameters(), layer)
    for norm in (encoder.norm, encoder.fc_norm):
        found |= dict.fromkeys(norm.parameters(), encoder.depth + 1)
    return found


def set_schedule(optimiser: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Give a step its learning rate and weight decay."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
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

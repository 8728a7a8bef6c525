"""SGD with momentum, and LARS, which is that with a rate of its own for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Momentum(torch.optim.Optimizer):
    """SGD with momentum; LARS in groups that have a `trust_coefficient`.

    Of weights w with gradient g, learning rate γ, momentum μ, weight decay ω and trust coefficient
    η a step is

        u = g + ω w                u ← u · η ‖w‖ / ‖u‖   (LARS)
        v ← μ v + u                w ← w − γ v

    where v starts at 0, and without dampening or Nesterov's look ahead. Where ‖w‖ or ‖u‖ is 0, u
    stays as it is. That is You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks",
    as Barlow Twins' and MoCo-v3's code have it: ‖u‖ is of the gradient with its weight decay, where
    others divide by ‖g‖ + ω ‖w‖.

    Parameters without gradient stay. A step works on `grad` in place, so that it needs no memory
    beside v, and never waits for the device.

    Args:
        groups: Parameters with a `weight_decay` and, if they are to be adapted, a
            `trust_coefficient`; those of a group have one dtype and device.
        momentum: μ, 0…1.

    Attributes:
        found_inf: float32 scalar on the device: where it is 1, w and v stay as they are.
    """

    moments = ("momentum_buffer",)  # v; called as torch.optim.SGD does

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "trust_coefficient": None}
        super().__init__(groups, defaults)
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient; takes no closure."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            weight_decay, trust = group["weight_decay"], group["trust_coefficient"]
            momentum = group["momentum"]
            if trust is not None:
                _adapt(gradients, parameters, weight_decay=weight_decay, trust=trust)
                weight_decay = 0.0
            # Fused for its `found_inf`. torch.optim.SGD leaves v undefined where its first step is
            # skipped, and takes no parameter whose first gradient comes after the others'.
            torch._fused_sgd_(
                parameters,
                gradients,
                [self._velocity(p) for p in parameters] if momentum else [],
                weight_decay=weight_decay,
                momentum=momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=self.found_inf,
            )

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state[self.moments[0]] = torch.zeros_like(
                parameter, memory_format=torch.preserve_format
            )
        velocity: Tensor = state[self.moments[0]]
        return velocity


def _adapt(
    gradients: list[Tensor], weights: list[Tensor], *, weight_decay: float, trust: float
) -> None:
    """g ← (g + ω w) · η ‖w‖ / ‖g + ω w‖, in place."""
    torch._foreach_add_(gradients, weights, alpha=weight_decay)
    lengths = torch.stack(torch._foreach_norm(weights))
    steps = torch.stack(torch._foreach_norm(gradients))
    ratios = trust * lengths / steps
    ratios.masked_fill_((lengths == 0) | (steps == 0), 1.0)
    torch._foreach_mul_(gradients, list(ratios.unbind()))

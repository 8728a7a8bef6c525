"""What the ranks agree on at a step: means of losses, and flags that any of them raised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli import distributed
from sercli.precision import at_least_fp32


@dataclass(frozen=True)
class Agreed:
    """What all ranks know of a step.

    Attributes:
        step: Its number, from 1.
        losses: Means over the ranks.
        gradient_norm: Likewise; None where the step has none.
        flags: How many ranks raised each flag.
        images: What the step was made of, for messages.
    """

    step: int
    losses: Mapping[str, float]
    gradient_norm: float | None
    flags: Mapping[str, float]
    images: Sequence[object]

    @property
    def culprits(self) -> tuple[str, ...]:
        """Names of what is not finite; parts of the loss come before their sum."""
        named = sorted(self.losses, key=lambda name: name == "loss")
        found = [name for name in named if not math.isfinite(self.losses[name])]
        if self.gradient_norm is not None and not math.isfinite(self.gradient_norm):
            found.append("gradient norm")
        return tuple(found)


@dataclass(frozen=True)
class Agreement:
    """What the ranks agreed on, perhaps still on its way to the host.

    Attributes:
        step: Its number, from 1.
        losses: Names of the first values.
        has_norm: Whether the norm of the gradient comes next.
        flags: Names of the last values.
        values: [losses + norm + flags], means of the former and sums of the flags.
        bad: float32 scalar on the device, 1 where a mean is not finite.
        ready: When the values have arrived; None: they have.
        images: What the step was made of, for messages.
    """

    step: int
    losses: tuple[str, ...]
    has_norm: bool
    flags: tuple[str, ...]
    values: Tensor
    bad: Tensor
    ready: torch.cuda.Event | None
    images: Sequence[object]

    @classmethod
    def between_ranks(
        cls,
        step: int,
        losses: Mapping[str, Tensor],
        gradient_norm: Tensor | None,
        flags: Mapping[str, bool],
        *,
        images: Sequence[object],
        device: torch.device | None,
    ) -> Agreement:
        """Agree on a step: one sum over the ranks, which nothing here waits for.

        Args:
            step: Its number, from 1.
            losses: This rank's, scalars by name.
            gradient_norm: Of this rank, a scalar.
            flags: What this rank wants all to know.
            images: What the step is made of, for messages.
            device: Where, without any losses.
        """
        named = [*losses.values(), *([] if gradient_norm is None else [gradient_norm])]
        if named:
            wide = at_least_fp32(*named)
            means = torch.stack([value.detach().to(wide) for value in named])
        else:
            means = torch.zeros(0, device=device if distributed.active() else None)
        raised = means.new_zeros(len(flags))  # filled in place: a copy would wait
        for place, flag in enumerate(flags.values()):
            if flag:
                raised[place].fill_(1)
        values = torch.cat([means, raised])
        values = distributed.sum_over_ranks(values)
        values[: len(named)] /= distributed.world_size()
        bad = (~values[: len(named)].isfinite().all()).float()
        ready = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        has_norm = gradient_norm is not None
        return cls(step, tuple(losses), has_norm, tuple(flags), values, bad, ready, images)

    def read(self) -> Agreed:
        """Wait for the numbers, and name them."""
        if self.ready is not None:
            self.ready.synchronize()
        numbers = iter(self.values.tolist())
        losses = {name: next(numbers) for name in self.losses}
        norm = next(numbers) if self.has_norm else None
        return Agreed(self.step, losses, norm, {n: next(numbers) for n in self.flags}, self.images)

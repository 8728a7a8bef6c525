"""Linear classifiers of patch tokens: one for every layer and learning rate, trained in one pass.

Tokens are standardised; each head maps a token [D] to logits [C], whose map is upsampled bilinearly
to P x P points, where the cross entropy is taken. All heads see the same windows and share nothing:
AdamW works on each number by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli.data.masks.source import IGNORED
from sercli.engine.pace import Pace
from sercli.engine.stepper import Stepper
from sercli.evals.common import Progress
from sercli.evals.linear.features import Scale
from sercli.evals.segmentation.frames import upsampling
from sercli.evals.segmentation.scores import Counts
from sercli.evals.segmentation.tokens import Encoded
from sercli.randomness import generator, numpy_generator
from sercli.signals import StopRequest
from sercli.transfer import to_device

INIT_STD = 0.01
WEIGHT_DECAY = 1e-4
WARM_UP = 1500 / 40_000  # share of the steps, as DINOv2's


class Heads:
    """L x H heads on the tokens of L layers, for H learning rates.

    All heads of a layer start from the same draw of N(0, 0.01), bias 0.

    Args:
        layers: Which.
        rates: Peak learning rates.
        scale: Standardises tokens [..., L, D].
        grid: g, tokens along a side.
        points: P, points along a side at which the loss is taken.
        num_classes: C.
        seed: Of the first weights.
        device: Where they are.
    """

    def __init__(
        self,
        layers: Sequence[int],
        rates: Sequence[float],
        scale: Scale,
        *,
        grid: int,
        points: int,
        num_classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.layers, self.rates, self.num_classes = tuple(layers), tuple(rates), num_classes
        self.grid, self.device = grid, device
        self.mean, self.std = scale.mean.to(device), scale.std.to(device)
        self.upsample = torch.from_numpy(upsampling(points, grid)).float().to(device)
        self.weights: list[list[Tensor]] = []
        self.biases: list[list[Tensor]] = []
        for layer in self.layers:
            draws = generator(seed, "segment", "init", layer)
            shape = (num_classes, self.mean.shape[1])
            start = INIT_STD * torch.randn(shape, generator=draws)
            self.weights.append([start.to(device, copy=True).requires_grad_() for _ in rates])
            self.biases.append(
                [torch.zeros(num_classes, device=device, requires_grad=True) for _ in rates]
            )

    def optimiser(self) -> torch.optim.AdamW:
        """A group for every learning rate."""
        groups = [
            {"params": [one[which] for one in (*self.weights, *self.biases)], "lr": rate}
            for which, rate in enumerate(self.rates)
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY)

    def logits(self, tokens: Tensor, place: int) -> Tensor:
        """Of a layer's heads at all points: [B, T, L, D] → [B, H, C, P, P]."""
        scaled = (tokens[:, :, place] - self.mean[place]) / self.std[place]
        weight, bias = torch.cat(self.weights[place]), torch.cat(self.biases[place])
        maps = torch.nn.functional.linear(scaled, weight, bias).transpose(1, 2)
        maps = maps.reshape(len(tokens), len(self.rates), self.num_classes, self.grid, self.grid)
        # Not `interpolate`, whose gradient on CUDA is summed in any order.
        return self.upsample @ maps @ self.upsample.T

    def loss(self, some: Encoded) -> Tensor:
        """The sum over all heads of their mean cross entropy over the points with a class."""
        targets = some.targets.long()[:, None, None]
        labelled = targets != IGNORED
        number = labelled.sum().clamp(min=1)
        own = targets.masked_fill(~labelled, 0).expand(-1, len(self.rates), -1, -1, -1)
        total = torch.zeros((), device=self.device)
        for place in range(len(self.layers)):
            log_p = self.logits(some.tokens, place).log_softmax(2)
            total = total - (log_p.gather(2, own) * labelled).sum() / number
        return total

    @torch.no_grad()
    def judge(self, some: Encoded) -> Tensor:
        """What every head gets right: confusion int64 [L, H, C, C], truth by prediction."""
        targets = some.targets.long()[:, None]
        labelled = targets != IGNORED
        layers = []
        for place in range(len(self.layers)):
            predicted = self.logits(some.tokens, place).argmax(2)
            pairs = targets * self.num_classes + predicted
            # What is ignored is counted in a last cell, which is cut off: nothing waits for it.
            pairs = pairs.masked_fill(~labelled, self.num_classes**2)
            cells = self.num_classes**2 + 1
            counts = [
                torch.zeros(cells, dtype=torch.long, device=self.device).scatter_add_(
                    0, one.flatten(), torch.ones_like(one.flatten())
                )
                for one in pairs.unbind(1)
            ]
            layers.append(torch.stack(counts)[:, :-1])
        shape = (len(layers), len(self.rates), self.num_classes, self.num_classes)
        return torch.stack(layers).view(shape)

    def folded(self, place: int, which: int) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] of a head, for tokens that are not standardised."""
        weight, bias = self.weights[place][which].detach(), self.biases[place][which].detach()
        folded = weight / self.std[place]
        return folded, bias - folded @ self.mean[place]

    def finite(self, place: int, which: int) -> bool:
        """Whether a head has not diverged."""
        both = (self.weights[place][which], self.biases[place][which])
        return all(bool(one.isfinite().all()) for one in both)


def factor(step: int, total: int) -> float:
    """What learning rates are multiplied by: a linear warm-up, then linearly to 0."""
    warm = round(WARM_UP * total)
    return (1 - step / total) * min(1.0, (step + 1) / (warm + 1))


def positions(number: int, *, batch: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Which of a number of windows each step takes: all of them in turn, in a new order each time.

    Args:
        number: Windows there are.
        batch: Windows a step.
        steps: Of training.
        seed: Of the order.
    """
    left, epoch = np.zeros(0, np.int64), 0
    for _ in range(steps):
        while len(left) < batch:
            draws = numpy_generator(seed, "segment", "order", epoch)
            left, epoch = np.concatenate([left, draws.permutation(number)]), epoch + 1
        yield left[:batch]
        left = left[batch:]


def train(
    heads: Heads,
    batches: Iterable[Encoded],
    *,
    steps: int,
    batch: int,
    windows: int,
    what: str,
    request: StopRequest,
    progress: Progress | None,
) -> None:
    """Train all heads to the end of the schedule.

    Args:
        heads: As they start.
        batches: One a step.
        steps: Of training.
        batch: Windows a step.
        windows: How many there are.
        what: Called so in `progress`.
        request: Set by signal handlers.
        progress: Called with `what`, the steps done, and all of them.

    Raises:
        Interrupted, Preempted: As asked for.
    """
    optimiser = heads.optimiser()
    pace = Pace(
        total_steps=steps,
        batch_size=batch,
        epoch_at=lambda step: step * batch / windows,
        lr_at=lambda step: factor(step, steps),
        log_steps=None,
        save_seconds=None,
        save_steps=steps,
    )
    stepper = Stepper(pace, None, device=heads.device, how_to_go_on="the same command starts anew")
    stepper.attend(request)
    for some in stepper.waiting(batches):
        there = Encoded(to_device(some.tokens, heads.device), to_device(some.targets, heads.device))
        for group, rate in zip(optimiser.param_groups, heads.rates, strict=True):
            group["lr"] = rate * factor(stepper.step, steps)
        optimiser.zero_grad(set_to_none=True)
        heads.loss(there).backward()
        optimiser.step()
        if progress is not None:
            progress(what, stepper.step + 1, steps)
        # Without losses: a head that diverges is no reason to skip a step of the others.
        stepper.agree({})
        stepper.done()


def held_out(heads: Heads, batches: Iterable[Encoded]) -> list[list[float | None]]:
    """Mean IoU of every head on the hold-out, [L][H] in percent; None for one that diverged."""
    size = heads.num_classes
    total = torch.zeros(len(heads.layers), len(heads.rates), size, size, dtype=torch.long)
    for some in batches:
        there = Encoded(to_device(some.tokens, heads.device), to_device(some.targets, heads.device))
        total += heads.judge(there).cpu()
    return [
        [
            Counts.of_confusion(total[place, which].numpy()).mean_iou()
            if heads.finite(place, which)
            else None
            for which in range(len(heads.rates))
        ]
        for place in range(len(heads.layers))
    ]


def best(found: Sequence[float | None]) -> int | None:
    """Which of some heads is best; of equal ones the first. None where all diverged."""
    there = {which: value for which, value in enumerate(found) if value is not None}
    return max(there, key=lambda which: there[which]) if there else None

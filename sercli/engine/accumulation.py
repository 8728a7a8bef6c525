"""Losses and gradients of a step: in one go, or in micro-batches that give the same numbers.

The losses look at all images at once: negatives, batch norm, DINO's centre and Barlow Twins'
correlation are of the whole batch. What takes the memory, the encoder, looks at each image by
itself. So (cached gradients, Gao et al. 2021, https://arxiv.org/abs/2101.06983):

1. each micro-batch is encoded, and nothing is kept but [CLS] and the tapped features;
2. heads and losses run once on those of all images, and send gradients back to them;
3. each micro-batch is encoded again, now with a graph, which takes those gradients further.

By the chain rule that is the gradient of the undivided step; the student's forward pass is all
that is done twice. Stochastic depth is drawn for the whole batch, so both passes drop the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sercli import distributed
from sercli.encoders.batches import Batch, Encoded
from sercli.errors import UserError
from sercli.objective import Losses, Objective
from sercli.parts import step_part
from sercli.recipe.schedule import Moment
from sercli.recipe.schema import Train
from sercli.views.making import Views
from sercli.views.plan import Partition

Autocast = Callable[[], AbstractContextManager[None]]


def require_images(train: Train, part: Partition) -> None:
    """Refuse more micro-batches than a process has images.

    Raises:
        UserError: There are.
    """
    least, number = min(part.counts), train.accumulate
    if number > least:
        raise UserError(
            f"train.accumulate {number} with train.batch_size {train.batch_size} on "
            f"{len(part.counts)} process{'es' if len(part.counts) > 1 else ''}",
            f"a micro-batch needs an image, and a process has {least}",
            f"use train.accumulate={least} or less",
        )


class Gradients:
    """Takes one step after the other: forward and backward, at once or in micro-batches.

    Args:
        objective: What is trained.
        accumulate: In how many micro-batches images are encoded; 1: in one go.
        autocast: Makes the context of forward passes.
    """

    def __init__(self, objective: Objective, *, accumulate: int, autocast: Autocast) -> None:
        self.objective, self.accumulate, self.autocast = objective, accumulate, autocast
        self.module: nn.Module = objective
        if distributed.active() and accumulate == 1:
            self.module = distributed.data_parallel(objective, gradient_as_bucket_view=True)

    def __call__(self, views: Views, moment: Moment) -> Losses:
        """The losses of a step; its gradients, averaged over ranks, are left at the parameters."""
        if self.accumulate > 1:
            return self._in_micro_batches(views, moment)
        # The buckets of several processes stay where they are.
        self.objective.zero_grad(set_to_none=not distributed.active())
        with self.autocast():
            losses: Losses = self.module(views, moment)
        with step_part("backward"):
            torch.autograd.backward(losses.total)
        return losses

    def _in_micro_batches(self, views: Views, moment: Moment) -> Losses:
        """The same numbers, but for rounding, in the memory of a micro-batch.

        Gradients are averaged once, at the end, and not by DDP: its hooks expect every parameter
        in each backward pass that they see.
        """
        objective = self.objective
        objective.zero_grad()
        parts = list(objective.batch(views).micro_batches(self.accumulate))
        with torch.no_grad(), self.autocast():
            leaves = Encoded.joined([self.encoded(part) for part in parts])
            taught = [one for part in parts if (one := self.taught(part))]
            teacher = Encoded.joined(taught) if taught else None
        leaves = leaves.map(lambda tensor: tensor.requires_grad_())
        with self.autocast():
            losses = objective.losses(leaves, teacher, views, moment)
        with step_part("backward"):
            torch.autograd.backward(losses.total)
        gradients = [leaf.grad for leaf in leaves.tensors()]
        del taught, leaves, teacher
        self.send_back(parts, gradients)
        distributed.average_gradients(
            [parameter for parameter in objective.parameters() if parameter.requires_grad]
        )
        return losses

    def encoded(self, part: Batch) -> Encoded:
        """What the losses look at of a micro-batch, without a graph."""
        return _kept(self.objective.encode_student(part))

    def taught(self, part: Batch) -> Encoded | None:
        """Likewise of the teacher."""
        encoded = self.objective.encode_teacher(part)
        return None if encoded is None else _kept(encoded)

    def send_back(self, parts: Sequence[Batch], gradients: Sequence[Tensor | None]) -> None:
        """Encode micro-batches again, and take gradients of what comes out further.

        Args:
            parts: All micro-batches.
            gradients: Of each tensor of `Encoded` (None: it has none), for all images.
        """
        starts = [0] * len(gradients)
        for part in parts:
            # A context of its own: it keeps casts of weights, which belong to one graph.
            with self.autocast():
                again = list(self.objective.encode_student(part, trained_only=True).tensors())
            outputs, sent = [], []
            for index, output in enumerate(again):
                gradient, start = gradients[index], starts[index]
                starts[index] = start + len(output)
                if gradient is not None:
                    outputs.append(output)
                    sent.append(gradient[start : starts[index]])
            del again
            with step_part("backward"):
                torch.autograd.backward(outputs, sent)


def _kept(encoded: Encoded) -> Encoded:
    """The same, in memory of its own: what is tapped is part of all tokens of a pass."""
    return encoded.map(torch.clone)

"""The objective of DINO: its head, its centre and its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sercli import distributed
from sercli.heads import PrototypeHead
from sercli.losses import dino_cross_entropy
from sercli.methods.base import Method, MethodInput
from sercli.methods.dino import DINOConfig
from sercli.recipe.schedule import Moment, cosine


class DINO(Method):
    """Cross entropy between the teacher's centred, sharpened distribution over K prototypes and
    the student's, for every pair of different views of which the teacher's is global.

    L = mean over pairs of −Σ_k softmax((t − c)/τ_t)_k · log softmax(s/τ_s)_k, where the centre c is
    a running mean of the teacher's logits t over the global batch.
    """

    Config = DINOConfig
    uses_teacher = True
    evaluates_teacher = True
    needs_images = (2, "the centre of one image's logits is itself")
    center: Tensor

    def __init__(self, config: DINOConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = PrototypeHead(
            dim,
            hidden=config.hidden_width,
            bottleneck=config.bottleneck_width,
            prototypes=config.prototypes,
            norm_last_layer=config.norm_last_layer,
            init_std=config.init_std,
        )
        self.register_buffer("center", torch.zeros(config.prototypes))

    def shared_head(self) -> nn.Module:
        return self.head

    def student(self, cls: Tensor) -> Tensor:
        logits: Tensor = self.head(cls)
        return logits

    def loss(self, given: MethodInput) -> Tensor:
        temperature = self.teacher_temperature_at(given.moment.epoch)
        wide = [t.to(self.center.dtype) for t in given.teachers]
        targets = [((t - self.center) / temperature).softmax(dim=1) for t in wide]
        loss = dino_cross_entropy(
            given.students, targets, temperature=self.config.student_temperature
        )
        if self.training and torch.is_grad_enabled():
            self._move_center(wide, given.counts)
        return loss * distributed.share_of(given.counts)

    @torch.no_grad()
    def _move_center(self, logits: Sequence[Tensor], counts: Sequence[int]) -> None:
        """c ← m · c + (1 − m) · mean over views and the global batch, if finite."""
        total = distributed.sum_over_ranks(torch.stack([t.sum(0) for t in logits]).sum(0))
        mean = total / (len(logits) * sum(counts))
        moved = torch.lerp(mean, self.center, self.config.center_momentum)
        self.center.copy_(torch.where(torch.isfinite(moved).all(), moved, self.center))

    def teacher_temperature_at(self, epoch: float) -> float:
        """Constant within an epoch: W equally spaced values, then the last of them."""
        c = self.config
        first, last = c.first_teacher_temperature, c.teacher_temperature
        whole = math.floor(epoch)
        if whole >= c.temperature_epochs:
            return last
        return first + min(1.0, whole / max(1.0, c.temperature_epochs - 1)) * (last - first)

    def momentum_at(self, progress: float) -> float:
        return cosine(self.config.momentum, 1.0, progress)

    def held_parameters(self, moment: Moment) -> Sequence[nn.Parameter]:
        if moment.epoch >= self.config.frozen_epochs:
            return ()
        lengths = self.head.lengths
        return [self.head.prototypes, *([] if lengths is None else [lengths])]

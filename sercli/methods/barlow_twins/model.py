"""The objective of Barlow Twins: its projector and its loss."""

from __future__ import annotations

from torch import Tensor, nn

from sercli import distributed
from sercli.heads import BatchNorm, mlp
from sercli.losses import barlow_twins, cross_correlation
from sercli.methods.barlow_twins import BarlowTwinsConfig
from sercli.methods.base import Method, MethodInput


class BarlowTwins(Method):
    """The cross-correlation C of two views' normalised embeddings shall be the identity.

    L = Σ_i (1 − C_ii)² + λ_off Σ_{i≠j} C_ij², C over the global batch. There is no teacher.
    """

    Config = BarlowTwinsConfig
    uses_teacher = False
    evaluates_teacher = False
    needs_images = (2, "batch norm")

    def __init__(self, config: BarlowTwinsConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        hidden, out = config.hidden_width, config.output_width
        self.projector = mlp([dim, hidden, hidden, out], last_norm=False)
        self.norm = BatchNorm(out, affine=False)

    def shared_head(self) -> nn.Module:
        return self.projector

    def student(self, cls: Tensor) -> Tensor:
        embedding: Tensor = self.norm(self.projector(cls))
        return embedding

    def loss(self, given: MethodInput) -> Tensor:
        first, second = given.students
        total = distributed.sum_over_ranks(cross_correlation(first, second))
        return barlow_twins(total / sum(given.counts), off_diagonal=self.config.off_diagonal)

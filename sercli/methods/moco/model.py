"""The objective of MoCo-v3: its projector, its predictor and its loss."""

from __future__ import annotations

from torch import Tensor, nn

from sercli import distributed
from sercli.heads import mlp
from sercli.losses import info_nce
from sercli.methods.base import Method, MethodInput
from sercli.methods.moco import MoCoConfig
from sercli.recipe.schedule import cosine


class MoCo(Method):
    """InfoNCE between predictions q of one view and teacher projections k of another.

    L = ctr(q₁, k₂) + ctr(q₂, k₁), ctr = 2τ · cross entropy of cosine/τ over the global batch. With
    multi-crop there are V queries and the keys of the two global views: L is twice the mean of the
    2V − 2 terms, so that λ means the same in every setting.
    """

    Config = MoCoConfig
    uses_teacher = True
    teacher_moves = "before"
    evaluates_teacher = False
    needs_images = (2, "batch norm and negatives")

    def __init__(self, config: MoCoConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        hidden, out = config.hidden_width, config.output_width
        self.projector = mlp([dim, hidden, hidden, out], last_norm=True)
        self.predictor = mlp([out, hidden, out], last_norm=True)

    def shared_head(self) -> nn.Module:
        return self.projector

    def student(self, cls: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(cls))
        return prediction

    def loss(self, given: MethodInput) -> Tensor:
        gathered = [distributed.gather_rows(keys, given.counts) for keys in given.teachers]
        loss = given.students[0].new_zeros(())
        terms = 0
        for view, queries in enumerate(given.students):
            for other, keys in enumerate(gathered):
                if other != view:
                    terms += 1
                    loss = loss + info_nce(
                        queries,
                        keys,
                        temperature=self.config.temperature,
                        query_offset=distributed.offset_of(given.counts),
                    )
        return loss * (2 / terms * distributed.share_of(given.counts))

    def momentum_at(self, progress: float) -> float:
        return cosine(self.config.momentum, 1.0, progress)

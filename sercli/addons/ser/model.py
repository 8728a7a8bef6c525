"""SER: soft equivariance on an intermediate layer's token grid (ICLR 2026).

The tokens of one view, moved by ρ_g to the frame of the other, are the keys of the other view's
tokens in a patch-wise NT-Xent loss. Unlike in the authors' published code, gradient reaches the
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sercli import distributed, randomness
from sercli.actions import SENT, GeometricAction, moving, transport
from sercli.addons.base import Addon, AddonInput
from sercli.addons.ser import SERConfig
from sercli.heads import TokenProjector
from sercli.losses import patch_nt_xent
from sercli.negatives import Negatives
from sercli.precision import at_least_fp32
from sercli.views.making import ViewRecord
from sercli.views.plan import PairedViews, ViewRequest


class SER(Addon):
    """Patch-wise NT-Xent between a view's tokens and the other view's, moved into its frame."""

    Config = SERConfig
    needs_images = (2, "an anchor's negatives are other images")

    def __init__(self, config: SERConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = TokenProjector(dim, config.projector_width)

    def view_request(self) -> ViewRequest:
        c = self.config
        return ViewRequest(
            PairedViews(
                c.fraction,
                c.share,
                c.base,
                c.elements,
                c.scale,
                c.aspect,
                min_per_rank=2 if c.keys == "rank-local" else 0,
            )
        )

    def shared_head(self) -> nn.Module:
        averaged = self.config.key_projector == "teacher"
        return self.projector if averaged else self.projector.norm

    def loss(self, given: AddonInput) -> Tensor:
        """½ Σ over both directions of the mean over all anchors of the global batch.

        With small crops there are three pairs of views; a pair's share is that of its tokens, so
        that every view's tokens weigh alike (within a pair, its two directions do).
        """
        layer, actions = self.config.layer, given.views.actions
        prepared = self.prepared(given)
        anchors = self.projector.each([features.grids[layer] for features in given.students])
        keys = self._keys(given, anchors)
        targets = self._targets(given.views)
        sizes = [math.prod(action.grid) for action in actions]
        loss: Tensor = anchors[0].new_zeros((), dtype=at_least_fp32(*anchors))
        for first, second in given.views.plan.pairs:
            share = (sizes[first] + sizes[second]) / sum(sizes)
            for view, other in ((first, second), (second, first)):
                grid = keys[other].transpose(1, 2).unflatten(2, actions[other].grid)
                moved = transport(
                    grid,
                    source=actions[other],
                    target=targets[view],
                    sent={name: prepared[f"{name} to {view}"] for name in SENT},
                )
                loss = loss + share * self._direction(
                    anchors[view],
                    moved.flatten(2).transpose(1, 2),
                    grid=actions[view].grid,
                    counts=given.counts,
                )
        return loss / 2

    def _keys(self, given: AddonInput, anchors: list[Tensor]) -> list[Tensor]:
        """The teacher's projected tokens of each view; without a teacher, the anchors."""
        head = given.teacher_head
        if given.teachers is None or head is None:
            return anchors
        grids = [features.grids[self.config.layer] for features in given.teachers]
        if self.config.key_projector == "student":  # the only part of keys that carries gradient
            return self.projector.each(grids, norm=head)
        assert isinstance(head, TokenProjector)
        with torch.no_grad():
            return head.each(grids)

    def _direction(
        self, anchors: Tensor, keys: Tensor, *, grid: tuple[int, int], counts: Sequence[int]
    ) -> Tensor:
        both_views = Negatives.parse(self.config.negatives).own_view
        own_view = anchors if both_views else None
        offset = 0
        if self.config.keys == "gathered":
            offset = distributed.offset_of(counts)
            keys = distributed.gather_rows(keys, counts)
            if own_view is not None:
                own_view = distributed.gather_rows(own_view, counts)
        mean = patch_nt_xent(
            anchors,
            keys,
            temperature=self.config.temperature,
            negatives=self.config.negatives,
            grid=grid,
            anchor_offset=offset,
            own_view=own_view,
        )
        return mean * distributed.share_of(counts)

    def prepare(self, record: ViewRecord) -> Mapping[str, Tensor]:
        """What moves the tokens of each view's partner to its frame."""
        targets = self._targets(record)
        found: dict[str, Tensor] = {}
        for first, second in record.plan.pairs:
            for view, other in ((first, second), (second, first)):
                move = moving(record.actions[other], targets[view])
                found |= {f"{name} to {view}": t for name, t in move.to_send().items()}
        return found

    def _targets(self, record: ViewRecord) -> tuple[GeometricAction, ...]:
        """The frames that keys are moved to: the anchors' own, or, as a placebo, wrong ones."""
        actions = record.actions
        if self.config.action == "analytic":
            return actions
        total = record.part.total_paired
        draws = randomness.generator(record.generator_seed, "placebo")
        wrong = []
        for action in actions:
            # One of the seven other elements of D4: composing with it never gives the right frame.
            code = torch.randint(1, 8, (total,), generator=draws)[record.part.paired_rows]
            error = GeometricAction(code >= 4, code % 4, action.grid)
            wrong.append(error.compose(action))
        return tuple(wrong)

"""An add-on on the token grid: each token foretells the other view's, moved to its own place."""

from typing import ClassVar

from torch import nn
from torch.nn.functional import cosine_similarity

from sercli.actions import transport
from sercli.addons import Addon, PairedViews, TermConfig, ViewRequest, share_of
from sercli.recipe import Share, ViewSetting


class GridConfig(TermConfig):
    view_settings: ClassVar[tuple[ViewSetting, ...]] = ("2",)

    name: str = "toy-grid"
    fraction: Share = 0.25


class Grid(Addon):
    Config = GridConfig
    needs_images = (8, "a quarter of them are b₂, at least two")

    def __init__(self, config, dim):
        super().__init__()
        self.config = config
        self.predictor = nn.Conv2d(dim, dim, 1)

    def view_request(self):
        return ViewRequest(PairedViews(self.config.fraction, min_per_rank=1))

    def loss(self, given):
        layer, actions = self.config.layer, given.views.actions
        students = [features.grids[layer] for features in given.students]  # [n₂, D, h, w] each
        targets = [f.grids[layer].detach() for f in given.teachers or given.students]
        loss = 0.0
        for view, other in ((0, 1), (1, 0)):
            target = transport(targets[other], source=actions[other], target=actions[view])
            predicted = self.predictor(students[view])
            loss = loss - cosine_similarity(predicted, target, dim=1).mean() / 2
        return loss * share_of(given.counts)

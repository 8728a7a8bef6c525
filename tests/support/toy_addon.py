"""An add-on in one file: what is tapped of two views tells whether they are mirrored alike."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from sercli.addons import Addon, SummaryConfig, Tap, mlp, share_of
from sercli.recipe import Count


class ToyConfig(SummaryConfig):
    name: str = "toy"
    width: Count = 64


class Toy(Addon):
    Config = ToyConfig
    needs_images = (2, "batch norm")

    def __init__(self, config, dim):
        super().__init__()
        self.tap = Tap(config, dim)
        self.head = mlp([2 * dim, config.width, 1], last_norm=False, last_bias=True)

    def prepare(self, record):
        first, second = record.parameters[:2]
        return {"alike": (first.hflip == second.hflip).float()}

    def loss(self, given):
        vectors = torch.cat([self.tap(features) for features in given.students[:2]], dim=1)
        logits = self.head(vectors).squeeze(1)
        alike = self.prepared(given)["alike"].to(logits)
        return binary_cross_entropy_with_logits(logits, alike) * share_of(given.counts)

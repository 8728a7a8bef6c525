"""E-SSL: the four-way classifier and its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sercli import distributed
from sercli.addons.base import Addon, AddonInput, Tap
from sercli.addons.essl import ESSLConfig
from sercli.heads import LayerNorm
from sercli.precision import widened
from sercli.views.plan import ViewRequest


class ESSL(Addon):
    """Cross entropy of a four-way classifier on one crop in all four quarter turns."""

    Config = ESSLConfig
    needs_images = (1, "something has to be turned")

    def __init__(self, config: ESSLConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.tap = Tap(config, dim)
        self.head = nn.Sequential(
            nn.Linear(dim, dim),
            LayerNorm(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, config.hidden_width),
            LayerNorm(config.hidden_width),
            nn.Linear(config.hidden_width, 4),
        )

    def view_request(self) -> ViewRequest:
        return ViewRequest(turned_views_count=self.config.more_views is not None)

    def loss(self, given: AddonInput) -> Tensor:
        turned = given.students[2:]
        logits = torch.cat([self.head(self.tap(features)) for features in turned])
        labels = torch.arange(len(turned), device=logits.device)
        targets = labels.repeat_interleave(len(logits) // len(turned))
        loss = F.cross_entropy(widened(logits), targets)
        return loss * distributed.share_of(given.counts)

"""E-SSL: predict by which quarter a small crop was turned (Dangovski et al., "Equivariant
Self-Supervised Learning: Encouraging Equivariance in Representations", ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sercli import distributed
from sercli.addons.base import Addon, AddonInput, SummaryConfig, Tap
from sercli.heads import LayerNorm
from sercli.precision import widened
from sercli.recipe.schema import Count, Setting
from sercli.views.plan import ViewRequest

# λ by method: of the port to MoCo-v3, also taken for DINO; Barlow Twins' is the authors'.
_WEIGHTS = {"moco": 1.0, "dino": 1.0, "barlow-twins": 8.0}


class ESSLConfig(SummaryConfig):
    """Settings of E-SSL."""

    view_settings: ClassVar[tuple[Setting, ...]] = ("2+4-rotations",)

    form: Literal["predict", "predict-and-views"] = Field(
        "predict", description="whether the four turned crops also enter the invariance loss"
    )
    hidden_width: Count = Field(256, description="of the head's last hidden layer")

    @property
    def adds_views(self) -> bool:
        return self.form == "predict-and-views"

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        if "weight" in given or method not in _WEIGHTS:
            return {}
        return {"weight": _WEIGHTS[method]}


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
        return ViewRequest(turned_views_count=self.config.adds_views)

    def loss(self, given: AddonInput) -> Tensor:
        turned = given.students[2:]
        logits = torch.cat([self.head(self.tap(features)) for features in turned])
        labels = torch.arange(len(turned), device=logits.device)
        targets = labels.repeat_interleave(len(logits) // len(turned))
        loss = F.cross_entropy(widened(logits), targets)
        return loss * distributed.share_of(given.counts)

"""EquiMod: the predictor of embeddings, what it is told of a view, and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sercli.addons.base import Addon, AddonInput, Tap, contrast
from sercli.addons.equimod import EquiModConfig
from sercli.heads import BatchNorm, mlp
from sercli.views.making import ViewParameters, ViewRecord


class EquiMod(Addon):
    """NT-Xent between the embeddings e_t of the two views and what is predicted of them.

    ê_t = u(e₀, a(t)): e₀ is the embedding of the plain image, a(t) that of the recorded
    augmentation parameters, u one linear layer. Other rows of e and ê are negatives.
    """

    Config = EquiModConfig
    needs_images = (2, "batch norm and negatives")

    def __init__(self, config: EquiModConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        hidden, out = config.hidden_width or dim, config.output_width
        self.tap = Tap(config, dim)
        self.projector = mlp([dim, hidden, hidden, out], last_norm=True)
        self.standardise = BatchNorm(NUM_PARAMETERS, affine=False)
        self.parameters_projector = mlp([NUM_PARAMETERS, out], last_norm=True)
        self.predictor = mlp([2 * out, out], last_norm=True)

    def prepare(self, record: ViewRecord) -> Mapping[str, Tensor]:
        """What made the two views, as numbers."""
        vectors = torch.cat([parameter_vectors(p) for p in record.parameters[:2]])
        return {"parameters": vectors}

    def loss(self, given: AddonInput) -> Tensor:
        first, second, plain = (self.tap(features) for features in given.students)
        views = len(first) + len(second)
        embedded = self.projector(torch.cat([first, second, plain]))
        real, source = embedded[:views], embedded[views:]
        vectors = self.standardise(self.prepared(given)["parameters"].to(real.dtype))
        augmentation = self.parameters_projector(vectors)
        predicted = self.predictor(torch.cat([source.repeat(2, 1), augmentation], dim=1))
        counts = [2 * n for n in given.counts]
        return contrast(real, predicted, counts, temperature=self.config.temperature)


NUM_PARAMETERS = 20


def parameter_vectors(parameters: ViewParameters) -> Tensor:
    """What made a view, as numbers: [B, 20], not standardised.

    Crop (4), mirrored, turn (cosine and sine: 1 and 0 unless views.rot90_p is set), jittered, its
    order (4) and factors (4), grey, blurred, sigma, solarised. What was not applied has the value
    that changes nothing, and the order 0, 1, 2, 3.
    """
    colours = parameters.colours
    angle = parameters.rot90 * (math.pi / 2)
    order = torch.where(colours.jitter[:, None], colours.order, torch.arange(4))
    columns = [
        parameters.box,
        parameters.hflip[:, None],
        torch.stack([angle.cos(), angle.sin()], dim=1),
        colours.jitter[:, None],
        order,
        colours.applied_factors,
        colours.grey[:, None],
        (colours.blur_sigma > 0)[:, None],
        colours.blur_sigma[:, None],
        colours.solarise[:, None],
    ]
    return torch.cat([column.float() for column in columns], dim=1)

"""STL: the hypernetwork of transformations and the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sercli.addons.base import Addon, AddonInput, Tap, contrast
from sercli.addons.stl import STLConfig
from sercli.heads import BatchNorm, mlp
from sercli.views.plan import ViewRequest


class STL(Addon):
    """Images 2i and 2i+1 go through the same two augmentations.

    t = φ(y, y′) represents what leads from view y to view y′, and a hypernetwork turns it into a
    linear map W(t) of D×D. What an image's *partner* says of the transformation must carry the
    image's first view to its second, ŷ′ = W(t of the partner) y, and partners must say the same:

        L = NT-Xent(g(y′), g(ŷ′)) + w · NT-Xent(h(t of 2i), h(t of 2i+1)), in both directions of t.
    """

    Config = STLConfig
    needs_images = (4, "two pairs of images, as one pair has no negatives")

    def __init__(self, config: STLConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        width, hidden, out = config.transformation_width, config.hidden_width, config.output_width
        self.tap = Tap(config, dim)
        self.transformation = nn.Sequential(
            nn.Linear(2 * dim, width, bias=False),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
        )
        self.hypernetwork = nn.Linear(width, dim * dim, bias=False)
        self.projector = mlp([dim, hidden, out], last_norm=False)
        self.transformation_projector = mlp([width, width, out], last_norm=False)

    def view_request(self) -> ViewRequest:
        return ViewRequest(group=2)

    def loss(self, given: AddonInput) -> Tensor:
        first, second = (self.tap(features) for features in given.students[:2])
        forth = self.transformation(torch.cat([first, second], dim=1))
        back = self.transformation(torch.cat([second, first], dim=1))
        carried_second = self.carry(first, _partners(forth))
        carried_first = self.carry(second, _partners(back))
        real = [self.projector(y) for y in (first, second)]
        carried = [self.projector(y) for y in (carried_first, carried_second)]
        twice = [2 * n for n in given.counts]
        tau = self.config.temperature
        equivariance = contrast(torch.cat(real), torch.cat(carried), twice, temperature=tau)
        said = [self.transformation_projector(t) for t in (forth, back)]
        even, odd = (torch.cat([t[start::2] for t in said]) for start in (0, 1))
        transformation = contrast(even, odd, given.counts, temperature=tau)
        return equivariance + self.config.transformation_weight * transformation

    def carry(self, vectors: Tensor, transformations: Tensor) -> Tensor:
        """W(t) y for each image: [B, D], [B, T] → [B, D].

        W(t) is linear in t, so W(t) y = Σ_k t_k (H_k y) needs no D×D matrix for each image.
        """
        dim, width = vectors.shape[1], transformations.shape[1]
        maps = self.hypernetwork.weight.view(dim, dim, width).permute(1, 2, 0).flatten(1)
        moved = (vectors @ maps).view(len(vectors), width, dim)
        carried: Tensor = (transformations[:, None] @ moved)[:, 0]
        return carried


def _partners(rows: Tensor) -> Tensor:
    """Rows 2i and 2i+1 exchanged."""
    swapped: Tensor = rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return swapped

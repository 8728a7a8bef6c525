"""The patch embedding, over views of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from sercli.encoders.tokens import joined
from sercli.precision import of_products


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map.

    In training views of all sizes go at once, where a convolution would go size by size. In
    evaluation, of one size, they are convolved, as everybody does it: features of others' encoders
    are then theirs to the last bit.
    """

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """[n, 3, H, W] of each view → [T, D]: patches row by row, image after image."""
        if not self.training and len({view.shape[2:] for view in views}) == 1:
            embedded: Tensor = self.proj(joined(views))
            return embedded.flatten(2).transpose(1, 2).flatten(0, 1)
        side = self.proj.kernel_size[0]
        patches = joined([_patches(view, side) for view in views])
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def has_square_patches(embedding: nn.Module) -> bool:
    """Whether timm's patch embedding is what `PatchEmbedding` computes."""
    if type(embedding) is not PatchEmbed or not isinstance(embedding.norm, nn.Identity):
        return False  # of a hybrid, say, which has a convolutional network in front
    proj: Any = embedding.proj
    height, width = proj.kernel_size
    return height == width and tuple(proj.stride) == (height, width)


def _patches(images: Tensor, side: int) -> Tensor:
    """[n, 3, H, W] → [n·h·w, 3·side²], in the dtype that they are multiplied in: one copy."""
    height, width = (size // side for size in images.shape[2:])
    cells: Tensor = images.unflatten(3, (width, side)).unflatten(2, (height, side))
    cells = cells.permute(0, 2, 4, 1, 3, 5)
    cells = cells.to(of_products(images), memory_format=torch.contiguous_format)
    return cells.flatten(3).flatten(0, 2)

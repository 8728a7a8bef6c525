"""Positional embeddings: MoCo-v3's fixed one, and any one on another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.recipe.schema import PosResize


def resampled(
    positions: Tensor, native: tuple[int, int], grid: tuple[int, int], *, way: PosResize
) -> Tensor:
    """A positional embedding on another grid, bicubically resampled if it is another.

    On a grid of n patches a side, from m:

    - "bicubic": to the exact size (MAE, DeiT; ours unless a recipe says otherwise);
    - "bicubic-antialias": the same, antialiased (timm, lightly, DINOv2 with registers);
    - "bicubic-offset": by the factor (n + 0.1) / m, which rounds down to n patches, but whose
      samples lie a little closer than n in m (DINO, DINOv2, the SER authors);
    - "bicubic-aligned": corners stay on corners (torchvision).

    Args:
        positions: [1, m·m', D], row by row.
        native: (h, w) that they were made for.
        grid: (h, w) wanted.
        way: One of these four.

    Returns:
        [1, h·w, D]; `positions` itself where the grid is the same.
    """
    if grid == native:
        return positions
    tokens = positions.transpose(1, 2).unflatten(2, native)
    if way == "bicubic-offset":
        height, width = ((n + 0.1) / m for n, m in zip(grid, native, strict=True))
        resized = F.interpolate(tokens, scale_factor=(height, width), mode="bicubic")
    else:
        resized = F.interpolate(
            tokens,
            size=grid,
            mode="bicubic",
            align_corners=way == "bicubic-aligned",
            antialias=way == "bicubic-antialias",
        )
    assert resized.shape[-2:] == grid
    return resized.flatten(2).transpose(1, 2)


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """The fixed 2-D sine-cosine embedding of MoCo-v3, [1, h·w, D]: sin y, cos y, sin x, cos x.

    Its code names the two the other way round, but its tokens run row by row.
    """
    omega = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    y, x = (place.flatten()[:, None] * omega for place in (rows, columns))
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)[None].float()

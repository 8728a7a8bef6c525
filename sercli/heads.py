"""MLP heads and their batch norm, whose statistics are those of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sercli import distributed
from sercli.precision import widened
from sercli.randomness import truncated_normal_


class BatchNorm(nn.Module):
    """Batch norm over features [B, D], with statistics over the rows of all ranks.

    Ranks may hold different numbers of rows (none too). The mean is found first and the squares
    are summed around it, so that nothing cancels, in float32 at least. It is one mechanism for
    CPU and CUDA: `torch.nn.SyncBatchNorm` refuses CPU tensors and empty shares. Heads are used in
    training only, so no running statistics are kept.

    Args:
        dim: Width D.
        affine: Learn a scale and a shift.
    """

    def __init__(self, dim: int, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, rows: Tensor) -> Tensor:
        wide = widened(rows)
        if not distributed.active():
            return F.batch_norm(
                wide, None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        packed = distributed.sum_over_ranks(
            torch.cat([wide.sum(0), wide.new_full((1,), len(wide))])
        )
        count = packed[-1].detach()
        centred = wide - packed[:-1] / count
        variance = distributed.sum_over_ranks(centred.square().sum(0)) / count
        normalised = centred * torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return normalised
        return normalised * self.weight + self.bias


class LayerNorm(nn.LayerNorm):
    """torch's, in float32 at least: a linear map in front of it may be in bfloat16."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(widened(rows))


def mlp(
    widths: Sequence[int],
    *,
    last_norm: bool,
    norm: Callable[[int], nn.Module] = BatchNorm,
    last_bias: bool = False,
) -> nn.Sequential:
    """Linear layers without bias, each but the last followed by a norm and ReLU.

    Args:
        widths: Input, hidden…, output width.
        last_norm: End with a batch norm without affine parameters, as in SimCLR and MoCo-v3.
        norm: Makes the norm after each hidden layer from its width.
        last_bias: Give the last layer a bias.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after, bias=last_bias and index == last))
        if index < last:
            layers += [norm(after), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(BatchNorm(after, affine=False))
    return nn.Sequential(*layers)


class PrototypeHead(nn.Module):
    """DINO's head: a 3-layer MLP with GELU, L2 norm, then cosines with prototypes.

    Args:
        dim: Width D of the input.
        hidden: Width of the MLP.
        bottleneck: Width in which cosines are taken.
        prototypes: Number K of prototypes.
        norm_last_layer: Keep the prototypes at length 1; otherwise each learns its length (weight
            norm's g, [K, 1]).
        init_std: Of the MLP's weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        norm_last_layer: bool,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                truncated_normal_(module.weight, std=init_std)
                nn.init.zeros_(module.bias)
        # As any linear layer's weights: their length (0.58) sets how fast steps of a given size
        # turn them, whatever `lengths` says.
        limit = bottleneck**-0.5
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck).uniform_(-limit, limit))
        self.lengths = None if norm_last_layer else nn.Parameter(torch.ones(prototypes, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """[B, D] → logits [B, K]."""
        unit = F.normalize(widened(self.mlp(rows)), dim=1)
        prototypes = F.normalize(self.prototypes, dim=1)
        if self.lengths is not None:
            prototypes = prototypes * self.lengths
        return F.linear(unit, prototypes)


class TokenProjector(nn.Module):
    """LayerNorm of the tapped tokens, then a 1×1 convolution D→width, GELU, width→width, no bias.

    A 1×1 convolution on a grid is a linear map of its tokens, which is how it is computed.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, grid: Tensor, *, norm: nn.Module | None = None) -> Tensor:
        """[B, D, h, w] → [B, h·w, width]; `norm` takes the place of its own LayerNorm."""
        return self.each([grid], norm=norm)[0]

    def each(self, grids: Sequence[Tensor], *, norm: nn.Module | None = None) -> list[Tensor]:
        """The same of several grids of any sizes, at once."""
        tokens = [grid.flatten(2).transpose(1, 2) for grid in grids]
        shapes = [one.shape[:2] for one in tokens]
        together = torch.cat([one.flatten(0, 1) for one in tokens])
        normed = self.norm(together) if norm is None else norm(together)
        projected = self.project(F.gelu(self.expand(normed)))
        parts = projected.split([batch * length for batch, length in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

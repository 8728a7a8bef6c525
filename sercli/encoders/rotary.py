"""Rotary positions (RoPE): queries and keys of a patch are turned by where it lies."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sercli.encoders.tokens import Layout, joined

Kind = Literal["dinov3", "eva02"]
Pairs = Literal["halves", "neighbours"]

# Which two numbers of a head are turned together: i and i + d/2, or 2i and 2i + 1.
PAIRS: dict[Kind, Pairs] = {"dinov3": "halves", "eva02": "neighbours"}


class RotaryPositions(nn.Module):
    """By which angles the pairs of numbers of a head are turned, of every token of a pass.

    A head of d numbers has d/2 pairs: the first half is turned by the row of a patch, the other by
    its column, the k-th pair of each by place / base^(4k/d). Places on a side of n patches are

    - "dinov3": 2π · (2(i + ½)/n − 1), so that a grid of any size spans the same angles;
    - "eva02": i, or i · grid/n if `grid` is given.

    What stands in front of patches ([CLS], registers) is not turned.

    Attributes:
        kind: One of these.
        base: Longest period over shortest.
        grid: Patches a side that places are scaled to ("eva02"); None: they are not.
        periods: float [d/4], base^(4k/d). A buffer, as a file may have it rounded.
    """

    periods: Tensor

    def __init__(self, kind: Kind, *, head_dim: int, base: float, grid: int | None = None) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.base, self.grid = base, grid
        number = head_dim // 4
        periods = base ** (torch.arange(number, dtype=torch.float64) / number)
        self.register_buffer("periods", periods.float())

    def _places(self, number: int) -> Tensor:
        """Of the patches on one side, [number]."""
        index = torch.arange(number, device=self.periods.device, dtype=self.periods.dtype)
        if self.kind == "dinov3":
            return 2 * math.pi * (2 * (index + 0.5) / number - 1)
        return index if self.grid is None else index / number * self.grid

    def table(self, grid: tuple[int, int]) -> Tensor:
        """Cosine and sine for the patches of a grid (h, w), row by row: [h·w, 2, d/2]."""
        rows, columns = (self._places(n)[:, None] / self.periods for n in grid)
        height, width = grid
        angles = torch.cat(
            [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1
        ).flatten(0, 1)
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    @torch.no_grad()
    def forward(self, layout: Layout) -> Tensor:
        """Cosine and sine for all tokens of a pass, [T, 2, d/2]; (1, 0) for those not turned."""
        tables = {grid: self.table(grid) for grid in dict.fromkeys(s.grid for s in layout.spans)}
        still = torch.zeros(layout.prefix, 2, 2 * len(self.periods), device=self.periods.device).to(
            self.periods.dtype
        )
        still[:, 0] = 1
        images = {grid: torch.cat([still, table]) for grid, table in tables.items()}
        return joined(
            [
                images[span.grid].expand(span.count, -1, -1, -1).flatten(0, 1)
                for span in layout.spans
            ]
        )


def turned(heads: Tensor, turns: Tensor, pairs: Pairs) -> Tensor:
    """Turn the pairs of numbers of each head: (a, b) → (a·cos − b·sin, b·cos + a·sin).

    Args:
        heads: [T, H, d], queries or keys.
        turns: [T, 2, d/2], cosine and sine.
        pairs: Which two numbers are a pair, see `PAIRS`.

    Returns:
        [T, H, d] in the dtype of the wider of both.
    """
    cosine, sine = turns[:, :1], turns[:, 1:]
    if pairs == "halves":
        first, second = heads.chunk(2, dim=-1)
    else:
        first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned_first = first * cosine - second * sine
    turned_second = second * cosine + first * sine
    if pairs == "halves":
        return torch.cat([turned_first, turned_second], dim=-1)
    return torch.stack([turned_first, turned_second], dim=-1).flatten(-2)

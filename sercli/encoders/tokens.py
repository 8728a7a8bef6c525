"""The tokens of one pass: those of all its views, of any sizes, in one flat tensor [T, D].

    view 0: image 0 [prefix, patches], image 1, …; view 1: image 0, …

What works token by token (norms, linear maps, MLP, residuals) sees [T, D] and needs no more. A
`Layout` says where which image lies, for what does not: attention, [CLS], the taps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Images of one view, which lie next to each other.

    Attributes:
        count: How many images n there are.
        grid: (h, w) of their patches.
    """

    count: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of which image lie.

    Attributes:
        spans: The views, in the order of their tokens.
        prefix: Tokens in front of the patches of each image: [CLS] and registers, once they joined.
        device: Where its tokens are.
        rotary: What says of such a layout by which angles its tokens are turned; None: by none.
    """

    spans: tuple[Span, ...]
    prefix: int
    device: torch.device
    rotary: Callable[[Layout], Tensor] | None = None

    @cached_property
    def turns(self) -> Tensor | None:
        """[T, 2, d/2], cosine and sine of each token for rotary positions; all blocks share it.

        See `rotary.RotaryPositions`.
        """
        return None if self.rotary is None else self.rotary(self)

    def length(self, span: Span) -> int:
        """Tokens N of an image."""
        return self.prefix + span.grid[0] * span.grid[1]

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(n, N) of neighbours that have the same number of tokens, whatever their view and grid.

        To attention an image is a sequence; where its patches lie is in the positions.
        """
        lengths = groupby(self.spans, key=self.length)
        return tuple((sum(s.count for s in spans), length) for length, spans in lengths)

    @property
    def num_images(self) -> int:
        return sum(span.count for span in self.spans)

    @property
    def num_tokens(self) -> int:
        return sum(count * length for count, length in self.groups)

    @property
    def longest(self) -> int:
        """Most tokens of an image."""
        return max(length for _, length in self.groups)

    @property
    def boundaries(self) -> Tensor:
        """int32 [B + 1], where each image begins; at the end T, as `varlen_attn` wants them."""
        known = all(type(count) is int for count, _ in self.groups)  # not while it is exported
        return (_boundaries if known else _boundaries.__wrapped__)(self.groups, self.device)

    @property
    def firsts(self) -> Tensor:
        """int32 [B], the first token of each image: its [CLS], once there is one."""
        return self.boundaries[:-1]

    def by_view(self, tokens: Tensor) -> list[Tensor]:
        """[T, D] → [n, N, D] of each view, without a copy.

        One split, as a slice of each would have a gradient as large as all tokens.
        """
        return self._cut(tokens, [(span.count, self.length(span)) for span in self.spans])

    def by_grid(self, tokens: Tensor) -> tuple[list[tuple[int, int]], list[Tensor]]:
        """The grids in their order, and [T, D] → [n, N, D] of neighbours of one grid."""
        grids = [
            (grid, sum(span.count for span in spans))
            for grid, spans in groupby(self.spans, key=lambda span: span.grid)
        ]
        shapes = [(count, self.prefix + grid[0] * grid[1]) for grid, count in grids]
        return [grid for grid, _ in grids], self._cut(tokens, shapes)

    def by_group(self, tokens: Tensor) -> list[Tensor]:
        """[T, …] → [n, N, …] of each group, without a copy."""
        return self._cut(tokens, self.groups)

    def _cut(self, tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        pieces = split(tokens, [count * length for count, length in shapes])
        return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def spread(self, factors: Tensor) -> Tensor:
        """What images have, for each of their tokens: [B, K, 2] → [K, 2, T]."""
        pieces = split(factors.permute(1, 2, 0), [count for count, _ in self.groups], dim=2)
        return joined(
            [
                piece[..., None].expand(-1, -1, -1, length).flatten(2)
                for piece, (_, length) in zip(pieces, self.groups, strict=True)
            ],
            dim=2,
        )

    def with_prefix(self, tokens: Tensor, prefix: Tensor) -> tuple[Tensor, Layout]:
        """Put tokens [p, D] in front of each image that has none yet; returns the new layout."""
        pieces = [
            torch.cat([prefix.expand(piece.shape[0], -1, -1), piece], dim=1).flatten(0, 1)
            for piece in self.by_group(tokens)
        ]
        return joined(pieces), replace(self, prefix=len(prefix))

    def first_views(self, number: int) -> Layout:
        """Without the views behind the first so many."""
        return replace(self, spans=self.spans[:number])


@functools.lru_cache(maxsize=64)
def _boundaries(groups: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """`Layout.boundaries`, made on the device; all blocks, and often student and teacher, share it.

    Evaluators ask within inference mode, whose tensors no later step could differentiate by.
    """
    with torch.inference_mode(mode=False):
        ends = list(accumulate(count * length for count, length in groups))
        starts = [
            torch.arange(end - count * length, end, length, device=device, dtype=torch.int32)
            for (count, length), end in zip(groups, ends, strict=True)
        ]
        return torch.cat([*starts, torch.full((1,), ends[-1], device=device, dtype=torch.int32)])


def split(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Sequence[Tensor]:
    """`torch.split` into these sizes, or the tensor itself if that is one."""
    return [tensor] if len(sizes) == 1 else torch.split(tensor, list(sizes), dim)


def joined(pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, which would copy one tensor, too."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim)

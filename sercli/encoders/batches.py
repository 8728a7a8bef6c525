"""What goes into the encoders in a step and what comes out, all of it or in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli.encoders.vit import Features


@dataclass(frozen=True)
class Batch:
    """Images to encode: for each view, those of b₁ and those of b₂.

    Attributes:
        standard: b₁, a tensor [n₁, 3, S, S] for each view.
        paired: b₂, a tensor [n₂, 3, h·patch, w·patch] for each view (none without b₂).
        keeps: Stochastic depth of b₁, [n₁, depth, 2] for each view; None: nothing is dropped.
        paired_keeps: Likewise of b₂; empty where nothing is dropped.
    """

    standard: tuple[Tensor, ...]
    paired: tuple[Tensor, ...]
    keeps: tuple[Tensor, ...] | None = None
    paired_keeps: tuple[Tensor, ...] = ()

    def micro_batches(self, number: int) -> Iterator[Batch]:
        """The same images in so many parts, one after the other.

        Each has about 1/number of all images and the same share of b₂, whose views are of other
        sizes: so all are about equally large. Which images are encoded together changes nothing,
        as no image sees another in an encoder.
        """
        first, last = len(self.standard[0]), len(self.paired[0]) if self.paired else 0
        total = first + last
        ends = [total * part // number for part in range(number + 1)]
        paired = [end * last // max(total, 1) for end in ends]
        for part in range(number):
            of_paired = slice(paired[part], paired[part + 1])
            of_standard = slice(ends[part] - paired[part], ends[part + 1] - paired[part + 1])
            yield Batch(
                _rows(self.standard, of_standard),
                _rows(self.paired, of_paired),
                None if self.keeps is None else _rows(self.keeps, of_standard),
                _rows(self.paired_keeps, of_paired),
            )


def _rows(views: Sequence[Tensor], rows: slice) -> tuple[Tensor, ...]:
    return tuple(view[rows] for view in views)


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of a batch: all that heads and losses look at.

    Attributes:
        standard: Features of b₁ for each view that enters the invariance loss; without taps if
            there is b₂, as the add-on looks at that alone.
        paired: Features of b₂ for each view.
        others: Features of the views that only the add-on looks at.
    """

    standard: tuple[Features, ...]
    paired: tuple[Features, ...] = ()
    others: tuple[Features, ...] = ()

    @classmethod
    def of(
        cls, encoded: Sequence[Features], *, num_standard: int, others: Sequence[Features] = ()
    ) -> Encoded:
        """Of the views of b₁, and behind them those of b₂."""
        standard, paired = encoded[:num_standard], encoded[num_standard:]
        if paired:
            standard = [Features(one.cls, {}, {}) for one in standard]
        return cls(tuple(standard), tuple(paired), tuple(others))

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """Of a whole batch, from its micro-batches."""

        def join(views: Sequence[Sequence[Features]]) -> tuple[Features, ...]:
            return tuple(_joined(view) for view in zip(*views, strict=True))

        return cls(
            join([part.standard for part in parts]),
            join([part.paired for part in parts]),
            join([part.others for part in parts]),
        )

    @property
    def cls(self) -> list[Tensor]:
        """[CLS] of each view of the invariance loss, [B, D], b₁ and b₂ joined."""
        if not self.paired:
            return [one.cls for one in self.standard]
        pairs = zip(self.standard, self.paired, strict=False)
        return [torch.cat([first.cls, last.cls]) for first, last in pairs]

    @property
    def features(self) -> list[Features]:
        """What the add-on looks at: features of b₂ (without b₂: of all images)."""
        return [*(self.paired or self.standard), *self.others]

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """Every tensor replaced by what the function makes of it."""

        def views(given: Sequence[Features]) -> tuple[Features, ...]:
            return tuple(
                Features(
                    function(one.cls),
                    {layer: function(grid) for layer, grid in one.grids.items()},
                    {layer: function(token) for layer, token in one.cls_tokens.items()},
                )
                for one in given
            )

        return Encoded(views(self.standard), views(self.paired), views(self.others))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor; of two that were made by the same views, in the same order."""
        for one in (*self.standard, *self.paired, *self.others):
            yield one.cls
            yield from (one.grids[layer] for layer in sorted(one.grids))
            yield from (one.cls_tokens[layer] for layer in sorted(one.cls_tokens))


def _joined(parts: Sequence[Features]) -> Features:
    first = parts[0]
    return Features(
        torch.cat([part.cls for part in parts]),
        {layer: torch.cat([part.grids[layer] for part in parts]) for layer in first.grids},
        {layer: torch.cat([p.cls_tokens[layer] for p in parts]) for layer in first.cls_tokens},
    )

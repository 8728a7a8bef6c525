"""What an encoder says of images."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What the encoder says of a batch of B images on an h×w grid.

    Attributes:
        cls: [B, D], [CLS] after the final norm (mean of the normed patch tokens where the
            architecture pools those); [B, 0] where the pass ended before the last block.
        grids: layer → [B, D, h, w], raw patch tokens after that block (0: the embedding).
        cls_tokens: layer → [B, D], raw [CLS] after that block, where it is already there.
        attention: layer → [B, H, h, w], how much [CLS] attends to each patch in that block, in
            each head; what is missing to 1 it gives to itself and to registers.
    """

    cls: Tensor
    grids: dict[int, Tensor]
    cls_tokens: dict[int, Tensor]
    attention: dict[int, Tensor] = field(default_factory=dict)

    def detach(self) -> Features:
        """The same values without gradient."""
        return Features(
            self.cls.detach(),
            {layer: grid.detach() for layer, grid in self.grids.items()},
            {layer: token.detach() for layer, token in self.cls_tokens.items()},
            {layer: weights.detach() for layer, weights in self.attention.items()},
        )

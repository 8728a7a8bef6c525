"""Our encoders in timm: a model with delayed [CLS], and writing files that timm loads.

`import sercli` registers `ser_vit` (in `timm_entry.py`), a timm VisionTransformer whose [CLS] joins
after block `cls_after`. Encoders whose [CLS] is there from the start are written for timm's own
`vit_*`, which need nothing of ser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from sercli.encoders.foreign import resampling
from sercli.encoders.vit import Encoder
from sercli.recipe.schema import PosResize


class DelayedVisionTransformer(VisionTransformer):
    """timm's ViT whose [CLS], without a position of its own, joins after block `cls_after`.

    Every pass is `Encoder.forward` on this model's modules; any image size goes, for which
    positions are resampled by `pos_resize`, see `Encoder.positions`.
    """

    def __init__(
        self,
        *arguments: Any,
        cls_after: int = 0,
        pos_resize: PosResize = "bicubic",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **{**options, "no_embed_class": True})
        usual = self.has_class_token and not self.num_reg_tokens and self.global_pool == "token"
        if not usual or not 0 <= cls_after < len(self.blocks):
            raise ValueError(
                f"ser_vit with cls_after={cls_after}, global_pool={self.global_pool!r}, "
                f"reg_tokens={self.num_reg_tokens}: it has a [CLS] token, no registers, and "
                f"cls_after in 0…{len(self.blocks) - 1}"
            )
        self.cls_after = cls_after
        self.pos_resize: PosResize = resampling(pos_resize)

    def encoder(self) -> Encoder:
        """This model's modules (not copies) as an encoder."""
        return Encoder(
            patch_embed=self.patch_embed.proj,
            blocks=list(self.blocks),
            norm=self.norm,
            pos_embed=self.pos_embed,
            cls_token=self.cls_token,
            grid=tuple(self.patch_embed.grid_size),
            patch_size=int(self.patch_embed.patch_size[0]),
            cls_after=self.cls_after,
            pos_resize=self.pos_resize,
        )

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """[B, 3, H, W] → [B, 1 + N, D]: [CLS] and patch tokens after the final norm."""
        if attn_mask is not None or is_causal:
            raise ValueError("ser_vit takes no attention mask")
        depth = len(self.blocks)
        features = self.encoder()(x, layers=(depth,))
        patches = self.norm(features.grids[depth].flatten(2).transpose(1, 2))
        return torch.cat([features.cls[:, None], patches], dim=1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **options: Any,
    ) -> Any:
        """Patch tokens after some blocks, as timm's; [CLS] of early blocks does not exist."""
        if return_prefix_tokens or any(options.values()):
            raise ValueError("ser_vit gives patch tokens only, and takes no mask")
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r}: NCHW or NLC")
        depth = len(self.blocks)
        wanted, last = feature_take_indices(depth, indices)
        final = not (intermediates_only and stop_early)
        layers = {index + 1 for index in wanted} | ({depth} if final else set())
        features = self.encoder()(x, layers=layers, until=None if final else last + 1)
        grids = []
        for index in wanted:
            grid = features.grids[index + 1]
            tokens = grid.flatten(2).transpose(1, 2)
            tokens = self.norm(tokens) if norm else tokens
            shaped = tokens.transpose(1, 2).unflatten(2, tuple(grid.shape[2:]))
            grids.append(tokens if output_fmt == "NLC" else shaped)
        if intermediates_only:
            return grids
        patches = self.norm(features.grids[depth].flatten(2).transpose(1, 2))
        return torch.cat([features.cls[:, None], patches], dim=1), grids

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: the encoder's pass does not recompute blocks."""
        if enable:
            raise ValueError("ser_vit does not recompute blocks in the backward pass")

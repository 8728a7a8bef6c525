"""Our encoder as a model of timm's: `ser_vit`, which can be all that the settings of a recipe say.

`import sercli` registers it (in `timm_entry.py`). Encoders that one of timm's own classes can be
are written for those, which need nothing of ser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from sercli.encoders.making import parts_of
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.model import Model

# What timm calls settings of ours.
_OURS = {"embed_dim": "width", "init_values": "layer_scale", "reg_tokens": "registers"}
_POOLS = {"token": "cls", "avg": "mean"}
_SIZES = {"width": 384, "depth": 12, "num_heads": 6}


class SerVit(Encoder):
    """An encoder with timm's interface; ViT-S/16 with 6 heads unless other sizes are given.

    Every pass is `Encoder.encode`; any image size goes, for which positions are resampled by
    `pos_resize`, see `Encoder.positions`. Registers are not among the tokens that it gives.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        cls_after: int = 0,
        num_classes: int = 0,
        in_chans: int = 3,
        global_pool: str | None = None,
        mlp_ratio: float | None = None,
        drop_rate: float = 0.0,
        **settings: Any,
    ) -> None:
        """A model of timm's.

        Args:
            img_size: Side of images that its positions are for, pixels.
            cls_after: Block after which [CLS] joins.
            num_classes: Outputs of a linear head; 0: features.
            in_chans: 3.
            global_pool: `token` or `avg`, for the setting `pool`.
            mlp_ratio: For the setting `mlp_width`.
            drop_rate: Dropout before the head.
            settings: Those of a recipe's model, or by timm's names.

        Raises:
            ValueError: Something that no encoder of ours is.
        """
        told = {**_SIZES, **{_OURS.get(key, key): value for key, value in settings.items()}}
        if global_pool is not None:
            told["pool"] = _POOLS.get(global_pool, global_pool)
        if mlp_ratio is not None:
            told["mlp_width"] = int(told["width"] * mlp_ratio)
        sides = {img_size} if isinstance(img_size, int) else set(img_size)
        try:
            if len(sides) != 1 or in_chans != 3:
                raise ValueError("it takes square RGB images")
            model = Model(name="vit", **told)
            if cls_after and not model.has_cls:
                raise ValueError("there is no [CLS] that could join")
            super().__init__(**parts_of(model, image_size=sides.pop(), cls_after=cls_after))
        except (UserError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"ser_vit with cls_after={cls_after}, {told}: {reason}") from error
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = self.dim
        self.global_pool = "avg" if self.pools_mean else "token"
        self.num_prefix_tokens = 0 if self.cls_token is None else 1
        self.feature_info = [
            {"module": f"blocks.{block}", "num_chs": self.dim, "reduction": self.patch_size}
            for block in range(self.depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _head(self.dim, num_classes)
        if not self.patch_embed.proj.weight.is_meta:
            self.initialise(int(torch.empty((), dtype=torch.int32).random_()))

    def encoder(self) -> Encoder:
        """This model's modules (not copies) as an encoder."""
        return Encoder(
            patch_embed=self.patch_embed.proj,
            blocks=list(self.blocks),
            norm=self.norm,
            pos_embed=self._parameters["pos_embed"],
            cls_token=self._parameters["cls_token"],
            grid=self.grid,
            patch_size=self.patch_size,
            cls_after=self.cls_after,
            reg_token=self._parameters["reg_token"],
            norm_pre=self.norm_pre,
            fc_norm=self.fc_norm,
            pools_mean=self.pools_mean,
            init=self.init,
            fixed_positions=self.fixed_positions,
            pos_resize=self.pos_resize,
            rope=self.rope,
        )

    # -- what timm's models have ------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # timm's, not ours
        """[B, 3, H, W] → [B, D], or [B, classes] with a head."""
        return self.forward_head(self.forward_features(x))

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """[B, 3, H, W] → [B, 1 + N, D]: [CLS], if there is one, and patch tokens, normed."""
        if attn_mask is not None or is_causal:
            raise ValueError("ser_vit takes no attention mask")
        return self._tokens(x, set())[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 1 + N, D] → [B, D], or [B, classes]."""
        pooled = x[:, self.num_prefix_tokens :].mean(1) if self.pools_mean else x[:, 0]
        pooled = self.head_drop(self.fc_norm(pooled))
        outputs: Tensor = pooled if pre_logits else self.head(pooled)
        return outputs

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
        wanted, last = feature_take_indices(self.depth, indices)
        layers = {index + 1 for index in wanted}
        if intermediates_only and stop_early:
            (features,) = self.encode([x], layers, until=[last + 1])
            tokens, found = None, features.grids
        else:
            tokens, found = self._tokens(x, layers)
        grids = []
        for index in wanted:
            grid = found[index + 1]
            patches = grid.flatten(2).transpose(1, 2)
            patches = self.norm(patches) if norm else patches
            shaped = patches.transpose(1, 2).unflatten(2, tuple(grid.shape[2:]))
            grids.append(patches if output_fmt == "NLC" else shaped)
        return grids if intermediates_only else (tokens, grids)

    def _tokens(self, images: Tensor, layers: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens after the last block, normed, and the grids of `layers`."""
        (features,) = self.encode([images], layers | {self.depth})
        tokens = features.grids[self.depth].flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([features.cls_tokens[self.depth][:, None], tokens], dim=1)
        return self.norm(tokens), features.grids

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another head; the pool stays."""
        if global_pool not in (None, self.global_pool):
            raise ValueError(f"ser_vit with global_pool {global_pool!r}: it is {self.global_pool}")
        self.num_classes = num_classes
        self.head = _head(self.dim, num_classes).to(self.patch_embed.proj.weight.device)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the insides of blocks again in a backward pass instead of keeping them."""
        self.checkpointing = enable


def _head(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes > 0 else nn.Identity()

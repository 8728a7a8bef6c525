"""The ViT encoder: f⁽¹⁾ on patch tokens, the delayed [CLS], f⁽²⁾. The only forward pass there is.

Parameter names are timm's (`patch_embed.proj`, `blocks.0.attn.qkv`, …), so that weights move
between the two without translation.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from sercli.actions import grid_of
from sercli.encoders.checkpointing import through
from sercli.encoders.positions import resampled, sincos
from sercli.encoders.sizes import size_of
from sercli.errors import UserError
from sercli.randomness import seeded, truncated_normal_
from sercli.recipe.schema import Initialiser, Model, PosResize


@dataclass(frozen=True)
class Features:
    """What the encoder says of a batch of B images on an h×w grid.

    Attributes:
        cls: [B, D], [CLS] after the final norm (mean of the normed patch tokens where the
            architecture pools those); [B, 0] where the pass ended before the last block.
        grids: layer → [B, D, h, w], raw patch tokens after that block (0: the embedding).
        cls_tokens: layer → [B, D], raw [CLS] after that block, where it is already there.
    """

    cls: Tensor
    grids: dict[int, Tensor]
    cls_tokens: dict[int, Tensor]

    def detach(self) -> Features:
        """The same values without gradient."""
        return Features(
            self.cls.detach(),
            {layer: grid.detach() for layer, grid in self.grids.items()},
            {layer: token.detach() for layer, token in self.cls_tokens.items()},
        )

    def rows(self, start: int, stop: int) -> Features:
        """Some of the images."""
        return Features(
            self.cls[start:stop],
            {layer: grid[start:stop] for layer, grid in self.grids.items()},
            {layer: token[start:stop] for layer, token in self.cls_tokens.items()},
        )


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.proj(images)
        return embedded


class StochasticBlock(Block):
    """timm's block, whose two branches can be dropped image by image (stochastic depth)."""

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, N, D] → [B, N, D]; `keep` [B, 2] multiplies the branches (attention, MLP)."""
        if keep is None:
            passed: Tensor = super().forward(tokens)
            return passed
        attention, perceptron = keep.to(tokens.dtype)[:, :, None, None].unbind(1)
        tokens = tokens + attention * self.ls1(self.attn(self.norm1(tokens)))
        dropped: Tensor = tokens + perceptron * self.ls2(self.mlp(self.norm2(tokens)))
        return dropped


class Encoder(nn.Module):
    """A pre-norm ViT whose [CLS] may join after any block, at any image size.

    Attributes:
        dim: Width D.
        depth: Number of transformer blocks; layers are counted 0 (embedding) to depth.
        patch_size: Side of a patch, in pixels.
        grid: (h, w) that the positional embedding was made for.
        cls_after: Block after which [CLS] joins (0: ordinary ViT; None: it never does).
        init: How weights are drawn, see `initialise`.
        pos_resize: How the positional embedding is resampled for another grid, see `positions`.
        checkpointing: Compute the insides of blocks again in a backward pass instead of keeping
            them.
    """

    cls_token: Tensor | None
    reg_token: Tensor | None
    pos_embed: Tensor

    def __init__(
        self,
        *,
        patch_embed: nn.Conv2d,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        pos_embed: nn.Parameter,
        cls_token: nn.Parameter | None,
        grid: tuple[int, int],
        patch_size: int,
        cls_after: int | None = 0,
        reg_token: nn.Parameter | None = None,
        norm_pre: nn.Module | None = None,
        fc_norm: nn.Module | None = None,
        pools_mean: bool = False,
        init: Initialiser = Initialiser.TIMM,
        fixed_positions: bool = False,
        pos_resize: PosResize = "bicubic",
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(patch_embed)
        self.register_parameter("cls_token", cls_token)
        self.register_parameter("reg_token", reg_token)
        self.pos_embed = pos_embed
        self.norm_pre = nn.Identity() if norm_pre is None else norm_pre
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.fc_norm = nn.Identity() if fc_norm is None else fc_norm
        self.dim = int(pos_embed.shape[-1])
        self.depth = len(self.blocks)
        self.grid = grid
        self.patch_size = patch_size
        self.cls_after = cls_after if cls_token is not None else None
        self.init = init
        self.fixed_positions = fixed_positions
        self.pos_resize: PosResize = pos_resize
        self.pools_mean = pools_mean or cls_token is None
        self.checkpointing = False

    # -- construction -------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Model, *, image_size: int, cls_after: int = 0) -> Encoder:
        """Build the recipe's ViT (weights not yet drawn: see `initialise`).

        Raises:
            UserError: Unknown name, or sizes that do not fit.
        """
        size = size_of(model)
        width, depth, heads = size.width, size.depth, size.num_heads
        grid = grid_of((image_size, image_size), model.patch_size)
        if not 0 <= cls_after < depth:
            raise UserError(
                f"model.cls_after {cls_after}", f"it must be in 0…{depth - 1} ({depth} blocks)"
            )
        return cls(
            patch_embed=nn.Conv2d(3, width, model.patch_size, stride=model.patch_size),
            blocks=[
                StochasticBlock(width, heads, qkv_bias=True, norm_layer=_norm) for _ in range(depth)
            ],
            norm=_norm(width),
            pos_embed=nn.Parameter(torch.zeros(1, grid[0] * grid[1], width)),
            cls_token=nn.Parameter(torch.zeros(1, 1, width)),
            grid=grid,
            patch_size=model.patch_size,
            cls_after=cls_after,
            init=model.init,
            fixed_positions=model.pos_embed == "sincos",
            pos_resize=model.pos_resize,
        )

    @classmethod
    def from_timm(cls, vit: Any) -> Encoder:
        """Take over the modules of a timm ViT; outputs are equal to timm's.

        Raises:
            UserError: Not a plain timm `VisionTransformer`.
        """
        plain = (
            type(vit) is VisionTransformer
            and vit.pos_embed is not None
            and vit.attn_pool is None
            and vit.global_pool in ("", "token", "avg")
            and not (vit.global_pool == "avg" and vit.pool_include_prefix)
            and isinstance(vit.patch_embed.norm, nn.Identity)
        )
        if not plain:
            raise UserError(
                f"the model is a {type(vit).__name__} of a kind ser cannot read",
                "a plain timm VisionTransformer with absolute positions is needed",
            )
        position = vit.pos_embed.detach().clone()
        cls_token, reg_token = vit.cls_token, vit.reg_token
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        if prefix:  # positions of [CLS] and registers are constants: fold them into the tokens
            parts = position[:, :prefix]
            first = 0 if cls_token is None else 1
            if cls_token is not None:
                cls_token = nn.Parameter(cls_token.detach() + parts[:, :1])
            if reg_token is not None:
                reg_token = nn.Parameter(reg_token.detach() + parts[:, first:])
        return cls(
            patch_embed=vit.patch_embed.proj,
            blocks=list(vit.blocks),
            norm=vit.norm,
            pos_embed=nn.Parameter(position[:, prefix:]),
            cls_token=cls_token,
            grid=tuple(vit.patch_embed.grid_size),
            patch_size=int(vit.patch_embed.patch_size[0]),
            reg_token=reg_token,
            norm_pre=vit.norm_pre,
            fc_norm=vit.fc_norm,
            pools_mean=vit.global_pool == "avg",
            pos_resize="bicubic-antialias",  # timm's own, where `dynamic_img_size` is asked for
        )

    def initialise(self, seed: int) -> Encoder:
        """Draw all weights from `seed`, alike on every machine and rank.

        Linear layers are normal with std 0.02 (`init` TIMM and DINO) or Xavier uniform (MOCO_V3,
        SER_MOCO), the patch embedding is as any convolution's, or Xavier uniform (MOCO_V3), [CLS]
        is normal with std 1e-6, or 0.02 (DINO); the positions are normal with std 0.02, or
        MoCo-v3's fixed sines and cosines. SER_MOCO is what the SER authors' MoCo does, DINO their
        DINO and Barlow Twins.
        """
        with seeded(seed, "encoder"), torch.no_grad():
            for name, module in self.named_modules():
                _initialise_module(module, self.init, parts=3 if name.endswith(".qkv") else 1)
            if self.init is Initialiser.MOCO_V3:
                projection = self.patch_embed.proj
                limit = math.sqrt(6 / (projection.weight[0].numel() + projection.weight.shape[0]))
                projection.weight.uniform_(-limit, limit)
                if projection.bias is not None:
                    projection.bias.zero_()
            for token in (self.cls_token, self.reg_token):
                if token is not None and self.init is Initialiser.DINO:
                    truncated_normal_(token, std=0.02)
                elif token is not None:
                    token.normal_(std=1e-6)
            if self.fixed_positions:
                self.pos_embed.copy_(sincos(self.grid, self.dim))
            else:
                truncated_normal_(self.pos_embed, std=0.02)
        return self

    def random_twin(self, seed: int) -> Encoder:
        """The same architecture with random weights: the floor of every score."""
        device = self.pos_embed.device
        return copy.deepcopy(self).cpu().initialise(seed).to(device)

    # -- forward ------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        *,
        keep: Tensor | None = None,
        until: int | None = None,
    ) -> Features:
        """Encode images and return the token grids of the `layers` asked for.

        Args:
            images: float [B, 3, H, W], normalised; H and W are multiples of the patch size.
            layers: Blocks whose raw output is wanted, 0 (the embedding) to depth.
            keep: [B, depth, 2], what the two branches of each block are multiplied by, image by
                image (stochastic depth; a recipe's encoder only). None: nothing is dropped.
            until: End after this block; `cls` of the result is empty then.

        Raises:
            UserError: A side is no multiple of the patch, or a layer does not exist.
        """
        wanted = set(layers)
        if not wanted <= set(range(self.depth + 1)):
            raise UserError(f"layers {sorted(wanted)}", f"they must be in 0…{self.depth}")
        grid = grid_of((int(images.shape[-2]), int(images.shape[-1])), self.patch_size)
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions(grid)
        tokens = tokens.contiguous()  # as between blocks, or compiled ones are compiled twice
        tokens = self._join(tokens, 0)
        tokens = self.norm_pre(tokens)
        grids: dict[int, Tensor] = {}
        cls_tokens: dict[int, Tensor] = {}
        for layer in range(self.depth + 1):
            if layer and keep is not None:
                dropped = keep[:, layer - 1]
                tokens = through(self.blocks[layer - 1], tokens, dropped, again=self.checkpointing)
            elif layer:
                tokens = through(self.blocks[layer - 1], tokens, again=self.checkpointing)
            if layer in wanted:
                patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
                grids[layer] = patches.transpose(1, 2).unflatten(2, grid)
                if self.cls_after is not None and layer > self.cls_after:
                    cls_tokens[layer] = tokens[:, 0]
            if layer == until and layer < self.depth:
                return Features(tokens.new_zeros(len(tokens), 0), grids, cls_tokens)
            if 0 < layer < self.depth:
                tokens = self._join(tokens, layer)
        tokens = self.norm(tokens)
        patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
        summary = patches.mean(1) if self.pools_mean else tokens[:, 0]
        return Features(self.fc_norm(summary), grids, cls_tokens)

    def _join(self, tokens: Tensor, layer: int) -> Tensor:
        """Put [CLS] (and registers) in front, if this is the block after which they join."""
        if layer != (self.cls_after or 0):
            return tokens
        prefix = [
            t.expand(len(tokens), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        return torch.cat([*(p.to(tokens.dtype) for p in prefix), tokens], dim=1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The positional embedding for a grid, [1, h·w, D], resampled if need be.

        How is a fact of the model, `pos_resize`, as its weights were trained or published with it;
        see `positions.resampled`.
        """
        return resampled(self.pos_embed, self.grid, grid, way=self.pos_resize)


def encode(
    encoder: nn.Module,
    views: Sequence[Tensor],
    layers: Iterable[int],
    *,
    keeps: Sequence[Tensor] | None = None,
    until: int | None = None,
) -> list[Features]:
    """Encode views [n, 3, H, W] of any sizes; those of equal size go through in one call.

    `keeps` [n, depth, 2] for each view, and `until`, are those of `Encoder.forward`.
    """
    layers = tuple(layers)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(tuple(view.shape[1:]), []).append(index)
    encoded: dict[int, Features] = {}
    for members in groups.values():
        images = torch.cat([views[i] for i in members])
        options: dict[str, Any] = {} if until is None else {"until": until}
        if keeps is not None:
            options["keep"] = torch.cat([keeps[i] for i in members])
        together = encoder(images, layers, **options)
        start = 0
        for index in members:
            encoded[index] = together.rows(start, start + len(views[index]))
            start += len(views[index])
    return [encoded[index] for index in range(len(views))]


def final_norm(encoder: Encoder) -> nn.Module:
    """The norm behind the last block (timm's average-pooling models call it `fc_norm`)."""
    return encoder.fc_norm if isinstance(encoder.norm, nn.Identity) else encoder.norm


_norm = functools.partial(nn.LayerNorm, eps=1e-6)


def _initialise_module(module: nn.Module, scheme: Initialiser, *, parts: int) -> None:
    """Draw a module's own weights; a linear layer may be `parts` maps of one input in one."""
    match module:
        case nn.Linear():
            if scheme in (Initialiser.MOCO_V3, Initialiser.SER_MOCO):
                limit = math.sqrt(6 / (module.in_features + module.out_features // parts))
                module.weight.uniform_(-limit, limit)
            else:
                truncated_normal_(module.weight, std=0.02)
            if module.bias is not None:
                module.bias.zero_()
        case nn.Conv2d() | nn.LayerNorm():
            module.reset_parameters()
        case LayerScale():
            module.gamma.fill_(module.init_values)
        case _ if any(True for _ in module.parameters(recurse=False)) and not isinstance(
            module, Encoder
        ):
            raise UserError(f"cannot initialise a {type(module).__name__}")

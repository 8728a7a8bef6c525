"""The ViT encoder: f⁽¹⁾ on patch tokens, the delayed [CLS], f⁽²⁾. The only forward pass there is.

Parameter names are timm's (`patch_embed.proj`, `blocks.0.attn.qkv`, …), so that weights move
between the two without translation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import GluMlp
from torch import Tensor, nn

from sercli.actions import grid_of
from sercli.encoders.blocks import TokenBlock, ViTBlock, attention_of_first, size_by_size
from sercli.encoders.checkpointing import through
from sercli.encoders.embedding import PatchEmbedding
from sercli.encoders.features import Features as Features
from sercli.encoders.initialising import draw_weights
from sercli.encoders.making import parts_of
from sercli.encoders.positions import resampled, sincos
from sercli.encoders.rotary import PAIRS, RotaryPositions
from sercli.encoders.taking import parts_of_timm
from sercli.encoders.tokens import Layout, Span, joined, split
from sercli.errors import UserError
from sercli.randomness import seeded, truncated_normal_
from sercli.recipe.schema import Initialiser, Model, PosResize


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
        rope: Rotary positions, by which every block turns its queries and keys.
        checkpointing: Compute the insides of blocks again in a backward pass instead of keeping
            them.
    """

    cls_token: Tensor | None
    reg_token: Tensor | None
    pos_embed: Tensor | None

    def __init__(
        self,
        *,
        patch_embed: nn.Conv2d,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        pos_embed: nn.Parameter | None,
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
        rope: RotaryPositions | None = None,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(patch_embed)
        self.register_parameter("cls_token", cls_token)
        self.register_parameter("reg_token", reg_token)
        self.register_parameter("pos_embed", pos_embed)
        self.rope = rope
        self.norm_pre = nn.Identity() if norm_pre is None else norm_pre
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.fc_norm = nn.Identity() if fc_norm is None else fc_norm
        self.dim = int(patch_embed.out_channels)
        self.depth = len(self.blocks)
        self.grid = grid
        self.patch_size = patch_size
        self.cls_after = cls_after if cls_token is not None else None
        self.init = init
        self.fixed_positions = fixed_positions
        self.pos_resize: PosResize = pos_resize
        self.pools_mean = pools_mean or cls_token is None
        self.checkpointing = False
        for block in self.blocks:
            if rope is not None and isinstance(block, ViTBlock):
                block.pairs = PAIRS[rope.kind]

    # -- construction -------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Model, *, image_size: int, cls_after: int = 0) -> Encoder:
        """Build the recipe's ViT (weights not yet drawn: see `initialise`).

        Args:
            model: Its settings; `describing.model_of` is the inverse.
            image_size: Side of an image that its positions are for, pixels.
            cls_after: Block after which [CLS] and registers join, if there is a [CLS].

        Raises:
            UserError: Unknown name, or sizes that do not fit.
        """
        return cls(**parts_of(model, image_size=image_size, cls_after=cls_after))

    @classmethod
    def from_timm(cls, vit: Any) -> Encoder:
        """Take over the modules of a timm ViT, `VisionTransformer` or `Eva`: outputs are equal.

        Raises:
            UserError: Another one, or one that our pass does not compute.
        """
        return cls(**parts_of_timm(vit))

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
                if module is not self:
                    draw_weights(module, self.init, parts=self._maps_in(name))
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
            if self.pos_embed is not None and self.fixed_positions:
                self.pos_embed.copy_(sincos(self.grid, self.dim))
            elif self.pos_embed is not None:
                truncated_normal_(self.pos_embed, std=0.02)
        return self

    def _maps_in(self, name: str) -> int:
        """Linear maps of one input that lie in one: queries, keys and values; SwiGLU's two."""
        if name.endswith(".qkv"):
            return 3
        gated = name.endswith(".mlp.fc1") and isinstance(
            self.get_submodule(name.removesuffix(".fc1")), GluMlp
        )
        return 2 if gated else 1

    def random_twin(self, seed: int) -> Encoder:
        """The same architecture with random weights: the floor of every score."""
        device = self.patch_embed.proj.weight.device
        return copy.deepcopy(self).cpu().initialise(seed).to(device)

    # -- forward ------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        *,
        keep: Tensor | None = None,
        until: int | None = None,
        attention: Iterable[int] = (),
    ) -> Features:
        """Encode images of one size and return the token grids of the `layers` asked for.

        Args:
            images: float [B, 3, H, W], normalised; H and W are multiples of the patch size.
            layers: Blocks whose raw output is wanted, 0 (the embedding) to depth.
            keep: [B, depth, 2], what the two branches of each block are multiplied by, image by
                image (stochastic depth; blocks of ours only). None: nothing is dropped.
            until: End after this block; `cls` of the result is empty then.
            attention: Blocks whose attention of [CLS] is wanted.

        Raises:
            UserError: A side is no multiple of the patch, or a layer does not exist or has no
                [CLS] that attends.
        """
        keeps = None if keep is None else [keep]
        (features,) = self.encode([images], layers, keeps=keeps, until=[until], attention=attention)
        return features

    def encode(
        self,
        views: Sequence[Tensor],
        layers: Iterable[int],
        *,
        keeps: Sequence[Tensor] | None = None,
        until: Sequence[int | None] | None = None,
        attention: Iterable[int] = (),
    ) -> list[Features]:
        """Encode views [n, 3, H, W] of any sizes in one pass, see `tokens.Layout`.

        `keeps` and `until` are those of `forward`, for each view, and so is `attention`.

        Raises:
            UserError: As there.
        """
        wanted = set(layers)
        if not wanted <= set(range(self.depth + 1)):
            raise UserError(f"layers {sorted(wanted)}", f"they must be in 0…{self.depth}")
        ends = [self.depth if last is None else last for last in until or [None] * len(views)]
        # Views that end early lie last, and those of one size next to each other.
        order = sorted(range(len(views)), key=lambda i: (-ends[i], *_size(views[i])))
        kept = None if keeps is None else torch.cat([keeps[i] for i in order])
        seen = self.attending(attention)
        found = self._pass([views[i] for i in order], [ends[i] for i in order], wanted, kept, seen)
        by_view = dict(zip(order, found, strict=True))
        return [by_view[index] for index in range(len(views))]

    def attending(self, layers: Iterable[int]) -> set[int]:
        """Blocks, if [CLS] is in them and they are of ours.

        Raises:
            UserError: One is not.
        """
        chosen = set(layers)
        first = self.depth if self.cls_after is None else self.cls_after
        if not chosen <= set(range(first + 1, self.depth + 1)):
            rule = f"[CLS] is in blocks {first + 1}…{self.depth}" if first < self.depth else ""
            raise UserError(f"attention in blocks {sorted(chosen)}", rule or "there is no [CLS]")
        if not all(isinstance(self.blocks[layer - 1], ViTBlock) for layer in chosen):
            raise UserError("attention in a block of another kind", "ser's blocks and timm's plain")
        return chosen

    def _pass(
        self,
        views: Sequence[Tensor],
        ends: Sequence[int],
        wanted: set[int],
        kept: Tensor | None,
        attention: set[int],
    ) -> list[Features]:
        """`encode` of views as they lie: each ends no earlier than the one behind it."""
        tokens, layout = self._embed(views)
        tokens, layout = self._join(self.norm_pre(tokens), layout, 0)
        spread = _spread(kept, layout, tokens)
        found = [Features(tokens.new_zeros(view.shape[0], 0), {}, {}) for view in views]
        for layer in range(self.depth + 1):
            if layer:
                keep = None if spread is None else spread[layer - 1]
                if layer in attention:
                    maps = attention_of_first(self.blocks[layer - 1], tokens, layout)
                    for features, weights in zip(found, maps, strict=False):
                        features.attention[layer] = weights
                tokens = self._through(self.blocks[layer - 1], tokens, layout, keep)
            if layer in wanted:
                self._tap(found, layer, tokens, layout)
            if layer == self.depth:
                break
            before = layout
            if (staying := sum(end > layer for end in ends)) < len(layout.spans):
                if not staying:
                    return found
                layout = layout.first_views(staying)
                tokens = tokens[: layout.num_tokens]
            if layer:
                tokens, layout = self._join(tokens, layout, layer)
            if layout is not before:
                spread = _spread(kept, layout, tokens)
        summaries = self._summaries(tokens, layout)
        whole = [replace(f, cls=cls) for f, cls in zip(found, summaries, strict=False)]
        return whole + found[len(whole) :]

    def _embed(self, views: Sequence[Tensor]) -> tuple[Tensor, Layout]:
        """Patch tokens [T, D] with their positions, and where they lie."""
        sides = [(int(view.shape[2]), int(view.shape[3])) for view in views]
        grids = [grid_of(side, self.patch_size) for side in sides]
        layout = Layout(
            tuple(Span(view.shape[0], grid) for view, grid in zip(views, grids, strict=True)),
            prefix=0,
            device=views[0].device,
            rotary=self.rope,
        )
        embedded = self.patch_embed(views)
        if self.pos_embed is None:  # whose sum is as wide as they are, under autocast too
            return embedded.to(self.patch_embed.proj.weight.dtype), layout
        places = {grid: self.positions(grid) for grid in dict.fromkeys(grids)}
        pieces = [
            (tokens + places[grid]).flatten(0, 1)
            for grid, tokens in zip(*layout.by_grid(embedded), strict=True)
        ]
        return joined(pieces), layout

    def _join(self, tokens: Tensor, layout: Layout, layer: int) -> tuple[Tensor, Layout]:
        """Put [CLS] (and registers) in front, if this is the block after which they join.

        Whenever they do, they are normed as patches were before the first block.
        """
        prefix = [t[0].to(tokens.dtype) for t in (self.cls_token, self.reg_token) if t is not None]
        if layer != (self.cls_after or 0) or not prefix:
            return tokens, layout
        return layout.with_prefix(tokens, self.norm_pre(torch.cat(prefix)).to(tokens.dtype))

    def _through(
        self, block: nn.Module, tokens: Tensor, layout: Layout, keep: Tensor | None
    ) -> Tensor:
        """The one place where a block is called."""
        if isinstance(block, TokenBlock):
            return through(block, tokens, layout, keep, again=self.checkpointing)
        if keep is not None:
            raise UserError(f"stochastic depth in a {type(block).__name__}", "ser's blocks have it")
        return size_by_size(block, tokens, layout)

    def _tap(self, found: Sequence[Features], layer: int, tokens: Tensor, layout: Layout) -> None:
        """Note what the tokens of each view are after a block."""
        views = zip(layout.spans, layout.by_view(tokens), strict=True)
        for features, (span, view) in zip(found, views, strict=False):
            patches = view[:, layout.prefix :].transpose(1, 2)
            features.grids[layer] = patches.unflatten(2, span.grid)
            if self.cls_after is not None and layer > self.cls_after:
                features.cls_tokens[layer] = view[:, 0]

    def _summaries(self, tokens: Tensor, layout: Layout) -> Sequence[Tensor]:
        """[n, D] of each view, after the final norm, which [CLS] alone needs, if it is taken."""
        if self.pools_mean:
            normed = layout.by_view(self.norm(tokens))
            rows = joined([view[:, layout.prefix :].mean(1) for view in normed])
        else:
            rows = self.norm(tokens.index_select(0, layout.firsts))
        return split(self.fc_norm(rows), [span.count for span in layout.spans])

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The positional embedding for a grid, [1, h·w, D], resampled if need be; there is one.

        How is a fact of the model, `pos_resize`, as its weights were trained or published with it;
        see `positions.resampled`.
        """
        assert self.pos_embed is not None
        return resampled(self.pos_embed, self.grid, grid, way=self.pos_resize)


def _size(view: Tensor) -> tuple[int, int]:
    """What views that share attention have in common, then what those of one grid do."""
    height, width = view.shape[2:]
    return height * width, height


def _spread(kept: Tensor | None, layout: Layout, like: Tensor) -> Tensor | None:
    """What each token's branches are multiplied by, [depth, 2, T]; of the views still there."""
    if kept is None:
        return None
    return layout.spread(kept[: layout.num_images].to(like.dtype))


def final_norm(encoder: Encoder) -> nn.Module:
    """The norm behind the last block (timm's average-pooling models call it `fc_norm`)."""
    return encoder.fc_norm if isinstance(encoder.norm, nn.Identity) else encoder.norm

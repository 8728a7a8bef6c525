"""Transformer blocks over the tokens of images of several sizes.

Modules and parameter names are timm's (`norm1`, `attn.qkv`, …); the pass is ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sercli.encoders.attention import attend
from sercli.encoders.rotary import Pairs, turned
from sercli.encoders.tokens import Layout, joined


class TokenBlock(nn.Module, ABC):
    """A block that takes the tokens of all images of a pass at once."""

    @abstractmethod
    def forward(self, tokens: Tensor, layout: Layout, keep: Tensor | None = None) -> Tensor:
        """[T, D] → [T, D].

        Args:
            tokens: Of all images.
            layout: Where which image lies.
            keep: [2, T], what the two branches (attention, MLP) are multiplied by, token by token;
                alike for all tokens of an image (stochastic depth). None: nothing is dropped.
        """


@dataclass(frozen=True)
class Parts:
    """The two parts of a block that work token by token, around its attention.

    They are functions of the block, so that all blocks share what they are compiled to.

    Attributes:
        before: (block, tokens [T, D], turns [T, 2, d/2] of rotary positions or None) → queries,
            keys and values, packed, [T, 3, H, d].
        after: (block, tokens [T, D], attended [T, H·d], keep) → [T, D].
    """

    before: Callable[[ViTBlock, Tensor, Tensor | None], Tensor]
    after: Callable[[ViTBlock, Tensor, Tensor, Tensor | None], Tensor]


class ViTBlock(TokenBlock, Block):
    """timm's pre-norm block, with LayerScale, norms of q and k, and any MLP that timm gives it.

    Its own dropout and stochastic depth are not used: `understood` says of which blocks of timm's
    it is the equal.

    Attributes:
        parts: What runs it; `EAGER` unless something compiled takes its place.
        pairs: Which numbers of a head rotary positions turn together, see `rotary.PAIRS`.
    """

    parts: Parts
    pairs: Pairs
    norm1: nn.Module
    attn: Any
    ls1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module

    def __init__(self, *arguments: Any, **options: Any) -> None:
        Block.__init__(self, *arguments, **options)
        self.parts, self.pairs = EAGER, "halves"

    @classmethod
    def of(cls, block: Block) -> ViTBlock:
        """The modules (not copies) of a block of timm's that is `understood`."""
        return cls.made_of(**dict(block.named_children())).train(block.training)

    @classmethod
    def made_of(cls, **modules: nn.Module) -> ViTBlock:
        """A block of these modules, by the names that they have in timm's."""
        ours = cls.__new__(cls)
        nn.Module.__init__(ours)
        for name, module in modules.items():
            ours.add_module(name, module)
        ours.parts, ours.pairs = EAGER, "halves"
        return ours

    def forward(self, tokens: Tensor, layout: Layout, keep: Tensor | None = None) -> Tensor:
        attended = attend(self.parts.before(self, tokens, layout.turns), layout)
        return self.parts.after(self, tokens, attended, keep)


class QueryValueBias(nn.Linear):
    """The map to queries, keys and values, where keys have no bias (BEiT, EVA).

    Attributes:
        weight: [3·D', D], of queries, keys and values.
        bias: [2·D'], of queries and values.
    """

    def __init__(self, in_features: int, each: int) -> None:
        super().__init__(in_features, 3 * each)
        self.bias = nn.Parameter(torch.zeros(2 * each))

    def forward(self, tokens: Tensor) -> Tensor:
        query, value = self.bias.chunk(2)
        return F.linear(tokens, self.weight, torch.cat([query, torch.zeros_like(query), value]))


def before_attention(block: ViTBlock, tokens: Tensor, turns: Tensor | None) -> Tensor:
    """Norm, then queries and keys, turned, and values of each head: [T, D] → [T, 3, H, d]."""
    attention = block.attn
    packed: Tensor = attention.qkv(block.norm1(tokens)).unflatten(1, (3, attention.num_heads, -1))
    normed = not isinstance(attention.q_norm, nn.Identity)
    if not normed and isinstance(attention.k_norm, nn.Identity) and turns is None:
        return packed
    q, k, v = packed.unbind(1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if turns is not None:
        q, k = turned(q, turns, block.pairs), turned(k, turns, block.pairs)
    return torch.stack([q.to(v.dtype), k.to(v.dtype), v], dim=1)


def after_attention(
    block: ViTBlock, tokens: Tensor, attended: Tensor, keep: Tensor | None
) -> Tensor:
    """Projection and residual, then the MLP and its own: [T, D]."""
    attention = block.attn
    branch = block.ls1(attention.proj(attention.norm(attended)))
    tokens = tokens + (branch if keep is None else keep[0][:, None] * branch)
    branch = block.ls2(block.mlp(block.norm2(tokens)))
    passed: Tensor = tokens + (branch if keep is None else keep[1][:, None] * branch)
    return passed


def attention_of_first(block: nn.Module, tokens: Tensor, layout: Layout) -> list[Tensor]:
    """How much the first token of each image, [CLS], attends to its patches in a block.

    Softmax(q·kᵀ/√d) over all tokens of the image, as `attend` has it inside, in float32.

    Args:
        block: A `ViTBlock`; its keys and queries are those that it computes for its own pass.
        tokens: [T, D], what goes into it.
        layout: Where which image lies; [CLS] has joined.

    Returns:
        For each view [n, H, h, w].
    """
    assert isinstance(block, ViTBlock)
    packed = block.parts.before(block, tokens, layout.turns).float()
    maps = []
    for span, view in zip(layout.spans, layout.by_view(packed), strict=True):
        q, k = view[:, 0, 0], view[:, :, 1]  # [n, H, d], [n, N, H, d]
        weights = torch.einsum("nhd,nthd->nht", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        maps.append(weights[:, :, layout.prefix :].unflatten(2, span.grid))
    return maps


EAGER = Parts(before_attention, after_attention)


def understood(block: nn.Module) -> bool:
    """Whether `ViTBlock` computes what this block does.

    True of timm's plain block with its plain attention, where nothing is dropped and nothing stands
    in it that is not known here (a gate, say).
    """
    theirs: Any = block
    if type(theirs) is not Block or type(theirs.attn) is not Attention:
        return False
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules())
    paths = (theirs.drop_path1, theirs.drop_path2)
    known = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}
    own = {name for name, _ in theirs.attn.named_children()}
    return not drops and own == known and all(isinstance(path, nn.Identity) for path in paths)


def size_by_size(block: nn.Module, tokens: Tensor, layout: Layout) -> Tensor:
    """Any other block [n, N, D] → [n, N, D], for images of each size: [T, D] → [T, D]."""
    return joined([block(batch).flatten(0, 1) for batch in layout.by_group(tokens)])

"""What an encoder is made of, taken over from a ViT of timm's: outputs are equal to timm's.

timm has two classes of them: `VisionTransformer`, and `Eva`, which EVA-02, DINOv3 and others are.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, GluMlp, LayerScale, SwiGLU
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sercli.encoders.blocks import QueryValueBias, ViTBlock, understood
from sercli.encoders.embedding import has_square_patches
from sercli.encoders.rotary import PAIRS, RotaryPositions
from sercli.errors import UserError


def parts_of_timm(vit: Any) -> dict[str, Any]:
    """The arguments of `Encoder` for a ViT of timm's; modules are taken over, not copied.

    Pooling by attention (SigLIP) is not taken: a mean stands in its place, see
    `pools_by_attention`. Positions of [CLS] and registers, which are constants, are folded into
    those tokens. Maps of an `Eva` are joined where ours are one.

    Raises:
        UserError: Another model, or one that our pass does not compute.
    """
    plain = (
        type(vit) in (VisionTransformer, Eva)
        and vit.global_pool in ("", "token", "avg", "map")
        and not (vit.global_pool == "avg" and getattr(vit, "pool_include_prefix", False))
        and has_square_patches(vit.patch_embed)
    )
    if not plain:
        raise UserError(
            f"the model is a {type(vit).__name__} of a kind ser cannot read",
            "a timm VisionTransformer or Eva with square patches, that ends in [CLS] or a mean, "
            "is needed",
        )
    cls_token, reg_token, position = vit.cls_token, vit.reg_token, vit.pos_embed
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if position is not None:
        position = position.detach().clone()
        if prefix:
            parts = position[:, :prefix]
            first = 0 if cls_token is None else 1
            if cls_token is not None:
                cls_token = nn.Parameter(cls_token.detach() + parts[:, :1])
            if reg_token is not None:
                reg_token = nn.Parameter(reg_token.detach() + parts[:, first:])
        position = nn.Parameter(position[:, prefix:])
    rope = _rotary(vit)
    return {
        "patch_embed": vit.patch_embed.proj,
        "blocks": [_block(block, rope) for block in vit.blocks],
        "norm": vit.norm,
        "pos_embed": position,
        "cls_token": cls_token,
        "grid": tuple(vit.patch_embed.grid_size),
        "patch_size": int(vit.patch_embed.patch_size[0]),
        "reg_token": reg_token,
        "norm_pre": vit.norm_pre,
        "fc_norm": vit.fc_norm,
        "pools_mean": vit.global_pool in ("avg", "map"),
        "pos_resize": "bicubic-antialias",  # timm's own, where `dynamic_img_size` is asked for
        "rope": rope,
    }


def pools_by_attention(vit: Any) -> bool:
    """Whether a ViT of timm's has a pool that is not taken."""
    return getattr(vit, "attn_pool", None) is not None


def _rotary(vit: Any) -> RotaryPositions | None:
    """timm's rotary positions as ours.

    Raises:
        UserError: Ours are not like them.
    """
    theirs = getattr(vit, "rope", None)
    if theirs is None:
        return None
    kind, base = type(theirs).__name__, getattr(theirs, "temperature", None)
    centred = getattr(theirs, "grid_offset", 0.0) == 0
    rows_first = getattr(theirs, "grid_indexing", "ij") == "ij"
    attention = vit.blocks[0].attn
    halves = getattr(attention, "rotate_half", False)
    head_dim = int(attention.head_dim)
    if base and centred and rows_first:
        if (
            kind == "RotaryEmbeddingDinoV3"
            and halves
            and theirs.normalize_coords == "separate"
            and (theirs.min_period is None or theirs.max_period is None)
        ):
            return RotaryPositions("dinov3", head_dim=head_dim, base=float(base))
        reference = getattr(theirs, "ref_feat_shape", None)
        square = reference is None or reference[0] == reference[1]
        by_index = (
            not getattr(theirs, "in_pixels", True)
            and getattr(theirs, "grid_type", "index") == "index"
        )
        if kind == "RotaryEmbeddingCat" and not halves and by_index and square:
            grid = None if reference is None else int(reference[0])
            return RotaryPositions("eva02", head_dim=head_dim, base=float(base), grid=grid)
    raise UserError(
        f"the model has rotary positions ({kind}) that ser does not have",
        "those of DINOv3 and of EVA-02 are known, with rows before columns",
    )


def _block(block: nn.Module, rope: RotaryPositions | None) -> nn.Module:
    """A block as one of ours, if ours computes what it does.

    Raises:
        UserError: It is none, and is given rotary positions, which no other block of ours takes.
    """
    if understood(block):
        return ViTBlock.of(block)
    if type(block) is EvaBlock and _eva_understood(block, rope):
        return _of_eva(block)
    if isinstance(block, EvaBlock) or rope is not None:
        raise UserError(
            f"the model has blocks ({type(block).__name__} with {type(block.attn).__name__}) that "
            "ser does not have",
            "pre-norm blocks without gates, whose heads have their own keys, are known",
        )
    return block


def _eva_understood(block: Any, rope: RotaryPositions | None) -> bool:
    """Whether `ViTBlock` with the same modules computes what a block of an `Eva` does."""
    attention = block.attn
    if type(attention) is not EvaAttention:
        # AttentionRope, by its name: earlier versions of timm keep it elsewhere.
        if type(attention).__name__ != "AttentionRope":
            return False
        if getattr(attention, "num_kv_groups", 1) != 1:
            return False
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules())
    paths = (block.drop_path1, block.drop_path2)
    halves = getattr(attention, "rotate_half", False)
    return (
        not drops
        and all(isinstance(path, nn.Identity) for path in paths)
        and getattr(attention, "gate", None) is None
        and not getattr(attention, "qkv_bias_separate", False)
        and (rope is None or halves == (PAIRS[rope.kind] == "halves"))
    )


def _of_eva(block: Any) -> ViTBlock:
    """A block of an `Eva` as one of ours."""
    theirs = block.attn
    width = int(theirs.proj.out_features)
    with torch.device("meta"):  # of these, nothing stays but what takes no memory
        attention = Attention(width, theirs.num_heads, attn_head_dim=theirs.head_dim)
    attention.qkv = _packed(theirs)
    for name in ("q_norm", "k_norm", "norm", "proj"):
        attention.add_module(name, getattr(theirs, name))
    ours = ViTBlock.made_of(
        norm1=block.norm1,
        attn=attention,
        ls1=_layer_scale(block.gamma_1, block),
        norm2=block.norm2,
        mlp=_mlp(block.mlp),
        ls2=_layer_scale(block.gamma_2, block),
    )
    return ours.train(block.training)


def _packed(attention: Any) -> nn.Linear:
    """Queries, keys and values in one map, which theirs has with the bias apart, or as three."""
    if attention.qkv is not None:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            return _linear(weight, attention.q_bias, None, attention.v_bias)
        return _linear(weight, *((None,) * 3 if bias is None else bias.chunk(3)))
    maps = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _linear(torch.cat([one.weight for one in maps]), *(one.bias for one in maps))


def _linear(
    weight: Tensor, query: Tensor | None, key: Tensor | None, value: Tensor | None
) -> nn.Linear:
    """A map with the weight [3D', D] and these biases [D'] each."""
    number, width = weight.shape[0] // 3, weight.shape[1]
    with torch.device("meta"):
        packed = (
            QueryValueBias(width, number)
            if query is not None and key is None
            else nn.Linear(width, 3 * number, bias=query is not None)
        )
    packed.weight = nn.Parameter(weight.detach())
    biases = [bias.detach() for bias in (query, key, value) if bias is not None]
    if biases:
        packed.bias = nn.Parameter(torch.cat(biases))
    return packed


def _layer_scale(gamma: nn.Parameter | None, block: Any) -> nn.Module:
    if gamma is None:
        return nn.Identity()
    scale: nn.Module = LayerScale(len(gamma), init_values=float(block.init_values))
    scale.gamma = gamma
    return scale


def _mlp(mlp: Any) -> Any:
    """SwiGLU of two maps as that of one; any other module as it is."""
    if type(mlp) is not SwiGLU:
        return mlp
    gate, value = mlp.fc1_g, mlp.fc1_x
    with torch.device("meta"):
        packed = GluMlp(
            gate.in_features,
            2 * gate.out_features,
            mlp.fc2.out_features,
            act_layer=type(mlp.act),
            gate_last=False,
            bias=(gate.bias is not None, mlp.fc2.bias is not None),
        )
    packed.fc1.weight = nn.Parameter(torch.cat([gate.weight, value.weight]).detach())
    if gate.bias is not None:
        packed.fc1.bias = nn.Parameter(torch.cat([gate.bias, value.bias]).detach())
    packed.act, packed.norm, packed.fc2 = mlp.act, mlp.norm, mlp.fc2
    return packed

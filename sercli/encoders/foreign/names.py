"""What each family calls the tensors of a ViT, and what becomes of them: our names and shapes.

Sources of the names: timm `vision_transformer.py` and `eva.py`; facebookresearch/deit
`models_v2.py`, dinov2, dinov3 `layers/attention.py`; baaivision/EVA `EVA-02/asuka`; torchvision;
openai/CLIP `clip/model.py`, which open_clip keeps to; Hugging Face's transformers, as its
`save_pretrained` writes Dinov2, DINOv3ViT, CLIPVision, SiglipVision, ViT, ViTMAE and I-JEPA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Family = Literal["timm", "torchvision", "clip", "transformers"]


@dataclass(frozen=True)
class Names:
    """How one family names the tensors of a ViT.

    Attributes:
        stem: Its patch embedding's weight, a regular expression.
        beside: A name that such a ViT has as well; "" where the stem tells enough.
        renames: (regular expression, what takes its place) from their names to ours, one after the
            other. What ours have in one tensor may keep several names: `_united` joins them.
    """

    stem: str
    beside: str
    renames: tuple[tuple[str, str], ...]


NAMES: Mapping[Family, Names] = {
    "timm": Names(
        r"patch_embed\.proj\.(?:\d+\.)*weight",
        "",
        (
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # dinov2: chunks, with the blocks' numbers
            (r"^(register_tokens|storage_tokens)$", "reg_token"),  # of dinov2, of DINOv3
            (r"^rope_embed\.periods$", "rope.periods"),
            (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT-III, EVA
            (r"\.attn\.([qkv])_proj\.", r".attn.\1."),  # EVA, as the next four
            (r"\.attn\.([qkv])_bias$", r".attn.\1.bias"),
            (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
            (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
            (r"\.mlp\.(w1|fc1_g)\.", ".mlp.gate."),
            (r"\.mlp\.(w2|fc1_x)\.", ".mlp.value."),
            (r"\.mlp\.w12\.", ".mlp.fc1."),  # SwiGLU of dinov2, whose two maps are one
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
    ),
    "torchvision": Names(
        r"conv_proj\.(?:\d+\.)*weight",
        "",
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."),
            (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
        ),
    ),
    "clip": Names(
        r"conv1\.weight",
        "class_embedding",
        (
            (r"^class_embedding$", "cls_token"),
            (r"^conv1\.", "patch_embed.proj."),
            (r"^positional_embedding$", "pos_embed"),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.attn\.ln_([qk])\.", r".attn.\1_norm."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ),
    ),
    "transformers": Names(
        r"embeddings\.patch_embeddings?\.(?:projection\.)?weight",
        "",
        (
            (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
            (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
            (r"^pre_layrnorm\.", "norm_pre."),  # spelt so
            (r"^(post_)?layernorm\.", "norm."),
            (r"^(encoder\.|model\.)?layers?\.", "blocks."),
            (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
            (r"\.(attention|self_attn)\.([qkv])_proj\.", r".attn.\2."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.(attention|self_attn)\.(o|out)_proj\.", ".attn.proj."),
            (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
            (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
            (r"\.(mlp\.weights_out|mlp\.down_proj|output\.dense)\.", ".mlp.fc2."),
            (r"\.mlp\.gate_proj\.", ".mlp.gate."),
            (r"\.mlp\.up_proj\.", ".mlp.up."),  # beside a gate, or alone
        ),
    ),
}

_STEMS = {family: re.compile(rf"((?:.*?\.)?){names.stem}") for family, names in NAMES.items()}
_RENAMES = {
    family: tuple((re.compile(old), new) for old, new in names.renames)
    for family, names in NAMES.items()
}
# Our name: theirs, one behind the other; the first that are all there.
_PARTS = (
    ("attn.qkv.weight", ("attn.q.weight", "attn.k.weight", "attn.v.weight")),
    ("attn.qkv.bias", ("attn.q.bias", "attn.k.bias", "attn.v.bias")),
    ("attn.qkv.bias", ("attn.q.bias", "attn.v.bias")),  # keys have none
    ("mlp.fc1.weight", ("mlp.gate.weight", "mlp.value.weight")),
    ("mlp.fc1.bias", ("mlp.gate.bias", "mlp.value.bias")),
    ("mlp.fc1.weight", ("mlp.gate.weight", "mlp.up.weight")),
    ("mlp.fc1.bias", ("mlp.gate.bias", "mlp.up.bias")),
    ("mlp.fc1.weight", ("mlp.up.weight",)),
    ("mlp.fc1.bias", ("mlp.up.bias",)),
)


def stem_of(name: str, names: Mapping[str, str]) -> tuple[str, Family] | None:
    """What stands in front of a ViT's names, and its family, if this is its patch embedding.

    Args:
        name: Of a tensor.
        names: Of all that lie with it, as keys.
    """
    for family, stem in _STEMS.items():
        match = stem.fullmatch(name)
        if match and (not NAMES[family].beside or match[1] + NAMES[family].beside in names):
            return match[1], family
    return None


def translated(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """A ViT's tensors by our names and in our shapes, floating-point ones in float32."""
    given = {}
    for key, value in tensors.items():
        for pattern, replacement in _RENAMES[family]:
            key = pattern.sub(replacement, key)
        given[key] = value.detach().float() if value.is_floating_point() else value
    for key, dimensions in (("cls_token", 3), ("pos_embed", 3), ("reg_token", 3)):
        if family in ("clip", "transformers") and key in given:
            given[key] = given[key][(None,) * (dimensions - given[key].ndim)]
    return {key: value.contiguous() for key, value in _united(given).items()}


def _united(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps of one input in one tensor: queries, keys and values; SwiGLU's gate and value."""
    blocks = {match[0] for key in given if (match := re.match(r"blocks\.\d+\.", key))}
    for block in blocks:
        for ours, theirs in _PARTS:
            parts = [given.get(block + name) for name in theirs]
            there = [part for part in parts if part is not None and part.ndim]
            if len(there) < len(theirs) or block + ours in given:
                continue
            for name in theirs:
                del given[block + name]
            given[block + ours] = torch.cat(there) if len(there) > 1 else there[0]
        _without_mask(given, f"{block}attn.qkv.bias")
    return given


def _without_mask(given: dict[str, Tensor], bias: str) -> None:
    """DINOv3 has a bias of keys and multiplies it by nothing: it is left out."""
    mask = given.pop(f"{bias}_mask", None)
    if mask is None or bias not in given or mask.shape != given[bias].shape:
        return
    masks = mask.chunk(3)
    if len(masks) == 3 and [set(part.tolist()) for part in masks] == [{1.0}, {0.0}, {1.0}]:
        query, _, value = given[bias].chunk(3)
        given[bias] = torch.cat([query, value])
    else:
        given[bias] = given[bias] * mask

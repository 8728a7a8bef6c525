"""Which model of timm's an encoder is, and what it is told.

timm has two classes of ViT: `VisionTransformer`, and `Eva` for those with rotary positions. What
neither can be, a delayed [CLS] above all, is `ser_vit`, which `import sercli` adds to timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sercli.encoders.export.timm_tensors import usual_periods
from sercli.encoders.sizes import mlp_width_of, rope_base_of, size_of
from sercli.recipe.model import Model

OURS = "ser_vit"  # in timm
_PLAIN = "vit_small_patch16_224"
# timm's own sizes at 224 px: (patch, width, depth, heads).
_BY_SIZE = {
    (16, 192, 12, 3): "vit_tiny_patch16_224",
    (8, 384, 12, 6): "vit_small_patch8_224",
    (16, 384, 12, 6): _PLAIN,
    (32, 384, 12, 6): "vit_small_patch32_224",
    (8, 768, 12, 12): "vit_base_patch8_224",
    (16, 768, 12, 12): "vit_base_patch16_224",
    (32, 768, 12, 12): "vit_base_patch32_224",
    (14, 1024, 24, 16): "vit_large_patch14_224",
    (16, 1024, 24, 16): "vit_large_patch16_224",
    (32, 1024, 24, 16): "vit_large_patch32_224",
    (14, 1280, 32, 16): "vit_huge_patch14_224",
}
# What timm's two classes do where nothing else is said: both, and each beside that.
_BOTH: Mapping[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
}
_VIT: Mapping[str, Any] = {
    **_BOTH,
    "qk_norm": False,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "init_values": None,
    "class_token": True,
    "pos_embed": "learn",
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "global_pool": "token",
    "fc_norm": None,
    "act_layer": None,
}
_EVA: Mapping[str, Any] = {
    **_BOTH,
    "attn_type": "eva",
    "swiglu_mlp": False,
    "scale_mlp": False,
    "scale_attn_inner": False,
    "init_values": None,
    "class_token": True,
    "num_reg_tokens": 0,
    "no_embed_class": False,
    "use_abs_pos_emb": True,
    "use_rot_pos_emb": False,
    "rope_type": "cat",
    "rope_temperature": 10000.0,
    "rope_rotate_half": False,
    "ref_feat_shape": None,
    "use_pre_transformer_norm": False,
    "use_fc_norm": None,
    "use_post_transformer_norm": None,
    "global_pool": "avg",
}
# What timm's entries of that name change of these; ε of a norm and kinds of MLP can be told by a
# name alone, as they are classes. What is None cannot be told: timm takes that for nothing said.
_GIANT = {  # vit_giant_patch14_dinov2
    "img_size": 518,
    "patch_size": 14,
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "init_values": 1e-5,
    "mlp_ratio": 2.66667 * 2,
}
_DINOV3 = {  # vit_small_patch16_dinov3
    "img_size": 256,
    "embed_dim": 384,
    "num_heads": 6,
    "qkv_bias": False,
    "init_values": 1e-5,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
}
_EVA02 = {  # eva02_small_patch14_224
    "patch_size": 14,
    "embed_dim": 384,
    "num_heads": 6,
    "mlp_ratio": 4 * 2 / 3,
    "swiglu_mlp": True,
    "use_rot_pos_emb": True,
    "ref_feat_shape": [16, 16],
}
_EVA01 = {  # eva_giant_patch14_224
    "patch_size": 14,
    "embed_dim": 1408,
    "depth": 40,
    "num_heads": 16,
    "mlp_ratio": 6144 / 1408,
}
# Ours: `ser_vit`'s, where timm has a word for it.
SER_WORDS = {
    "width": "embed_dim",
    "layer_scale": "init_values",
    "registers": "reg_tokens",
}


class _Strange(Exception):
    """Something that timm's own classes do not have; its text is what."""


@dataclass(frozen=True)
class TimmModel:
    """A model of timm's.

    Attributes:
        name: As `timm.create_model` takes it.
        options: What it is told beside (JSON values).
        reason: Why it is `ser_vit`; "": it is timm's own.
    """

    name: str
    options: Mapping[str, Any]
    reason: str = ""


def timm_model(
    model: Model, *, image_size: int, cls_after: int, periods: Tensor | None = None
) -> TimmModel:
    """The model of timm's that an encoder is: timm's own where there is one, else `ser_vit`.

    Args:
        model: Its settings.
        image_size: Side of an image that its positions are for, pixels.
        cls_after: Block after which its [CLS] joins.
        periods: Of its rotary positions.
    """
    try:
        if cls_after:
            raise _Strange("a delayed [CLS]")
        if periods is not None and not torch.equal(periods, usual_periods(model)):
            raise _Strange("rotary positions with periods of their own")  # DINOv3's, rounded
        name, usual, told = (_eva if model.rope else _vit)(model, image_size)
        options = {key: value for key, value in told.items() if value != usual[key]}
        if unsaid := [key for key, value in options.items() if value is None]:
            raise _Strange(f"{unsaid[0]} None beside the rest")
    except _Strange as strange:
        options = _own_words(model)
        if image_size != 224:
            options["img_size"] = image_size
        if cls_after:
            options = {"cls_after": cls_after, **options}
        return TimmModel(OURS, {**options, "num_classes": 0}, str(strange))
    return TimmModel(name, {**options, "num_classes": 0})


def _own_words(model: Model) -> dict[str, Any]:
    """What `ser_vit` is told: settings that are not its usual ones."""
    size = size_of(model)
    usual = Model.model_fields
    settings = {
        key: value
        for key, value in model.model_dump(mode="json").items()
        if key not in ("name", "init", "cls_after", "drop_path", "patch_embed", *vars(size))
        and value != usual[key].default
    }
    small = {"width": 384, "depth": 12, "num_heads": 6}
    sizes = {key: value for key, value in vars(size).items() if value != small[key]}
    return {SER_WORDS.get(key, key): value for key, value in {**sizes, **settings}.items()}


def _common(model: Model, image_size: int) -> dict[str, Any]:
    """What both classes of timm's are told alike."""
    if model.patch_bias == model.pre_norm:
        raise _Strange(f"patch_bias {model.patch_bias} with pre_norm {model.pre_norm}")
    size = size_of(model)
    hidden = mlp_width_of(model, size.width)
    return {
        "img_size": image_size,
        "patch_size": model.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mlp_ratio": _ratio(hidden, size.width),
        "init_values": model.layer_scale,
        "class_token": model.has_cls,
        "global_pool": "token" if model.pool == "cls" else "avg",
    }


def _ratio(hidden: int, width: int) -> float:
    return hidden / width if hidden % width == 0 else (hidden + 0.5) / width  # timm rounds down


def _vit(model: Model, image_size: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Of class `VisionTransformer`: an entry's name, what it does as it is, and what is wanted."""
    told = _common(model, image_size)
    usual: dict[str, Any]
    gated = model.mlp == "swiglu"
    if gated:
        hidden = 2 * mlp_width_of(model, told["embed_dim"])
        told["mlp_ratio"] = _ratio(hidden, told["embed_dim"])
    sizes = tuple(told[key] for key in ("patch_size", "embed_dim", "depth", "num_heads"))
    if (model.norm_eps, gated) == (1e-6, False):
        name = _BY_SIZE.get(sizes, _PLAIN)
        found = next(key for key, value in _BY_SIZE.items() if value == name)
        usual = dict(zip(("patch_size", "embed_dim", "depth", "num_heads"), found, strict=True))
    elif (model.norm_eps, gated) == (1e-5, False):
        name, usual = "vit_base_patch16_clip_224", {"pre_norm": True}
    elif (model.norm_eps, gated) == (1e-6, True):
        name, usual = "vit_giant_patch14_dinov2", _GIANT
    else:
        raise _Strange(f"norm_eps {model.norm_eps:g} with mlp {model.mlp}")
    activations = {"gelu": None, "gelu-tanh": "gelu_tanh", "quick-gelu": "quick_gelu"}
    told |= {
        "qkv_bias": bool(model.qkv_bias),
        "qk_norm": model.qk_norm,
        "scale_attn_norm": model.attn_norm,
        "scale_mlp_norm": model.mlp_norm,
        "pos_embed": "none" if model.pos_embed == "none" else "learn",
        "no_embed_class": bool(model.registers),
        "reg_tokens": model.registers,
        "pre_norm": model.pre_norm,
        "act_layer": None if gated else activations[model.mlp],
        "fc_norm": None if model.pool == "cls" else model.final_norm == "pooled",
    }
    return name, {**_VIT, **usual}, told


def _eva(model: Model, image_size: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Of class `Eva`, likewise."""
    told = _common(model, image_size)
    usual: dict[str, Any]
    if model.mlp not in ("gelu", "swiglu") or model.qk_norm:
        raise _Strange(f"rotary positions with {'qk_norm' if model.qk_norm else model.mlp}")
    if model.norm_eps == 1e-5:
        name, usual = "vit_small_patch16_dinov3", _DINOV3
    elif model.norm_eps == 1e-6 and model.rope_grid is None and model.rope == "eva02":
        name, usual = "eva_giant_patch14_224", _EVA01
    elif model.norm_eps == 1e-6:
        name, usual = "eva02_small_patch14_224", _EVA02
    else:
        raise _Strange(f"rotary positions with norm_eps {model.norm_eps:g}")
    pooled = model.final_norm == "pooled"
    told |= {
        "qkv_bias": bool(model.qkv_bias),
        "attn_type": "rope" if model.qkv_bias is True else "eva",  # with a bias of keys
        "swiglu_mlp": model.mlp == "swiglu",
        "scale_mlp": model.mlp_norm,
        "scale_attn_inner": model.attn_norm,
        "num_reg_tokens": model.registers,
        "no_embed_class": True,
        "use_abs_pos_emb": model.pos_embed != "none",
        "use_rot_pos_emb": True,
        "rope_type": "dinov3" if model.rope == "dinov3" else "cat",
        "rope_temperature": rope_base_of(model),
        "rope_rotate_half": model.rope == "dinov3",
        "use_pre_transformer_norm": model.pre_norm,
        "use_fc_norm": pooled,
        "use_post_transformer_norm": not pooled,
    }
    if model.rope_grid is not None:
        told["ref_feat_shape"] = [model.rope_grid] * 2
    return name, {**_EVA, **usual}, told

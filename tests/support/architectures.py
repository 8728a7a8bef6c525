"""Tiny ViTs of every family, by timm, and settings of a recipe's model."""

from typing import Any

import timm
import torch

_SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}

# Name in timm → side of its images, and what else.
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_small_patch14_dinov2": (56, {}),
    "vit_small_patch14_reg4_dinov2": (56, {}),
    "vit_giant_patch14_reg4_dinov2": (56, {}),
    "vit_small_patch16_dinov3": (64, {"global_pool": "token"}),
    "vit_small_patch16_dinov3_qkvb": (64, {"global_pool": "token"}),
    "vit_small_plus_patch16_dinov3": (64, {}),
    "eva_giant_patch14_224": (56, {}),
    "eva02_small_patch14_224": (56, {}),
    "eva02_base_patch14_224": (56, {"global_pool": "token"}),
    "eva02_base_patch16_clip_224": (64, {}),
    "vit_medium_patch16_rope_reg1_gap_256": (64, {}),
    "deit3_small_patch16_224": (64, {}),
    "vit_base_patch16_clip_224": (64, {}),
    "vit_base_patch16_clip_quickgelu_224": (64, {}),
    "vit_base_patch16_siglip_gap_224": (64, {"act_layer": "gelu_tanh"}),
    "vit_small_patch8_224": (32, {}),
}

# What a recipe's model can be told, in the combinations of published ViTs.
SETTINGS: dict[str, dict[str, Any]] = {
    "reg4": {"registers": 4, "layer_scale": 0.1},
    "dinov3": {
        "pos_embed": "none", "rope": "dinov3", "registers": 4, "layer_scale": 0.1,
        "qkv_bias": False, "norm_eps": 1e-5,
    },
    "eva02": {
        "rope": "eva02", "rope_grid": 16, "mlp": "swiglu", "mlp_norm": True, "attn_norm": True,
        "qkv_bias": "qv", "pool": "mean", "cls_token": True, "final_norm": "pooled",
    },
    "mean": {"pool": "mean", "mlp": "gelu-tanh"},
    "clip": {"pre_norm": True, "patch_bias": False, "mlp": "quick-gelu", "norm_eps": 1e-5},
    "normed": {"qk_norm": True, "pool": "mean", "registers": 1, "rope": "eva02"},
}  # fmt: skip


def tiny(name: str) -> Any:
    """A ViT of a family with weights that hide nothing, in evaluation mode."""
    side, changes = FAMILIES[name]
    torch.manual_seed(0)
    options = {**_SMALL, "img_size": side, "dynamic_img_size": True, **changes}
    vit = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit

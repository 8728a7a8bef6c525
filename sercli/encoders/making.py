"""What an encoder is made of, by the settings of a recipe's model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import GluMlp, Mlp, QuickGELU
from torch import nn

from sercli.actions import grid_of
from sercli.encoders.blocks import QueryValueBias, ViTBlock
from sercli.encoders.rotary import RotaryPositions
from sercli.encoders.sizes import Size, mlp_width_of, rope_base_of, size_of
from sercli.errors import UserError
from sercli.recipe.model import MlpKind, Model

ACTIVATIONS: dict[MlpKind, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu-tanh": functools.partial(nn.GELU, approximate="tanh"),
    "quick-gelu": QuickGELU,
    "swiglu": nn.SiLU,
}


def parts_of(model: Model, *, image_size: int, cls_after: int) -> dict[str, Any]:
    """The arguments of `Encoder` for a recipe's model.

    Args:
        model: Its settings.
        image_size: Side of the images that its positions are for, pixels.
        cls_after: Block after which [CLS] joins, if there is one.

    Raises:
        UserError: Unknown name, or sizes that do not fit.
    """
    size = size_of(model)
    width, depth = size.width, size.depth
    grid = grid_of((image_size, image_size), model.patch_size)
    if not 0 <= cls_after < depth:
        raise UserError(
            f"model.cls_after {cls_after}", f"it must be in 0…{depth - 1} ({depth} blocks)"
        )
    pooled = model.final_norm == "pooled"
    norm = _norm(model)
    return {
        "patch_embed": nn.Conv2d(
            3, width, model.patch_size, stride=model.patch_size, bias=model.patch_bias
        ),
        "blocks": [_block(model, size) for _ in range(depth)],
        "norm": nn.Identity() if pooled else norm(width),
        "fc_norm": norm(width) if pooled else None,
        "norm_pre": norm(width) if model.pre_norm else None,
        "pos_embed": None if model.pos_embed == "none" else _empty(grid[0] * grid[1], width),
        "cls_token": _empty(1, width) if model.has_cls else None,
        "reg_token": _empty(model.registers, width) if model.registers else None,
        "grid": grid,
        "patch_size": model.patch_size,
        "cls_after": cls_after,
        "pools_mean": model.pool == "mean",
        "init": model.init,
        "fixed_positions": model.pos_embed == "sincos",
        "pos_resize": model.pos_resize,
        "rope": _rotary(model, size),
    }


def _empty(number: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, number, width))


def _norm(model: Model) -> Callable[[int], nn.Module]:
    return functools.partial(nn.LayerNorm, eps=model.norm_eps)


def _rotary(model: Model, size: Size) -> RotaryPositions | None:
    if model.rope is None:
        return None
    head_dim = size.width // size.num_heads
    return RotaryPositions(
        model.rope, head_dim=head_dim, base=rope_base_of(model), grid=model.rope_grid
    )


def _block(model: Model, size: Size) -> ViTBlock:
    hidden = mlp_width_of(model, size.width)

    def mlp(*, hidden_features: int, **options: Any) -> Any:
        del hidden_features  # a product of floats, which may be rounded down
        if model.mlp == "swiglu":  # what is multiplied by the gate, and the gate in front of it
            return GluMlp(hidden_features=2 * hidden, gate_last=False, **options)
        return Mlp(hidden_features=hidden, **options)

    block = ViTBlock(
        size.width,
        size.num_heads,
        qkv_bias=model.qkv_bias is True,
        qk_norm=model.qk_norm,
        scale_attn_norm=model.attn_norm,
        scale_mlp_norm=model.mlp_norm,
        init_values=model.layer_scale,
        norm_layer=_norm(model),
        act_layer=ACTIVATIONS[model.mlp],
        mlp_layer=mlp,
    )
    if model.qkv_bias == "qv":
        block.attn.qkv = QueryValueBias(size.width, size.width)
    return block

"""An encoder as the settings of a recipe's model, by which one like it can be built and trained."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, GluMlp, LayerScale, Mlp
from torch import nn

from sercli.encoders.blocks import QueryValueBias, ViTBlock
from sercli.encoders.making import ACTIVATIONS
from sercli.encoders.sizes import OTHER, SIZES, Size, mlp_width_of, rope_base_of, size_of
from sercli.encoders.timm_weights import create_timm
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.model import ARCHITECTURE, MlpKind, Model


def settings_of_timm(name: str) -> dict[str, Any]:
    """The settings that a ViT of timm's has, as a recipe's model says them: all of `ARCHITECTURE`.

    Args:
        name: `timm:NAME`; weights play no part.

    Raises:
        UserError: timm knows no such model, or there are no settings for something in it.
    """
    with torch.device("meta"):
        vit = create_timm(name, random_init=True, num_classes=0)
    try:
        model = model_of(Encoder.from_timm(vit))
    except UserError as error:
        raise UserError(f"model.name {name}: {error}") from error
    size = size_of(model)
    return {key: getattr(model, key) for key in sorted(ARCHITECTURE)} | vars(size)


class _Strange(Exception):
    """Something that no setting says; its text is what."""


def model_of(encoder: Encoder) -> Model:
    """The settings of an encoder, of which `Encoder.from_model` builds one like it.

    That one has the same tensors by the same names, and computes the same of them. After which
    block [CLS] joins is left open, as it is an argument there.

    Raises:
        UserError: There are no settings for something in it: it cannot be trained.
    """
    try:
        settings = _settings(encoder)
    except _Strange as strange:
        raise UserError(
            f"this encoder cannot be trained: {strange}",
            "it has to be one that the settings of a recipe's model describe",
        ) from None
    usual = Model.model_fields
    model = Model(**{key: value for key, value in settings.items() if value != usual[key].default})
    with torch.device("meta"):
        side = encoder.grid[0] * encoder.patch_size
        again = Encoder.from_model(model, image_size=side, cls_after=encoder.cls_after or 0)
    expected = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert expected == {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    return model


# Settings that no tensor's name or shape shows, beside heads and what is told of positions.
HIDDEN = ("norm_eps", "mlp", "rope", "rope_base", "rope_grid", "pool")


def hidden_settings(encoder: Encoder) -> dict[str, Any]:
    """Of `HIDDEN`, those that are not the usual ones; none of an encoder that has no settings."""
    try:
        settings = _settings(encoder)
    except _Strange:
        return {}
    usual = Model.model_fields
    return {
        name: settings[name]
        for name in HIDDEN
        if settings.get(name, usual[name].default) != usual[name].default
    }


def _settings(encoder: Encoder) -> dict[str, Any]:
    """Every setting, defaults too where they do not go by the name."""
    if encoder.grid[0] != encoder.grid[1]:
        raise _Strange(f"its positions are for a grid of {encoder.grid}, which is no square")
    blocks = [_block(block) for block in encoder.blocks]
    if any(block != blocks[0] for block in blocks):
        raise _Strange("its blocks are not all alike")
    block = blocks[0]
    eps = {block.pop("norm_eps")}
    eps |= {_eps(m, "a norm") for m in (encoder.norm, encoder.fc_norm, encoder.norm_pre)} - {None}
    if len(eps) > 1:
        raise _Strange(f"its norms add {' and '.join(map(str, sorted(eps)))}")
    tokens, pooled = (_eps(norm, "a norm") for norm in (encoder.norm, encoder.fc_norm))
    if (tokens is None) == (pooled is None):
        raise _Strange("it has no final norm" if tokens is None else "it has two final norms")
    size = Size(encoder.dim, encoder.depth, block.pop("num_heads"))
    name = next((name for name, known in SIZES.items() if known == size), None)
    mean = encoder.pools_mean
    has_cls = encoder.cls_token is not None
    settings = {
        "name": name or OTHER,
        **({} if name else vars(size)),
        **block,
        "patch_size": encoder.patch_size,
        "patch_bias": encoder.patch_embed.proj.bias is not None,
        "norm_eps": eps.pop(),
        "pre_norm": not isinstance(encoder.norm_pre, nn.Identity),
        "registers": 0 if encoder.reg_token is None else encoder.reg_token.shape[1],
        "pool": "mean" if mean else "cls",
        "cls_token": has_cls if has_cls == mean else None,
        "final_norm": "pooled" if tokens is None and mean else "tokens",
        "pos_embed": _positions(encoder),
        "pos_resize": encoder.pos_resize,
        "init": encoder.init,
    }
    if tokens is None and not mean:
        raise _Strange("its last norm is behind pooling, of which there is none")
    if encoder.rope is not None:
        settings |= {"rope": encoder.rope.kind, "rope_grid": encoder.rope.grid}
        default = rope_base_of(Model(rope=encoder.rope.kind))
        settings["rope_base"] = None if encoder.rope.base == default else encoder.rope.base
    if settings["mlp_width"] == mlp_width_of(Model(mlp=settings["mlp"]), encoder.dim):
        settings["mlp_width"] = None
    return settings


def _positions(encoder: Encoder) -> str:
    if encoder.pos_embed is None:
        return "none"
    return "sincos" if encoder.fixed_positions else "learned"


def _block(block: nn.Module) -> dict[str, Any]:
    """The settings of a block, the number of heads, and what its norms add."""
    if not isinstance(block, ViTBlock):
        raise _Strange(f"its blocks are of another kind ({type(block).__name__})")
    attention: Any = block.attn
    if type(attention) is not Attention or attention.proj.bias is None:
        raise _Strange("its attention is of another kind")
    width, heads = attention.proj.out_features, attention.num_heads
    if attention.proj.in_features != width:
        raise _Strange("its heads together are not as wide as its tokens")
    scales = [_scale(scale) for scale in (block.ls1, block.ls2)]
    if scales[0] != scales[1]:
        raise _Strange("its LayerScales are not alike")
    kind, hidden = _mlp(block.mlp)
    norms = {
        "norm1": block.norm1,
        "norm2": block.norm2,
        "queries": attention.q_norm,
        "keys": attention.k_norm,
        "attention": attention.norm,
        "mlp": block.mlp.norm,
    }
    eps = {name: _eps(norm, "a norm in its blocks") for name, norm in norms.items()}
    if eps["norm1"] is None or eps["norm2"] is None:
        raise _Strange("its blocks do not norm what they take")
    if (eps["queries"] is None) != (eps["keys"] is None):
        raise _Strange("its queries are normed and its keys not, or the other way round")
    if len(added := {one for one in eps.values() if one is not None}) > 1:
        raise _Strange(f"its norms add {' and '.join(map(str, sorted(added)))}")
    bias: bool | str = attention.qkv.bias is not None
    return {
        "num_heads": heads,
        "norm_eps": added.pop(),
        "layer_scale": scales[0],
        "mlp": kind,
        "mlp_width": hidden,
        "mlp_norm": eps["mlp"] is not None,
        "qk_norm": eps["queries"] is not None,
        "qkv_bias": "qv" if isinstance(attention.qkv, QueryValueBias) else bias,
        "attn_norm": eps["attention"] is not None,
    }


def _eps(norm: nn.Module, what: str) -> float | None:
    """What a LayerNorm adds to the variance; None where there is no norm."""
    if isinstance(norm, nn.Identity):
        return None
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        raise _Strange(f"{what} is no LayerNorm with weight and bias ({type(norm).__name__})")
    return float(norm.eps)


def _scale(scale: Any) -> float | None:
    if isinstance(scale, nn.Identity):
        return None
    if type(scale) is not LayerScale:
        raise _Strange(f"a {type(scale).__name__} stands in its blocks")
    return float(scale.init_values)


def _mlp(mlp: Any) -> tuple[MlpKind, int]:
    """Its kind, and how wide it is inside."""
    known: dict[str, MlpKind] = {_signature(made()): kind for kind, made in ACTIVATIONS.items()}
    known |= {"GELUTanh": "gelu-tanh"}
    kind = known.get(_signature(mlp.act)) if type(mlp) in (Mlp, GluMlp) else None
    gated = type(mlp) is GluMlp and not mlp.gate_last
    if kind is None or gated != (kind == "swiglu") or (type(mlp) is GluMlp and not gated):
        raise _Strange(f"its MLP ({type(mlp).__name__}) is of another kind")
    if mlp.fc1.bias is None or mlp.fc2.bias is None:
        raise _Strange("its MLP has no bias")
    return kind, int(mlp.fc2.in_features)


def _signature(activation: nn.Module) -> str:
    """An activation by its class and what it is told."""
    told = getattr(activation, "approximate", "none")
    return type(activation).__name__ + ("" if told == "none" else f" {told}")

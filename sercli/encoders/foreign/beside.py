"""What lies beside a file of weights, as folders of Hugging Face's Hub have it.

`config.json` is timm's or that of transformers, `open_clip_config.json` open_clip's, and
`preprocessor_config.json` has the mean and std of transformers' models. They say what no tensor
shows: heads, what norms add, which GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from sercli.encoders.foreign.layouts import CLIPS, IMAGENET, SIGLIPS, Colours
from sercli.encoders.foreign.names import Family
from sercli.errors import UserError
from sercli.runs.reading import MIB, parse_json, read_bytes, shown
from sercli.runs.stored import Stored, first_problem

# By the name of a file of weights: the file beside it that says what it is.
_FILES = {
    "model.safetensors": "config.json",
    "pytorch_model.bin": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
    "open_clip_pytorch_model.bin": "open_clip_config.json",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick-gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
}
_Side = Annotated[int, Field(ge=1, le=1 << 14)]
_Colour = tuple[float, float, float]
_M = TypeVar("_M", bound=Stored)


@dataclass(frozen=True)
class Beside:
    """What it says; None where it does not.

    Attributes:
        family: Whose names the weights have.
        named: The model that it says it is, for messages.
        timm: Its name in timm, which knows the rest.
        told: What timm is told of it beside the name.
        num_heads, width, depth, patch_size, image_size: Of that model.
        mean, std: Normalisation of its input.
        hidden: Settings of the model that no tensor shows.
    """

    family: Family
    named: str | None = None
    timm: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    width: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    image_size: int | None = None
    mean: _Colour | None = None
    std: _Colour | None = None
    hidden: Mapping[str, Any] = field(default_factory=dict)


class _Timm(Stored):
    architecture: str
    pretrained_cfg: Mapping[str, Any] = {}
    model_args: Mapping[str, Any] = {}


class _OpenClipsTower(Stored):
    timm_model_name: str | None = None
    width: Annotated[int, Field(ge=1)] = 768
    layers: int | tuple[int, ...] = 12
    head_width: Annotated[int, Field(ge=1)] = 64
    patch_size: int | None = None
    image_size: int | tuple[int, ...] = 224
    pool_type: str = "tok"
    final_ln_after_pool: bool = False
    act_kwargs: Mapping[str, Any] | None = None
    norm_kwargs: Mapping[str, Any] | None = None
    scaled_cosine_attn: bool = False


class _OpenClipsModel(Stored):
    vision_cfg: _OpenClipsTower
    quick_gelu: bool = False


class _OpenClip(Stored):
    model_cfg: _OpenClipsModel
    preprocess_cfg: Mapping[str, Any] = {}


class _Transformers(Stored):
    """A model of transformers' as it says it; all defaults are those of its classes."""

    model_type: Literal[
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "siglip_vision_model",
        "vit",
        "vit_mae",
        "ijepa",
    ]
    hidden_size: _Side
    num_hidden_layers: _Side
    num_attention_heads: _Side
    patch_size: _Side | None = None
    image_size: _Side | None = None
    hidden_act: str
    layer_norm_eps: Annotated[float, Field(gt=0)]
    rope_theta: float = 100.0


_USUAL: dict[str, dict[str, Any]] = {
    "dinov2": {"layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6},
    "dinov3_vit": {
        "layer_norm_eps": 1e-5,
        "hidden_size": 384,
        "num_attention_heads": 6,
    },
    "clip_vision_model": {
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
    },
    "siglip_vision_model": {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
# Both towers in one model: the vision's settings are a part of its own.
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
_COLOURS: dict[str, Colours] = {
    "clip_vision_model": CLIPS,
    "siglip_vision_model": SIGLIPS,
    "vit": SIGLIPS,  # its image processor's default
}


def read_beside(path: Path) -> Beside | None:
    """What lies beside a file of weights; None: nothing, or nothing of the kind.

    Args:
        path: The file of weights.

    Raises:
        UserError: It lies there, and cannot be read or says what there is not.
    """
    if path.name not in _FILES:
        return None
    config = path.parent / _FILES[path.name]
    tree = _read(config)
    if tree is None:
        return None
    name = str(config)
    if config.name == "open_clip_config.json":
        return _of_open_clip(_typed(_OpenClip, tree, name), name)
    if "architecture" in tree:
        told = _typed(_Timm, tree, name)
        beside = Beside("timm", timm=told.architecture, told=told.model_args)
        return _with_colours(beside, told.pretrained_cfg)
    if "model_type" in tree:
        return _of_transformers(tree, name, _read(path.parent / "preprocessor_config.json") or {})
    return None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    tree = parse_json(read_bytes(path, limit=MIB), str(path))
    return tree if isinstance(tree, dict) else None


def _typed(model: type[_M], tree: Mapping[str, Any], name: str) -> _M:
    try:
        return model.model_validate(tree, strict=False)
    except ValidationError as error:
        raise UserError(f"{name}: {first_problem(error)}", "it says what weights are of") from error


def _with_colours(beside: Beside, told: Mapping[str, Any]) -> Beside:
    """The same with mean and std, where these are three numbers each."""
    pairs = (told.get("mean", told.get("image_mean")), told.get("std", told.get("image_std")))
    colours = [
        tuple(float(one) for one in colour)
        for colour in pairs
        if isinstance(colour, list | tuple)
        and len(colour) == 3
        and all(isinstance(one, int | float) and 0 <= one <= 1 for one in colour)
    ]
    if len(colours) < 2 or 0.0 in colours[1]:
        return beside
    (r, g, b), (x, y, z) = colours
    return replace(beside, mean=(r, g, b), std=(x, y, z))


def _of_open_clip(told: _OpenClip, name: str) -> Beside:
    tower = told.model_cfg.vision_cfg
    if tower.timm_model_name is not None:
        return _with_colours(Beside("timm", timm=tower.timm_model_name), told.preprocess_cfg)
    if not isinstance(tower.layers, int):
        raise UserError(
            f"{name} describes a ResNet", "a ViT is needed: ser's measures are on tokens"
        )
    strange = {
        "pool_type": tower.pool_type != "tok",
        "final_ln_after_pool": tower.final_ln_after_pool,
        "act_kwargs": bool(tower.act_kwargs),
        "scaled_cosine_attn": tower.scaled_cosine_attn,
    }
    if any(strange.values()):
        which = next(key for key, found in strange.items() if found)
        raise UserError(f"{name} has a vision_cfg.{which}", "ser computes CLIP's plain ViT only")
    sides = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,)
    eps = (tower.norm_kwargs or {}).get("eps", 1e-5)
    beside = Beside(
        "clip",
        named=name,
        num_heads=tower.width // tower.head_width,
        width=tower.width,
        depth=tower.layers,
        patch_size=tower.patch_size,
        image_size=sides[0],
        hidden={"mlp": "quick-gelu" if told.model_cfg.quick_gelu else "gelu", "norm_eps": eps},
    )
    return _with_colours(beside, told.preprocess_cfg)


def _of_transformers(tree: Mapping[str, Any], name: str, colours: Mapping[str, Any]) -> Beside:
    kind = tree["model_type"]
    if isinstance(kind, str) and kind in _TOWERS:
        vision = tree.get("vision_config")
        kind = _TOWERS[kind]
        tree = {**(vision if isinstance(vision, dict) else {}), "model_type": kind}
    usual = _USUAL.get(kind, {}) if isinstance(kind, str) else {}
    told = _typed(_Transformers, {**_DEFAULTS, **usual, **tree}, name)
    gated = tree.get("use_swiglu_ffn") or tree.get("use_gated_mlp")
    if told.hidden_act not in _ACTIVATIONS and not (gated and told.hidden_act == "silu"):
        raise UserError(
            f"{name} has the activation {shown(told.hidden_act)}",
            f"known: {', '.join(_ACTIVATIONS)}",
        )
    hidden: dict[str, Any] = {"norm_eps": told.layer_norm_eps}
    if not gated:
        hidden["mlp"] = _ACTIVATIONS[told.hidden_act]
    if told.model_type == "dinov3_vit":
        hidden |= {"rope": "dinov3", "rope_base": told.rope_theta}
    if told.model_type in ("ijepa", "siglip_vision_model"):
        hidden["pool"] = "mean"
    mean, std = _COLOURS.get(told.model_type, IMAGENET)
    beside = Beside(
        "transformers",
        named=name,
        num_heads=told.num_attention_heads,
        width=told.hidden_size,
        depth=told.num_hidden_layers,
        patch_size=told.patch_size,
        image_size=told.image_size,
        mean=mean,
        std=std,
        hidden=hidden,
    )
    return _with_colours(beside, colours)

"""What tensors are called, and how they are laid out, in timm's two classes of ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sercli.encoders.rotary import RotaryPositions
from sercli.encoders.sizes import rope_base_of, size_of
from sercli.recipe.model import Model

_BIAS = re.compile(r"(blocks\.\d+\.attn\.)qkv\.bias")
_SCALE = re.compile(r"(blocks\.\d+\.)ls([12])\.gamma")
_GATED = re.compile(r"(blocks\.\d+\.mlp\.)fc1\.(weight|bias)")


def usual_periods(model: Model) -> Tensor:
    """Those of rotary positions, as their settings say."""
    assert model.rope is not None
    size = size_of(model)
    head_dim = size.width // size.num_heads
    return RotaryPositions(model.rope, head_dim=head_dim, base=rope_base_of(model)).periods


def _slots(model: Model) -> int:
    """Places for [CLS] in a `VisionTransformer`'s positions."""
    return int(model.has_cls and not model.registers and model.pos_embed != "none")


def timm_tensors(tensors: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our tensors as timm's; where timm has a position for [CLS], or a bias of keys, it is zero."""
    found = dict(tensors)
    found.pop("rope.periods", None)
    if model.rope is None:
        if _slots(model):
            position = found["pos_embed"]
            found["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
        if model.qkv_bias == "qv":
            for name in filter(_BIAS.fullmatch, list(found)):
                query, value = found[name].chunk(2)
                found[name] = torch.cat([query, torch.zeros_like(query), value])
        return found
    separate = model.mlp == "swiglu" and model.mlp_norm
    for name in list(found):
        if match := _SCALE.fullmatch(name):
            found[f"{match[1]}gamma_{match[2]}"] = found.pop(name)
        elif model.qkv_bias == "qv" and (match := _BIAS.fullmatch(name)):
            query, value = found.pop(name).chunk(2)
            found |= {f"{match[1]}q_bias": query, f"{match[1]}v_bias": value}
        elif separate and (match := _GATED.fullmatch(name)):
            gate, value = found.pop(name).chunk(2)
            found |= {f"{match[1]}fc1_g.{match[2]}": gate, f"{match[1]}fc1_x.{match[2]}": value}
    return found


def our_tensors(tensors: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The inverse of `timm_tensors`, for any tensors: a file's, whose header says `model`."""
    found = dict(tensors)
    if model.rope is None:
        if _slots(model) and "pos_embed" in found and found["pos_embed"].ndim == 3:
            position = found["pos_embed"]
            found["pos_embed"] = position[:, 1:].contiguous()
            if "cls_token" in found and found["cls_token"].shape == position[:, :1].shape:
                found["cls_token"] = found["cls_token"] + position[:, :1]
        if model.qkv_bias == "qv":
            for name in filter(_BIAS.fullmatch, list(found)):
                parts = found[name].chunk(3)
                found[name] = torch.cat([parts[0], parts[-1]])
        return found
    for name in list(found):
        if match := re.fullmatch(r"(blocks\.\d+\.)gamma_([12])", name):
            found[f"{match[1]}ls{match[2]}.gamma"] = found.pop(name)
        for first, second, whole in (
            ("q_bias", "v_bias", "qkv.bias"),
            ("fc1_g.weight", "fc1_x.weight", "fc1.weight"),
            ("fc1_g.bias", "fc1_x.bias", "fc1.bias"),
        ):
            stem = name.removesuffix(first)
            if stem != name and stem + second in found:
                pair = [found.pop(stem + first), found.pop(stem + second)]
                if pair[0].shape == pair[1].shape and pair[0].ndim:
                    found[stem + whole] = torch.cat(pair)
    patches = found.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim and patches.shape[0] == size_of(model).width:
        found["rope.periods"] = usual_periods(model)
    return found

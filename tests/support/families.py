"""ViTs of the families that others pretrain: built by timm, at random, and saved as they save.

`authors_state` writes a ViT of timm's under the names of the family's own code, the inverse of what
timm does when it reads their files. Outputs of that code itself are in `golden/encoders`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor, nn

NARROW = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@dataclass(frozen=True)
class Family:
    """One of them.

    Attributes:
        timm: What timm calls it.
        patch: Side of a patch, pixels.
        hints: What its authors' file does not say, as `read_encoder` takes it.
        prefix: Tokens before those of patches.
        places: Patches a side that it is for.
    """

    timm: str
    patch: int
    hints: Mapping[str, Any] = field(default_factory=dict)
    prefix: int = 1
    places: int = 14

    def sides(self, *, narrow: bool) -> tuple[int, tuple[int, int]]:
        """Its own side, and those of an image of another size, pixels."""
        own = 4 if narrow else self.places
        return own * self.patch, (3 * self.patch, 5 * self.patch)

    def options(self, *, narrow: bool) -> dict[str, Any]:
        """What timm is told: its size, and to take images of all sizes."""
        side, _ = self.sides(narrow=narrow)
        told = {"img_size": side, "dynamic_img_size": True, "num_classes": 0}
        return {**told, **(NARROW if narrow else {})}

    def heads(self, *, narrow: bool) -> dict[str, int]:
        """What has to be said of a narrow one, whose number of heads nobody else has."""
        return {"num_heads": NARROW["num_heads"]} if narrow else {}


FAMILIES = {
    "dinov2": Family("vit_small_patch14_dinov2", 14, places=37),
    "dinov2-reg4": Family("vit_small_patch14_reg4_dinov2", 14, prefix=5, places=37),
    "dinov3": Family("vit_small_patch16_dinov3", 16, prefix=5, places=16),
    "clip": Family("vit_base_patch16_clip_quickgelu_224", 16, hints={"activation": "quick-gelu"}),
    "deit-iii": Family("deit3_small_patch16_224", 16),
}


def built(family: Family, *, narrow: bool = True, seed: int = 0) -> Any:
    """timm's model with weights at random, none of them so small that it would not be missed."""
    vit: nn.Module = timm.create_model(family.timm, **family.options(narrow=narrow)).eval()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.copy_(_drawn(name, parameter, draws))
    return vit


def _drawn(name: str, parameter: Tensor, draws: torch.Generator) -> Tensor:
    normal = torch.randn(parameter.shape, generator=draws)
    if "gamma" in name:
        return 0.2 + 0.05 * normal
    if name.endswith("weight") and parameter.ndim == 1:
        return 1 + 0.1 * normal
    if name.endswith("weight"):
        return normal / parameter[0].numel() ** 0.5
    return (0.1 if parameter.ndim == 1 else 0.5) * normal


def hub_folder(family: Family, vit: Any, folder: Path, *, narrow: bool = True) -> Path:
    """What timm's own saver writes for the Hub."""
    told = {k: v for k, v in family.options(narrow=narrow).items() if k != "num_classes"}
    save_for_hf(vit, str(folder), model_args=told, safe_serialization=True)
    return folder


def authors_file(name: str, vit: Any, path: Path) -> Path:
    """What the family's own code saves."""
    torch.save(authors_state(name, vit), path)
    return path


def authors_state(name: str, vit: Any) -> dict[str, Any]:
    """The same weights as the family's own code has them, around them what it puts there."""
    state = {key: value.detach().clone() for key, value in vit.state_dict().items()}
    if name.startswith("dinov2"):
        return _dinov2(state)
    return {"dinov3": _dinov3, "clip": _clip, "deit-iii": _deit}[name](state)


def _dinov2(state: dict[str, Tensor]) -> dict[str, Any]:
    """A bare file; with registers, positions have a place for [CLS], and none for them."""
    width = state["cls_token"].shape[-1]
    if "reg_token" in state:
        place = 0.3 * torch.randn(1, 1, width, generator=torch.Generator().manual_seed(1))
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - place
    return {"mask_token": torch.zeros(1, width), **state}


def _dinov3(state: dict[str, Tensor]) -> dict[str, Any]:
    """A bare file, with the periods of its rotary positions and a mask of the bias of keys."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        new = re.sub(r"gamma_([12])", r"ls\1.gamma", key).replace("reg_token", "storage_tokens")
        out[new] = value
        if key.endswith("attn.qkv.weight"):
            stem, width = key.removesuffix("weight"), value.shape[1]
            out[f"{stem}bias"] = torch.zeros(3 * width)
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            out[f"{stem}bias_mask"] = mask
    width = state["cls_token"].shape[-1]
    heads = NARROW["num_heads"] if width == NARROW["embed_dim"] else 6
    quarter = width // heads // 4
    periods = 100.0 ** (torch.arange(quarter).double() / quarter)
    out["rope_embed.periods"] = periods.float()
    return {**out, "mask_token": torch.zeros(1, width)}


def _clip(state: dict[str, Tensor]) -> dict[str, Any]:
    """OpenAI's tower for images beside one for text, whose layers have the same names."""
    swaps = (
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"),
        ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), (".norm", ".ln_"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    )  # fmt: skip
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "cls_token":
            out["visual.class_embedding"] = value[0, 0].clone()
            continue
        new = re.sub(r"^norm\.", "ln_post.", key)
        for ours, theirs in swaps:
            new = new.replace(ours, theirs)
        out[f"visual.{new}"] = value[0].clone() if key == "pos_embed" else value
    width = state["cls_token"].shape[-1]
    out["visual.proj"] = torch.randn(width, 16)
    text = {
        key.removeprefix("visual."): torch.randn(value.shape)
        for key, value in out.items()
        if ".resblocks." in key
    }
    beside = {
        "positional_embedding": torch.randn(7, width),
        "text_projection": torch.randn(width, 16),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(11, width),
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
    }
    return {**out, **text, **beside}


def _deit(state: dict[str, Tensor]) -> dict[str, Any]:
    """The model of its training script, with a head; LayerScale is a tensor of the block."""
    width = state["cls_token"].shape[-1]
    renamed = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): v for key, v in state.items()}
    head = {"head.weight": torch.randn(10, width), "head.bias": torch.zeros(10)}
    return {"model": {**renamed, **head}}


@torch.no_grad()
def timms_outputs(vit: Any, images: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """[CLS] [B, D] and patch tokens [B, N, D] after the final norm, by timm's own pass."""
    tokens = vit.eval().forward_features(images)
    return tokens[:, 0], tokens[:, prefix:]


@torch.no_grad()
def our_outputs(encoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The same by ours."""
    last = encoder.depth
    features = encoder.eval()(images, (last,))
    patches = features.grids[last].flatten(2).transpose(1, 2)
    return encoder.norm(features.cls_tokens[last]), encoder.norm(patches)

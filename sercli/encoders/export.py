"""Encoders as files that timm loads, checked there before they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from sercli import __version__
from sercli.encoders.asked import require_free
from sercli.encoders.files import safetensors_bytes
from sercli.encoders.foreign import EXPORT_LAYOUT
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.errors import RunFailed, UserError
from sercli.runs.files import replacing_file, write_atomic

TOLERANCE = 1e-5


# timm's own sizes at 224 px: (patch, width, depth, heads).
_TIMM_NAMES = {
    (16, 192, 12, 3): "vit_tiny_patch16_224",
    (8, 384, 12, 6): "vit_small_patch8_224",
    (16, 384, 12, 6): "vit_small_patch16_224",
    (32, 384, 12, 6): "vit_small_patch32_224",
    (8, 768, 12, 12): "vit_base_patch8_224",
    (16, 768, 12, 12): "vit_base_patch16_224",
    (32, 768, 12, 12): "vit_base_patch32_224",
    (14, 1024, 24, 16): "vit_large_patch14_224",
    (16, 1024, 24, 16): "vit_large_patch16_224",
    (32, 1024, 24, 16): "vit_large_patch32_224",
    (14, 1280, 32, 16): "vit_huge_patch14_224",
}
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: Where the weights are now.
        difference: Largest difference between timm's output and ours, over all tokens.
        tensors: How many tensors it holds.
        code: Python that loads it.
    """

    path: Path
    difference: float
    tensors: int
    code: str


def export(
    loaded: LoadedEncoder, path: Path, *, facts: Mapping[str, str], force: bool = False
) -> Exported:
    """Write an encoder for timm, load it with timm, and compare the outputs.

    Args:
        loaded: The encoder as loaded, with where it is from.
        path: Where the weights go, a name in *.safetensors.
        facts: What else goes into the header.
        force: Replace a file that is there; it stays if the new one is not right.

    Raises:
        UserError: The place is taken, or timm has no such ViT.
        RunFailed: timm's output differs from ours by more than 1e-5; no file is written.
    """
    require_free(path, force=force)
    encoder = loaded.encoder
    name, options = timm_model(encoder)
    tensors = timm_tensors(encoder, options)
    config = timm_config(loaded)
    header = {
        **facts,
        "format": "pt",
        "layout": EXPORT_LAYOUT,
        "writer": f"ser {__version__}",
        "architecture": name,
        "arguments": json.dumps(options),
        "pretrained_cfg": json.dumps(config),
        "num_heads": str(loaded.num_heads),
        "cls_after": str(encoder.cls_after),
        "positions": encoder.pos_resize,
        "image_size": str(loaded.image_size),
        "mean": json.dumps(loaded.mean),
        "std": json.dumps(loaded.std),
        "source": loaded.source,
        "weights": loaded.key,
    }
    data = safetensors_bytes(tensors, header)
    with replacing_file(path) as draft:
        write_atomic(draft, lambda file: file.write(data))
        model = _in_timm(draft, name, {**options, "pretrained_cfg_overlay": config})
        difference = _difference(encoder, model)
        if not difference <= TOLERANCE:
            raise RunFailed(
                f"timm's output of {path} differs from ours by {difference:.2g}; "
                f"at most {TOLERANCE:g} is allowed; nothing is written"
            )
    code = loading_code(path, name, {**options, "pretrained_cfg_overlay": config})
    return Exported(path, difference, len(tensors), code)


def timm_model(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """The timm model for an encoder, and the arguments beyond its defaults (JSON values).

    Raises:
        UserError: timm's plain ViT cannot be like it.
    """
    heads = {
        int(module.num_heads)
        for module in encoder.modules()
        if isinstance(module, timm.layers.Attention)
    }
    names = encoder.state_dict().keys()
    plain = (
        len(heads) == 1
        and encoder.cls_token is not None
        and not encoder.pools_mean
        and isinstance(encoder.norm_pre, nn.Identity)
        and isinstance(encoder.fc_norm, nn.Identity)
        and encoder.grid[0] == encoder.grid[1]
    )
    if not plain:
        raise UserError(
            "this encoder is no plain ViT with a [CLS] token", "only those are exported"
        )
    sizes = (encoder.patch_size, encoder.dim, encoder.depth, heads.pop())
    delayed = bool(encoder.cls_after)
    default = (16, 384, 12, 6)
    name = "ser_vit" if delayed else _TIMM_NAMES.get(sizes, _TIMM_NAMES[default])
    options: dict[str, Any] = {"cls_after": encoder.cls_after} if delayed else {}
    if delayed and encoder.pos_resize != "bicubic":
        options["pos_resize"] = encoder.pos_resize
    if delayed or sizes not in _TIMM_NAMES:
        options.update(
            (key, value)
            for key, value, usual in zip(_SIZES, sizes, default, strict=True)
            if value != usual
        )
    image_size = encoder.grid[0] * encoder.patch_size
    hidden = encoder.get_parameter("blocks.0.mlp.fc1.weight").shape[0]
    if image_size != 224:
        options["img_size"] = image_size
    if hidden != 4 * encoder.dim:
        options["mlp_ratio"] = (hidden + 0.5) / encoder.dim  # timm rounds down
    if "blocks.0.attn.qkv.bias" not in names:
        options["qkv_bias"] = False
    if "blocks.0.ls1.gamma" in names:
        options["init_values"] = 1e-5
    if encoder.reg_token is not None:
        options |= {"reg_tokens": int(encoder.reg_token.shape[1]), "no_embed_class": True}
    return name, {**options, "num_classes": 0}


def timm_config(loaded: LoadedEncoder) -> dict[str, Any]:
    """What timm is told of the images, as its `pretrained_cfg` calls it (JSON values).

    timm takes it from whoever creates the model, never from a file of weights; what it would take
    otherwise is of the model whose name is used: other sizes, and other means.
    """
    side = loaded.encoder.grid[0] * loaded.encoder.patch_size
    return {
        "input_size": [3, side, side],
        "interpolation": "bicubic",
        "crop_pct": 224 / 256,  # as ser evaluates
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "num_classes": 0,
    }


def timm_tensors(encoder: Encoder, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our tensors as timm's; where timm has a position for [CLS] it is zero."""
    tensors = dict(encoder.state_dict())
    if not encoder.cls_after and not options.get("no_embed_class"):
        position = tensors["pos_embed"]
        tensors["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return tensors


def loading_code(path: Path, name: str, options: Mapping[str, Any]) -> str:
    """One line of Python that loads an exported file."""
    modules = "timm, sercli" if name == "ser_vit" else "timm"
    arguments = "".join(f"{key}={value!r}, " for key, value in options.items())
    return (
        f"import {modules}; "
        f'model = timm.create_model("{name}", {arguments}checkpoint_path="{path}")'
    )


def _in_timm(path: Path, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model that timm makes of a file."""
    try:
        return cast(nn.Module, timm.create_model(name, checkpoint_path=str(path), **arguments))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"timm's {name} does not take these weights ({reason})") from error


@torch.no_grad()
def _difference(encoder: Encoder, model: Any) -> float:
    """Largest difference between timm's tokens after the final norm and ours, on random images."""
    model = model.eval()
    size = encoder.grid[0] * encoder.patch_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    training = encoder.training
    ours = encoder.eval()(images, (encoder.depth,))
    encoder.train(training)
    patches = encoder.norm(ours.grids[encoder.depth].flatten(2).transpose(1, 2))
    theirs = model.forward_features(images)
    largest = torch.stack(
        [
            (model(images) - ours.cls).abs().max(),
            (theirs[:, 0] - ours.cls).abs().max(),
            (theirs[:, -patches.shape[1] :] - patches).abs().max(),
        ]
    ).max()
    return float(largest)

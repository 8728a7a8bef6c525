"""A state dict of `torchvision.models.VisionTransformer`, a .pth file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sercli.encoders.export.subject import Opened, Outputs, Prepared, Subject
from sercli.encoders.export.timm_tensors import timm_tensors
from sercli.encoders.sizes import mlp_width_of, size_of
from sercli.errors import UserError
from sercli.recipe.model import Model
from sercli.runs.files import write_atomic

_NAMES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"^cls_token$", "class_token"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"^norm\.", "encoder.ln."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
    )
)


def prepare(subject: Subject) -> TorchvisionFile:
    """The encoder as torchvision's.

    Raises:
        UserError: torchvision's ViT cannot be like it.
    """
    if strange := _strange(subject.model, subject.cls_after):
        raise UserError(
            f"torchvision's ViT does not have {', '.join(strange)}",
            "it is the plain ViT with a [CLS] from the start",
            "take --format timm, hf or onnx",
        )
    return TorchvisionFile(subject)


def _strange(model: Model, cls_after: int) -> list[str]:
    """What torchvision's ViT is not, a few words each."""
    facts = {
        f"a [CLS] that joins after block {cls_after}": cls_after,
        f"a pool by {model.pool}": model.pool != "cls",
        "registers": model.registers,
        "LayerScale": model.layer_scale is not None,
        f"rotary positions ({model.rope})": model.rope,
        "blocks without added positions": model.pos_embed == "none",
        f"MLPs of kind {model.mlp}": model.mlp != "gelu",
        "norms of queries and keys": model.qk_norm,
        "norms inside attention or MLPs": model.attn_norm or model.mlp_norm,
        "maps to queries, keys and values without bias": not model.qkv_bias,
        "a patch embedding without bias": not model.patch_bias,
        "a norm before its blocks": model.pre_norm,
        f"norms with ε = {model.norm_eps:g}": model.norm_eps != 1e-6,
    }
    return [words for words, true in facts.items() if true]


class TorchvisionFile(Prepared):
    """A state dict, under torchvision's names.

    Attributes:
        options: What its `VisionTransformer` is told.
        state: The tensors.
    """

    def __init__(self, subject: Subject) -> None:
        model = subject.model
        size = size_of(model)
        self.options: dict[str, int] = {
            "image_size": subject.loaded.image_size,
            "patch_size": model.patch_size,
            "num_layers": size.depth,
            "num_heads": size.num_heads,
            "hidden_dim": size.width,
            "mlp_dim": mlp_width_of(model, size.width),
        }
        like_timms = timm_tensors(subject.encoder.state_dict(), model)
        self.state: dict[str, Tensor] = {
            _renamed(name): tensor.detach().clone() for name, tensor in like_timms.items()
        }
        self.way = subject.encoder.pos_resize

    @property
    def reader(self) -> str:
        return "torchvision"

    @property
    def remarks(self) -> tuple[str, ...]:
        mean = "A file of torchvision's has no place for the mean and std of its images"
        if self.way == "bicubic-aligned":
            return (f"{mean}.",)
        return (
            f"{mean}, nor for how positions are resampled at another size: torchvision does it by "
            f"bicubic-aligned, this encoder by {self.way}.",
        )

    def write(self, draft: Path) -> None:
        held = io.BytesIO()
        torch.save(self.state, held)
        write_atomic(draft, lambda file: file.write(held.getbuffer()))

    def opened(self, draft: Path) -> Opened:
        model: Any = torchvision.models.VisionTransformer(**self.options)
        model.heads = nn.Identity()
        try:
            model.load_state_dict(torch.load(draft, weights_only=True))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"torchvision does not take these weights ({reason})") from error
        model.eval()

        @torch.no_grad()
        def outputs(images: Tensor) -> Outputs:
            tokens = model._process_input(images)
            whole = torch.cat([model.class_token.expand(len(images), -1, -1), tokens], dim=1)
            return Outputs(model(images), model.encoder(whole)[:, 1:])

        return outputs

    def code(self, path: Path) -> str:
        told = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return (
            f"import torch, torchvision; model = torchvision.models.VisionTransformer({told}); "
            "model.heads = torch.nn.Identity(); "
            f"model.load_state_dict(torch.load({str(path)!r}, weights_only=True))"
        )


def _renamed(name: str) -> str:
    for ours, theirs in _NAMES:
        name = ours.sub(theirs, name)
    return name

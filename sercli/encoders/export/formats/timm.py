"""A .safetensors file for `timm.create_model`, and how timm's models are built and asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from sercli import __version__
from sercli.encoders.export.subject import Opened, Outputs, Prepared, Subject
from sercli.encoders.export.timm_naming import OURS, TimmModel, timm_model
from sercli.encoders.export.timm_tensors import timm_tensors
from sercli.encoders.files import safetensors_bytes
from sercli.encoders.foreign import EXPORT_LAYOUT
from sercli.errors import UserError
from sercli.runs.files import write_atomic


def prepare(subject: Subject) -> TimmFile:
    """The encoder as timm's."""
    return TimmFile(subject)


class TimmFile(Prepared):
    """A .safetensors file, whose header says whose the encoder is.

    Attributes:
        subject: What is exported.
        timms: Which model of timm's it is.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        rope = subject.encoder.rope
        self.timms: TimmModel = timm_model(
            subject.model,
            image_size=subject.loaded.image_size,
            cls_after=subject.cls_after,
            periods=None if rope is None else rope.periods,
        )
        own = subject.encoder.state_dict()
        self.tensors: dict[str, Tensor] = (
            dict(own) if self.timms.name == OURS else timm_tensors(own, subject.model)
        )

    @property
    def reader(self) -> str:
        return "timm"

    @property
    def remarks(self) -> tuple[str, ...]:
        encoder, timms = self.subject.encoder, "bicubic-antialias"
        if self.timms.name == OURS:
            return (
                f"timm's own ViTs do not have {self.timms.reason}: it is ser_vit, which "
                "`import sercli` adds to timm.",
            )
        if encoder.pos_embed is None or encoder.pos_resize == timms:
            return ()
        return (
            f"At another size timm's ViT resamples positions by {timms}; ser, reading this file, "
            f"goes on with {encoder.pos_resize}.",
        )

    def file_bytes(self) -> bytes:
        """The tensors, and in the header all that is known of them."""
        subject = self.subject
        loaded = subject.loaded
        header = {
            **subject.header,
            "format": "pt",
            "layout": EXPORT_LAYOUT,
            "writer": f"ser {__version__}",
            "architecture": self.timms.name,
            "arguments": json.dumps(dict(self.timms.options)),
            "settings": subject.model.model_dump_json(),
            "pretrained_cfg": json.dumps(subject.input_config),
            "num_heads": str(loaded.num_heads),
            "cls_after": str(subject.cls_after),
            "positions": subject.encoder.pos_resize,
            "image_size": str(loaded.image_size),
            "mean": json.dumps(loaded.mean),
            "std": json.dumps(loaded.std),
            "source": loaded.source,
            "weights": loaded.key,
        }
        return safetensors_bytes(self.tensors, header)

    def write(self, draft: Path) -> None:
        data = self.file_bytes()
        write_atomic(draft, lambda file: file.write(data))

    def opened(self, draft: Path) -> Opened:
        return asked(created(self.timms.name, checkpoint_path=str(draft), **self._arguments()))

    def code(self, path: Path) -> str:
        arguments = "".join(f"{key}={value!r}, " for key, value in self._arguments().items())
        return (
            f"import {modules(self.timms)}; "
            f'model = timm.create_model("{self.timms.name}", {arguments}'
            f"checkpoint_path={str(path)!r})"
        )

    def _arguments(self) -> Mapping[str, Any]:
        return {**self.timms.options, "pretrained_cfg_overlay": self.subject.input_config}


def modules(timms: TimmModel) -> str:
    """What is to be imported for a model."""
    return "timm, sercli" if timms.name == OURS else "timm"


def created(name: str, **arguments: Any) -> nn.Module:
    """The model that timm makes.

    Raises:
        UserError: It does not.
    """
    try:
        return cast(nn.Module, timm.create_model(name, **arguments))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"timm {timm.__version__}'s {name} does not take these weights ({reason})"
        ) from error


def asked(model: Any) -> Opened:
    """What a model of timm's says of images."""
    model = model.eval()

    @torch.no_grad()
    def outputs(images: Tensor) -> Outputs:
        patches = (images.shape[2] // model.patch_embed.proj.kernel_size[0]) ** 2
        return Outputs(model(images), model.forward_features(images)[:, -patches:])

    return outputs

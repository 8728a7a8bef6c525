"""The chosen head, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sercli.encoders.files import read_safetensors, require_finite, safetensors_bytes
from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import Encoder, Features
from sercli.errors import UserError
from sercli.evals.linear.features import layers_of, parts_of
from sercli.runs.files import write_atomic

_FORMAT = "ser-probe-head"


@dataclass(frozen=True)
class HeadFacts:
    """What a head's file says of it.

    Attributes:
        classes: Names, in the order of the logits.
        feature_set: Name of its features.
        parts: Parts of the encoder's output that make them, in order.
        learning_rate: For 256 images.
        epoch: Epochs it was trained for.
        encoder_sha256: Of the encoder it belongs to.
        image_size: Side of an image, pixels.
        resize: Shorter side before the central crop, pixels.
        interpolation: How images are resized for it, "bicubic" or "bilinear".
        mean, std: Normalisation of the input.
        protocol_id: Of the result that it stands beside.
        partial: Whether that result is partial: trained on a part of the images, for a trial.
        warnings: What that result warns of.
    """

    classes: tuple[str, ...]
    feature_set: str
    parts: tuple[str, ...]
    learning_rate: float
    epoch: int
    encoder_sha256: str
    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    protocol_id: str
    partial: bool = False
    warnings: tuple[str, ...] = ()


class ProbeHead(nn.Module):
    """A trained linear classifier: `head(encoder(images, layers=head.layers))` gives logits.

    Args:
        facts: What is known of it.
        weight: [C, D of the feature set].
        bias: [C].
        norm: The encoder's final norm, which raw tokens pass first.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, facts: HeadFacts, weight: Tensor, bias: Tensor, norm: nn.Module) -> None:
        super().__init__()
        _require_norm(norm)
        self.facts = facts
        self.norm = norm
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.facts.classes

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to ask the encoder for."""
        return layers_of(self.facts.parts)

    @torch.no_grad()
    def forward(self, features: Features) -> Tensor:
        """Logits, float32 [B, C], of the features of an encoder asked for `layers`."""
        joined = parts_of(features, self.facts.parts, self.norm).flatten(1)
        with torch.autocast(joined.device.type, enabled=False):  # the head is float32
            return nn.functional.linear(joined, self.weight, self.bias)

    def require_encoder(self, encoder: Encoder) -> None:
        """Refuse another encoder than the one the head was trained on.

        Raises:
            UserError: Its parameters differ.
        """
        found = encoder_sha256(encoder)
        if found != self.facts.encoder_sha256:
            raise UserError(
                f"the head was trained on the encoder {self.facts.encoder_sha256[:12]}, "
                f"this one is {found[:12]}",
                "a head belongs to one encoder",
                "repeat `ser linear-eval` for this model",
            )

    def save(self, path: Path) -> None:
        """Write the head; `load_head` reads it."""
        tensors = {"weight": self.weight, "bias": self.bias}
        tensors |= {f"norm.{key}": value for key, value in self.norm.state_dict().items()}
        facts = {"format": _FORMAT} | {k: json.dumps(v) for k, v in asdict(self.facts).items()}
        if isinstance(self.norm, nn.LayerNorm):
            facts["norm_eps"] = json.dumps(self.norm.eps)
        data = safetensors_bytes(tensors, facts)
        write_atomic(path, lambda file: file.write(data))


def _require_norm(norm: nn.Module) -> None:
    plain = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    if not plain and not isinstance(norm, nn.Identity):
        raise UserError(
            f"the encoder's final norm is a {type(norm).__name__}",
            "a head can be kept with a LayerNorm (weight and bias) or with none",
        )


def load_head(path: Path) -> ProbeHead:
    """Read a head that `ser linear-eval` wrote; it is on the CPU.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(
            f"there is no probe head at {path}",
            "a linear probe of the model is needed",
            "run `ser linear-eval` first",
        )
    header, tensors = read_safetensors(path)
    require_finite(tensors, str(path))
    try:
        if header.get("format") != _FORMAT:
            raise KeyError(f"format {_FORMAT}")
        # Heads of earlier versions do not say these.
        header = {"partial": "false", "warnings": "[]", **header}
        values = {name: _value(header[name]) for name in HeadFacts.__dataclass_fields__}
        return ProbeHead(
            HeadFacts(**values), tensors["weight"], tensors["bias"], _norm_of(header, tensors)
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no probe head of ser (it lacks {error})",
            "a head that `ser linear-eval` wrote is needed",
            "name one of heads/linear-eval--*.safetensors",
        ) from error


def _value(text: str) -> Any:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value


def _norm_of(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> nn.Module:
    if "norm.weight" not in tensors:
        return nn.Identity()
    weight = tensors["norm.weight"]
    norm = nn.LayerNorm(weight.shape[0], eps=float(json.loads(header["norm_eps"])))
    norm.load_state_dict({"weight": weight, "bias": tensors["norm.bias"]})
    return norm.requires_grad_(False)

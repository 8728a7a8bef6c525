"""The chosen head, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, Json
from torch import Tensor, nn

from sercli.encoders.files import read_safetensors, require_finite, safetensors_bytes
from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import Encoder, Features
from sercli.errors import UserError
from sercli.evals.linear.features import layers_of, parts_of
from sercli.runs.files import write_atomic
from sercli.runs.stored import Stored, require

_FORMAT = "ser-probe-head"
_REMEDY = "name one of heads/linear-eval--*.safetensors, or repeat `ser linear-eval`"
_Side = Annotated[int, Field(ge=1, le=1 << 14)]
_Part = Annotated[str, Field(pattern=r"^(cls|(cls|pooled)@[0-9]{1,4})$")]
_SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Colour = Annotated[tuple[float, float, float], Field(strict=False)]  # a list of JSON


class HeadHeader(Stored):
    """What stands beside the tensors of a head: the values of `HeadFacts` as JSON, and two more."""

    format: Literal["ser-probe-head"]
    classes: Json[Annotated[tuple[str, ...], Field(strict=False, min_length=1)]]
    feature_set: Json[str]
    parts: Json[Annotated[tuple[_Part, ...], Field(strict=False, min_length=1, max_length=100)]]
    learning_rate: Json[float]
    epoch: Json[Annotated[int, Field(ge=0)]]
    encoder_sha256: Json[_SHA256]
    image_size: Json[_Side]
    resize: Json[_Side]
    interpolation: Json[Literal["bicubic", "bilinear"]]
    mean: Json[_Colour]
    std: Json[_Colour]
    protocol_id: Json[str]
    partial: Json[bool] = False  # heads of earlier versions say neither this nor the next
    warnings: Json[Annotated[tuple[str, ...], Field(strict=False)]] = ()
    norm_eps: Json[Annotated[float, Field(gt=0, le=1)]] | None = None


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
        facts, width = self.facts, self.weight.shape[1]
        deepest = max(self.layers, default=0)
        if deepest > encoder.depth or width != len(facts.parts) * encoder.dim:
            raise UserError(
                f"the head takes {', '.join(facts.parts)} of {width} numbers",
                f"the encoder has {encoder.depth} blocks, {encoder.dim} wide",
                "repeat `ser linear-eval` for this model",
            )
        first = encoder.cls_after
        early = [part for part in facts.parts if part.startswith("cls@")]
        if any(first is None or int(part[4:]) <= first for part in early):
            raise UserError(
                f"the head takes {', '.join(early)}",
                f"[CLS] joins after block {first} of this encoder",
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
    facts = require(HeadHeader, header, f"{path} is no probe head of ser that can be read", _REMEDY)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    classes, parts = len(facts.classes), len(facts.parts)
    fits = (
        weight is not None
        and bias is not None
        and weight.ndim == 2
        and weight.dtype == bias.dtype == torch.float32
        and weight.shape[0] == bias.numel() == classes
        and bias.ndim == 1
        and weight.shape[1] % parts == 0
    )
    if not fits or weight is None or bias is None:
        raise UserError(
            f"{path} is no probe head of ser that can be read: its tensors are not those of "
            f"{classes} classes and {parts} parts",
            "weight [classes, width] and bias [classes] are needed",
            _REMEDY,
        )
    values = {name: getattr(facts, name) for name in HeadFacts.__dataclass_fields__}
    return ProbeHead(HeadFacts(**values), weight, bias, _norm_of(path, facts.norm_eps, tensors))


def _norm_of(path: Path, eps: float | None, tensors: Mapping[str, Tensor]) -> nn.Module:
    if "norm.weight" not in tensors:
        return nn.Identity()
    weight, bias = tensors["norm.weight"], tensors.get("norm.bias")
    wide = tensors["weight"].shape[1]
    if eps is None or bias is None or weight.shape != bias.shape or weight.ndim != 1:
        raise UserError(
            f"{path} is no probe head of ser that can be read: its norm is not whole", "", _REMEDY
        )
    if not len(weight) or wide % len(weight):
        raise UserError(
            f"{path} is no probe head of ser that can be read: its norm is {len(weight)} wide, "
            f"its weight {wide}",
            "",
            _REMEDY,
        )
    norm = nn.LayerNorm(len(weight), eps=eps)
    norm.load_state_dict({"weight": weight, "bias": bias})
    return norm.requires_grad_(False)

"""What a file says of its encoder beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import timm
import torch
from pydantic import ConfigDict, Field, Json, TypeAdapter, ValidationError
from timm.layers import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.foreign.finding import Candidate, stored_arguments
from sercli.encoders.foreign.layouts import EXPORT_LAYOUT, UNKNOWN, Role
from sercli.errors import UserError
from sercli.recipe.schema import PosResize
from sercli.runs.reading import shown
from sercli.runs.stored import Stored, require

_Finite = Annotated[float, Field(allow_inf_nan=False)]
Colour = tuple[_Finite, _Finite, _Finite]


@dataclass(frozen=True)
class Facts:
    """What a file says of its encoder beside its tensors; None where it does not.

    Attributes:
        layout: Name of the layout, as recorded with results.
        num_heads: Attention heads.
        cls_after: Block after which [CLS] joins.
        patch_size: Side of a patch, in pixels.
        named: The model it says it is.
        width, depth: What that model has: numbers in a token, and blocks.
        role: Whose encoder it is, where the place in the file does not tell.
        mean, std: Normalisation of its input, RGB in 0…1.
        positions: How they are resampled, of an exported file.
        norm_eps: ε of its LayerNorms.
        activation: Between the two layers of its MLPs.
    """

    layout: str
    num_heads: int | None = None
    cls_after: int | None = None
    patch_size: int | None = None
    named: str | None = None
    width: int | None = None
    depth: int | None = None
    role: Role | None = None
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    positions: PosResize | None = None
    norm_eps: float = 1e-6  # of every layout in the table
    activation: type[nn.Module] = nn.GELU


def stated_facts(state: Mapping[str, Any], header: Mapping[str, str], found: Candidate) -> Facts:
    """What a file says of one of its encoders, beside the tensors.

    Args:
        state: All that the file holds, its arguments and settings too.
        header: Metadata of a safetensors file; that of `ser export` says everything.
        found: The encoder among what it holds.

    Raises:
        UserError: The header of an exported file cannot be read.
    """
    if header.get("layout") == EXPORT_LAYOUT:
        return _exported(header)
    layout = found.layout or UNKNOWN
    arguments = stored_arguments(state)
    patch_size = _number(arguments.get("patch_size"))
    name = "torchvision" if "class_token" in found.tensors and layout.name == "timm" else None
    if layout.name == "ser-authors":
        delayed = "erl" in str(arguments.get("equiv_mode", "erl"))
        layer = _number(arguments.get("equiv_layer"))
        return Facts(layout.name, None, layer if delayed else None, patch_size)
    if layout.name != "timm":
        return Facts(layout.name, patch_size=patch_size)
    said = [state.get("arch"), arguments.get("model"), arguments.get("arch")]
    for architecture in (*said, header.get("architecture")):
        if isinstance(architecture, str) and timm.is_model(architecture):
            return _of_timm(architecture, arguments, layout.name, patch_size)
    return Facts(name or layout.name, patch_size=patch_size)


def _of_timm(
    architecture: str, arguments: Mapping[str, Any], layout: str, patch_size: int | None
) -> Facts:
    """What timm knows of a model of its own that a file names."""
    with torch.device("meta"):
        vit = timm.create_model(architecture, num_classes=0)
    config = vit.pretrained_cfg or {}
    weight = vit.state_dict().get("patch_embed.proj.weight")
    block = next((module for module in vit.modules() if isinstance(module, Block)), None)
    return Facts(
        layout,
        num_heads=num_heads(vit),
        patch_size=patch_size or (None if weight is None else int(weight.shape[-1])),
        named=architecture,
        width=None if weight is None else int(weight.shape[0]),
        depth=len(vit.blocks) if isinstance(vit, VisionTransformer) else None,
        mean=_colour(arguments.get("mean") or config.get("mean"), IMAGENET_MEAN, "mean"),
        std=_colour(arguments.get("std") or config.get("std"), IMAGENET_STD, "std"),
        **({} if block is None else _inside(block)),
    )


def _inside(block: Block) -> dict[str, Any]:
    """What no tensor shows of a block: CLIP's differ from everybody else's."""
    norm, mlp = block.norm1, block.mlp
    return {
        **({"norm_eps": norm.eps} if isinstance(norm, nn.LayerNorm) else {}),
        **({"activation": type(mlp.act)} if isinstance(mlp, Mlp) else {}),
    }


class ExportHeader(Stored):
    """What `ser export` writes beside tensors, all of it text, as far as it is read again."""

    model_config = ConfigDict(strict=False)  # numbers are written as text

    num_heads: Annotated[int, Field(ge=1, le=4096)]
    cls_after: Annotated[int, Field(ge=0, le=4096)]
    weights: str
    mean: Json[Colour]
    std: Json[Colour]
    positions: PosResize = "bicubic"  # earlier ones do not say it


def _exported(header: Mapping[str, str]) -> Facts:
    told = require(ExportHeader, header, "the header of an exported file cannot be read")
    roles: dict[str, Role] = {"student": "student", "teacher": "teacher"}
    return Facts(
        EXPORT_LAYOUT,
        num_heads=told.num_heads,
        cls_after=told.cls_after,
        role=roles.get(told.weights, "encoder"),
        mean=told.mean,
        std=told.std,
        positions=told.positions,
    )


def resampling(name: str) -> PosResize:
    """A way to resample positions, by its name in a header.

    Raises:
        ValueError: There is none of that name.
    """
    known: tuple[PosResize, ...] = get_args(PosResize)
    for way in known:
        if name == way:
            return way
    raise ValueError(f"positions {name!r}")


def _colour(value: Any, otherwise: Colour, name: str) -> Colour:
    """Three numbers, if there are any."""
    if value is None:
        return otherwise
    try:
        return TypeAdapter(Colour).validate_python(value)
    except ValidationError as error:
        raise UserError(f"its {name} is {shown(value)}", "three numbers are needed") from error


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def num_heads(model: nn.Module) -> int | None:
    """Attention heads of a ViT of timm's blocks, or None where there are none of the usual kind."""
    blocks = (m for m in model.modules() if isinstance(m, timm.layers.Attention))
    first = next(blocks, None)
    return None if first is None else int(first.num_heads)

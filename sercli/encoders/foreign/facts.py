"""What a file says of its encoder beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

import timm
import torch
from pydantic import ConfigDict, Field, Json, TypeAdapter, ValidationError
from torch import nn

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.asked import Hints
from sercli.encoders.describing import HIDDEN, model_of
from sercli.encoders.foreign.beside import Beside
from sercli.encoders.foreign.finding import Candidate, stored_arguments
from sercli.encoders.foreign.layouts import (
    CLIPS,
    EXPORT_LAYOUT,
    IMAGENET,
    SATELLITES,
    SIGLIPS,
    UNKNOWN,
    Colours,
    Layout,
    Role,
)
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.model import PosResize
from sercli.runs.reading import shown
from sercli.runs.stored import Stored, require

_Finite = Annotated[float, Field(allow_inf_nan=False)]
Colour = tuple[_Finite, _Finite, _Finite]
# Layouts whose files may name a model of timm's, or be one's.
_NAMED_BY_TIMM = ("timm", "clip", "open_clip", "deit-iii", "eva02")
# As OpenAI calls its CLIPs, all of which have QuickGELU.
_OPENAIS = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
_NONE: Mapping[str, Any] = {}
# Whatever else timm is told, it takes no weights, and nothing from the network.
_WITHOUT_WEIGHTS = {"num_classes": 0, "pretrained": False, "checkpoint_path": "", "cache_dir": None}
_LARGEST = 1 << 14  # of a number that a model is told: blocks, widths, sides


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
        image_size: Side of the images it is for, where positions do not show it, in pixels.
        role: Whose encoder it is, where the place in the file does not tell.
        mean, std: Normalisation of its input, RGB in 0…1.
        positions: How they are resampled.
        hidden: Settings of the model that no tensor shows.
        refused: Why the model that it says it is cannot be read, once its tensors do not tell.
    """

    layout: str
    num_heads: int | None = None
    cls_after: int | None = None
    patch_size: int | None = None
    named: str | None = None
    width: int | None = None
    depth: int | None = None
    image_size: int | None = None
    role: Role | None = None
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    positions: PosResize | None = None
    hidden: Mapping[str, Any] | None = None
    refused: UserError | None = None


def stated_facts(
    state: Mapping[str, Any],
    header: Mapping[str, str],
    found: Candidate,
    beside: Beside | None,
    hints: Hints,
) -> Facts:
    """What a file says of one of its encoders, beside the tensors.

    Args:
        state: All that the file holds, its arguments and settings too.
        header: Metadata of a safetensors file; that of `ser export` says everything.
        found: The encoder among what it holds.
        beside: What the file that lies beside it says.
        hints: What the user says.

    Raises:
        UserError: The header of an exported file cannot be read.
    """
    if header.get("layout") == EXPORT_LAYOUT:
        return _exported(header)
    layout = found.layout or UNKNOWN
    arguments = stored_arguments(state)
    patch_size = _number(arguments.get("patch_size"))
    mean, std = _colours(found, layout)
    facts = Facts(layout.name, patch_size=patch_size, mean=mean, std=std)
    if layout.name == "ser-authors":
        delayed = "erl" in str(arguments.get("equiv_mode", "erl"))
        layer = _number(arguments.get("equiv_layer"))
        return replace(facts, cls_after=layer if delayed else None)
    said = [state.get("arch"), arguments.get("model"), arguments.get("arch")]
    said.append(header.get("architecture"))
    if hints.arch is not None and found.family != "transformers":
        return _of_timm(hints.arch, {}, facts)
    if beside is not None and beside.family == found.family:
        return _of_beside(beside, facts)
    if layout.name in _NAMED_BY_TIMM:
        for architecture in said:
            if isinstance(architecture, str) and timm.is_model(architecture):
                return _of_timm(architecture, arguments, facts)
    if found.family == "torchvision" and layout.name == "timm":
        return replace(facts, layout="torchvision")
    if layout.name == "clip" and ("input_resolution" in state or said[0] in _OPENAIS):
        return replace(facts, hidden={"mlp": "quick-gelu"})
    return facts


def _colours(found: Candidate, layout: Layout) -> Colours:
    """Mean and std of its input, where nothing says them: by whose ViT it is."""
    if layout.name == "dinov3":
        large = found.tensors["patch_embed.proj.weight"].shape[:1] == (1024,)
        return SATELLITES if large and "local_cls_norm.weight" in found.tensors else IMAGENET
    if any(key.startswith("attn_pool.") for key in found.tensors):
        return SIGLIPS
    clips = "norm_pre.weight" in found.tensors or layout.name == "open_clip"
    return CLIPS if clips else layout.colours


def _of_beside(beside: Beside, facts: Facts) -> Facts:
    """What a folder's other file says, as Hugging Face's Hub has them."""
    if beside.timm is not None:
        facts = _of_timm(beside.timm, {}, facts, beside.told)
    return replace(
        facts,
        num_heads=beside.num_heads or facts.num_heads,
        width=beside.width or facts.width,
        depth=beside.depth or facts.depth,
        patch_size=beside.patch_size or facts.patch_size,
        image_size=beside.image_size or facts.image_size,
        named=beside.named or facts.named,
        mean=beside.mean or facts.mean,
        std=beside.std or facts.std,
        hidden={**(facts.hidden or {}), **beside.hidden},
    )


def _of_timm(
    architecture: str, arguments: Mapping[str, Any], facts: Facts, told: Mapping[str, Any] = _NONE
) -> Facts:
    """What timm knows of a model of its own that a file names.

    Args:
        architecture: Its name.
        arguments: Of the script that wrote the file.
        facts: What else is known.
        told: What timm is told beside the name.

    Raises:
        UserError: There is none of that name, or none that can be told so.
    """
    if not timm.is_model(architecture):
        raise UserError(f"timm knows no model {shown(architecture)}", "the name of one is needed")
    if huge := [key for key, v in told.items() if isinstance(v, int) and v > _LARGEST]:
        raise UserError(f"{shown(huge[0])} {told[huge[0]]}", f"at most {_LARGEST} is known")
    try:
        with torch.device("meta"):
            vit = timm.create_model(architecture, **{**told, **_WITHOUT_WEIGHTS})
    except Exception as error:  # whatever a model says of arguments that it does not have
        reason = shown(" ".join(str(error).split())[:160])
        raise UserError(
            f"timm's {architecture} cannot be told {shown(dict(told))} ({reason})"
        ) from error
    config = vit.pretrained_cfg or {}
    weight = vit.state_dict().get("patch_embed.proj.weight")
    blocks = getattr(vit, "blocks", None)
    known = replace(
        facts,
        patch_size=facts.patch_size or (None if weight is None else int(weight.shape[-1])),
        layout="timm" if facts.layout in ("deit-iii", "eva02") else facts.layout,
        positions="bicubic-antialias",
        named=architecture,
        width=None if weight is None else int(weight.shape[0]),
        depth=len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None,
        image_size=int(config["input_size"][-1]) if config.get("input_size") else None,
        mean=_colour(arguments.get("mean") or config.get("mean"), facts.mean, "mean"),
        std=_colour(arguments.get("std") or config.get("std"), facts.std, "std"),
    )
    try:
        with torch.device("meta"):
            encoder = Encoder.from_timm(vit)
            model = model_of(encoder)
    except UserError as refused:
        return replace(known, num_heads=num_heads(vit), refused=refused)
    hidden = {name: getattr(model, name) for name in HIDDEN}
    return replace(
        known,
        num_heads=num_heads(encoder),
        image_size=encoder.grid[0] * encoder.patch_size if told else known.image_size,
        hidden=hidden,
    )


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

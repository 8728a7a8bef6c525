"""From a file's tensors to our encoder: our names, our shapes, and nothing left over."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp, SwiGLUPacked
from torch import Tensor, nn

from sercli.encoders.asked import Hints
from sercli.encoders.blocks import ViTBlock
from sercli.encoders.files import require_finite
from sercli.encoders.foreign.architecture import (
    Architecture,
    Shape,
    architecture_of,
    shape_of,
)
from sercli.encoders.foreign.facts import Colour, Facts, stated_facts
from sercli.encoders.foreign.finding import (
    Candidate,
    choose,
    find_candidates,
    require_like_its_twin,
)
from sercli.encoders.foreign.layouts import EXPORT_LAYOUT, UNKNOWN, Role
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Initialiser

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # dinov2: chunks, with the blocks' own numbers
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT-III
        (r"\.mlp\.w12\.", ".mlp.fc1."),  # dinov2's SwiGLU
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"^class_token$", "cls_token"),  # torchvision, from here on
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"^encoder\.ln\.", "norm."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."),
        (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
    )
)

_IN_BLOCK = re.compile(r"blocks\.\d+\.(.*)")
_PLAIN_BLOCK = re.compile(
    r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|ls[12]\.gamma"
)


@dataclass(frozen=True)
class ForeignEncoder:
    """An encoder read from a file of another project.

    Attributes:
        encoder: With the file's weights.
        layout: Name of the layout, see `LAYOUTS`.
        place: Where in the file it was, for instance "state_dict.module.base_encoder".
        role: "student", "teacher", or "encoder" where there is one only.
        matched: Tensors of ours that the file filled (all of them).
        mean, std: Normalisation of its input, RGB in 0…1.
        usual_heads: Attention heads that the layout's own code gives such a ViT, if it is known.
        assumed: Whether nothing says how its code resamples positions.
        left: What else the file holds, and was not taken: tensors' names, places of other ViTs.
    """

    encoder: Encoder
    layout: str
    place: str
    role: Role
    matched: int
    mean: Colour
    std: Colour
    usual_heads: int | None
    assumed: bool
    left: tuple[str, ...]


def read(
    state: Mapping[str, Any],
    name: str,
    *,
    teacher: bool = False,
    hints: Hints | None = None,
    header: Mapping[str, str] | None = None,
) -> ForeignEncoder:
    """Read the encoder of a file that ser did not write while training.

    Args:
        state: All that the file holds: tensors by name, nested or not, and what is beside them.
        name: What the user called it, for messages.
        teacher: The momentum encoder instead of the student.
        hints: What the file does not say.
        header: Metadata of a safetensors file; that of `ser export` says everything.

    Raises:
        UserError: No ViT in it, not one of those known, or not all of it; or something must be
            asked for.
    """
    hints, header = hints or Hints(), header or {}
    if header.get("layout") == EXPORT_LAYOUT and header.get("weights") == "teacher":
        teacher = False  # the one it holds
    candidates = find_candidates(state)
    found = choose(candidates, state, name, teacher=teacher, key=hints.key)
    facts = stated_facts(state, header, found)
    encoder, architecture, matched = _build(found, facts, hints, name)
    if hints.key is None:
        require_like_its_twin(found, candidates, name)
    return ForeignEncoder(
        encoder,
        facts.layout,
        found.place,
        facts.role or found.role,
        matched,
        facts.mean,
        facts.std,
        architecture.usual_heads,
        architecture.assumed,
        _left(found, candidates),
    )


def _left(found: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """What was not taken of a file."""
    inside = (found.layout or UNKNOWN).inside
    own = [key for key in found.tensors if re.match(inside, key)]
    others = [one.place for one in candidates if one is not found]
    return (*own, *found.beside, *others)


def _build(
    found: Candidate, facts: Facts, hints: Hints, name: str
) -> tuple[Encoder, Architecture, int]:
    """Our encoder with their weights, what it is, and how many tensors that are."""
    layout = found.layout or UNKNOWN
    given = {
        _rename(key): value.detach().float().contiguous() if value.is_floating_point() else value
        for key, value in found.tensors.items()
        if not re.match(layout.inside, key)
    }
    _require_kind(given, facts, found.place, name)
    shape = shape_of(given, facts, hints, name)
    _fold_positions(given, shape.slots)
    matched = _require_all(_empty(given, shape, facts).state_dict(), given, name)
    require_finite(given, name)
    architecture = architecture_of(shape, given, layout, facts, hints, name)
    encoder = _empty(given, shape, facts, architecture)
    encoder.load_state_dict(given, assign=True)
    return encoder, architecture, matched


def _require_kind(given: Mapping[str, Tensor], facts: Facts, place: str, name: str) -> None:
    """Refuse what is no plain ViT, for what it is, before anything is asked for."""
    if any(key.startswith("patch_embed.proj.0.") for key in given):
        raise UserError(f"{name} has a convolutional stem", "one linear patch embedding is needed")
    for key in ("pos_embed", "cls_token", "patch_embed.proj.weight", "blocks"):
        if not any(other.startswith(key) for other in given):
            raise UserError(
                f"{name} has no {key} (at {place or 'the file itself'})",
                "a ViT with a [CLS] token and an absolute positional embedding is needed",
            )
    inside = {match[1] for key in given if (match := _IN_BLOCK.match(key))}
    if strange := sorted(key for key in inside if not _PLAIN_BLOCK.fullmatch(key)):
        raise UserError(
            f"{name}: its blocks hold {', '.join(strange[:2])}",
            "a plain ViT's hold one qkv map, a projection, an MLP, two LayerNorms and LayerScale; "
            "EVA-02, BEiT, CaiT and others compute something else",
        )
    if "norm_pre.weight" in given and facts.named is None:
        raise UserError(
            f"{name} is CLIP's ViT (it has norm_pre)",
            "its weights do not show whether its MLPs have GELU or QuickGELU",
            'save it with its name: torch.save({"arch": NAME_IN_TIMM, "state_dict": …}, FILE)',
        )


def _rename(key: str) -> str:
    if key == "register_tokens":
        return "reg_token"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _empty(
    given: Mapping[str, Tensor],
    shape: Shape,
    facts: Facts,
    architecture: Architecture | None = None,
) -> Encoder:
    """Our encoder, without weights; with no architecture, one of the same names and shapes."""
    width, side, patch_size = shape.width, shape.side, shape.patch_size
    architecture = architecture or Architecture(1, None, 0, "bicubic")
    widened = _size(given.get("blocks.0.mlp.fc1.weight"), 0, 4 * width)
    gated = 2 * _size(given.get("blocks.0.mlp.fc2.weight"), 1, widened) == widened
    norm = functools.partial(nn.LayerNorm, eps=facts.norm_eps)
    pooled = "norm.weight" not in given and "fc_norm.weight" in given  # as timm's and MAE's
    with torch.device("meta"):
        blocks = [
            ViTBlock(
                width,
                architecture.num_heads,
                mlp_ratio=(widened + 0.5) / width,  # rounded down to `widened` by the block
                qkv_bias="blocks.0.attn.qkv.bias" in given,
                init_values=1e-5 if "blocks.0.ls1.gamma" in given else None,
                mlp_layer=SwiGLUPacked if gated else Mlp,
                act_layer=nn.SiLU if gated else facts.activation,
                norm_layer=norm,
            )
            for _ in range(shape.depth)
        ]
        registers = given.get("reg_token")
        return Encoder(
            patch_embed=nn.Conv2d(
                3, width, patch_size, stride=patch_size, bias="patch_embed.proj.bias" in given
            ),
            blocks=blocks,
            norm=nn.Identity() if pooled else norm(width),
            norm_pre=norm(width) if "norm_pre.weight" in given else None,
            fc_norm=norm(width) if pooled else None,
            pools_mean=pooled,
            pos_embed=nn.Parameter(torch.empty(1, side**2, width)),
            cls_token=nn.Parameter(torch.empty(1, 1, width)),
            reg_token=None if registers is None else nn.Parameter(torch.empty(registers.shape)),
            grid=(side, side),
            patch_size=patch_size,
            cls_after=architecture.cls_after,
            init=Initialiser.MOCO_V3 if shape.positions == "moco-v3" else Initialiser.TIMM,
            fixed_positions=shape.positions != "learned",
            pos_resize=architecture.pos_resize,
        )


def _size(matrix: Tensor | None, side: int, otherwise: int) -> int:
    return otherwise if matrix is None or matrix.ndim != 2 else int(matrix.shape[side])


def _fold_positions(given: dict[str, Tensor], slots: int) -> None:
    """Add the positions of [CLS] (and registers), which are constants, to those tokens."""
    position = given["pos_embed"]
    given["pos_embed"] = position[:, slots:].contiguous()
    if slots and given["cls_token"].shape == position[:, :1].shape:
        given["cls_token"] = given["cls_token"] + position[:, :1]
    if slots > 1:
        given["reg_token"] = given["reg_token"] + position[:, 1:slots]


def _require_all(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> int:
    """Every tensor of ours is filled, every one of theirs used, and all are numbers."""
    problems = []
    for key, value in expected.items():
        if key not in given:
            problems.append(f"{key} is missing")
        elif given[key].shape != value.shape:
            found, needed = list(given[key].shape), list(value.shape)
            problems.append(f"{key} has shape {found}, not {needed}")
    matched = len(expected) - len(problems)
    surplus = [key for key in given if key not in expected]
    problems += [f"{key} has no place in such a ViT" for key in surplus]
    if problems:
        more = f", {len(surplus)} of theirs left over" if surplus else ""
        raise UserError(
            f"{name}: {matched} of {len(expected)} tensors match{more} ({problems[0]})", "all must"
        )
    if whole := [key for key, value in given.items() if not value.is_floating_point()]:
        raise UserError(
            f"{name}: {whole[0]} is of {given[whole[0]].dtype}".replace("torch.", ""),
            "weights are floating-point numbers; quantised ones are not read",
        )
    return matched

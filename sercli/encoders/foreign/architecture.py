"""Which ViT an encoder is: from its shapes, and from what the file and the user say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sercli.encoders.asked import Hints
from sercli.encoders.foreign.facts import Facts, resampling
from sercli.encoders.foreign.layouts import (
    AGREED_HEADS,
    EXPORT_LAYOUT,
    SOLO_FIXED_HEADS,
    TIMM_HEADS,
    USUAL_DEPTHS,
    Heads,
    Layout,
)
from sercli.encoders.sizes import OTHER
from sercli.errors import UserError
from sercli.recipe.model import Initialiser, Model, PosResize

Positions = Literal["moco-v3", "mae", "learned", "none"]
_USUAL_SIDE = 224  # pixels, of the images that a ViT without positions to be counted is for


@dataclass(frozen=True)
class Shape:
    """What the tensors of a ViT show of it.

    Attributes:
        width, depth: Numbers in a token, and of blocks.
        patch_size: Side of a patch, in pixels.
        side: How many patches there are in a row and in a column.
        slots: Places in front of that grid in the file's positional embedding.
        positions: Which embedding that is.
    """

    width: int
    depth: int
    patch_size: int
    side: int
    slots: int
    positions: Positions


@dataclass(frozen=True)
class Architecture:
    """Which ViT it is, by what they show and what they do not.

    Attributes:
        model: Its settings.
        usual_heads: Attention heads that the layout's own code gives it, if it is known.
        cls_after: Block after which [CLS] joins.
        assumed: Whether nothing says whose code resamples positions, so that timm's is taken.
    """

    model: Model
    usual_heads: int | None
    cls_after: int
    assumed: bool = False


# -- What its tensors say -----------------------------------------------------------


def shape_of(given: Mapping[str, Tensor], facts: Facts, hints: Hints, name: str) -> Shape:
    """What the tensors of an encoder show.

    Args:
        given: Its tensors, under our names.
        facts: What the file says.
        hints: What the user says.
        name: What the user called the file, for messages.

    Raises:
        UserError: It is no ViT of ours, or two of these contradict each other.
    """
    width, patch_size = _patches(given["patch_embed.proj.weight"], facts, name)
    depth = 1 + max(
        (int(match[1]) for key in given if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1
    )
    if depth > len(given):
        raise UserError(f"{name} numbers its blocks up to {depth - 1}", "most of them are missing")
    _require_depth(depth, width, facts, hints, name)
    if "pos_embed" not in given:
        side = max(1, (facts.image_size or _USUAL_SIDE) // patch_size)
        return Shape(width, depth, patch_size, side, 0, "none")
    side, slots = _grid(given, width, name)
    if slots and "cls_token" not in given:
        raise UserError(
            f"{name} has no cls_token", "its positional embedding has a place for [CLS]"
        )
    return Shape(width, depth, patch_size, side, slots, _kind(given["pos_embed"][:, slots:], side))


def _patches(weight: Tensor, facts: Facts, name: str) -> tuple[int, int]:
    """Width and patch size."""
    shape = list(weight.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or 0 in shape:
        raise UserError(
            f"{name}: its patch embedding has shape {shape}",
            "[width, 3, patch, patch] is needed: RGB and square patches",
        )
    stated = f"the {facts.named} stored with it has" if facts.named else "its arguments say"
    for what, found, said in (
        ("patches of {} px", shape[2], facts.patch_size),
        ("a width of {}", shape[0], facts.width),
    ):
        if said not in (None, found):
            raise UserError(
                f"{name} has {what.format(found)}, but {stated} {said}", "both must agree"
            )
    return shape[0], shape[2]


def _require_depth(depth: int, width: int, facts: Facts, hints: Hints, name: str) -> None:
    """Blocks at the end cannot be missed in the numbering, only against what is known.

    A ViT of half the usual depth or less lost nothing: it is a small one.
    """
    if facts.layout == EXPORT_LAYOUT or hints.key is not None:
        return
    usual = facts.depth or USUAL_DEPTHS.get(width, 0)
    if usual // 2 < depth < usual or depth != (facts.depth or depth):
        whose = facts.named or f"a ViT {width} wide"
        raise UserError(
            f"{name} has {depth} blocks, {whose} has {usual}",
            "no block may be missing",
            "if it is meant to be so, add --key PLACE to take the encoder that is there",
        )


def _grid(given: Mapping[str, Tensor], width: int, name: str) -> tuple[int, int]:
    """Side of the grid of patches, and places in front of it in the positional embedding."""
    position = given["pos_embed"]
    length = position.shape[1] if position.ndim == 3 else 0
    registers = given.get("reg_token", torch.empty(1, 0, width))
    if registers.ndim != 3 or registers.shape[::2] != (1, width):
        raise UserError(
            f"{name}: its registers have shape {list(registers.shape)}",
            f"[1, n, {width}] is needed",
        )
    options = {}
    for slots in sorted({0, 1, 1 + registers.shape[1]}):
        side = int(max(length - slots, 0) ** 0.5 + 0.5)
        if side and side**2 == length - slots:
            options[side] = slots
    if len(options) != 1 or list(position.shape) != [1, length, width]:
        raise UserError(
            f"{name}: its positional embedding has shape {list(position.shape)}",
            f"[1, n, {width}] is needed, n a square grid with or without [CLS]",
        )
    return next(iter(options.items()))


def _kind(positions: Tensor, side: int) -> Positions:
    """Whether a positional embedding [1, side², D] is one of the two fixed ones.

    Both are sines and cosines of the two places of a patch; MoCo-v3's begins with the row (it calls
    it w, but its tokens run along rows), MAE's (and lightly's and solo-learn's) with the column.
    """
    quarter, rest = divmod(positions.shape[-1], 4)
    if rest or side < 2:
        return "learned"
    omega = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    row, column = (place.flatten()[:, None] * omega for place in (rows, columns))
    orders: tuple[tuple[Positions, Tensor, Tensor], ...] = (
        ("moco-v3", row, column),
        ("mae", column, row),
    )
    for kind, first, second in orders:
        fixed = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], 1)[None]
        if torch.allclose(positions.double(), fixed, rtol=0, atol=2e-3):  # also of half precision
            return kind
    return "learned"


# -- What they do not say -------------------------------------------------------------------------


def architecture_of(
    shape: Shape,
    given: Mapping[str, Tensor],
    layout: Layout,
    facts: Facts,
    hints: Hints,
    name: str,
) -> Architecture:
    """What the tensors of an encoder do not show, from what the file, its layout and the user say.

    Args:
        shape: What the tensors show: width, depth, patch and grid.
        given: Its tensors, under our names.
        layout: Whose files look like this one.
        facts: What the file says.
        hints: What the user says.
        name: What the user called the file, for messages.

    Raises:
        UserError: Two of these contradict each other, or something must be asked for.
    """
    table = _table(layout, shape.positions)
    if table is AGREED_HEADS and ("reg_token" in given or "blocks.0.ls1.gamma" in given):
        table = TIMM_HEADS  # MoCo-v3, which has twice as many, has neither
    usual_heads = table.get((shape.width, shape.depth))
    shown_heads = _heads_shown(shape, given)
    said = _pos_resize(shape, "reg_token" in given, layout, facts, hints)
    heads = _heads(usual_heads, shown_heads, facts, hints, (shape.width, shape.depth), name)
    settings = settings_of(shape, given, layout, facts, hints)
    return Architecture(
        model=Model(**settings, num_heads=heads, pos_resize=said or "bicubic-antialias"),
        usual_heads=usual_heads,
        cls_after=_cls_after(given, facts, hints, shape.slots, shape.depth, name),
        assumed=said is None and shape.positions != "none",
    )


def settings_of(
    shape: Shape, given: Mapping[str, Tensor], layout: Layout, facts: Facts, hints: Hints
) -> dict[str, Any]:
    """The settings of a ViT but for its heads: what its tensors show, and what is said of the rest.

    Args:
        shape, given, layout, facts, hints: As of `architecture_of`.
    """
    first = "blocks.0."
    width = shape.width
    inside = _size(given.get(f"{first}mlp.fc2.weight"), 1, 4 * width)
    gated = _size(given.get(f"{first}mlp.fc1.weight"), 0, inside) == 2 * inside
    bias = given.get(f"{first}attn.qkv.bias")
    pre_norm = "norm_pre.weight" in given
    eps = 1e-5 if pre_norm else layout.norm_eps  # as all of CLIP's, under timm's names too
    told = {"norm_eps": eps, "rope": layout.rope, **(facts.hidden or {})}
    mlp, rope, pool = told.get("mlp", "gelu"), told["rope"], told.get("pool")
    has_cls = "cls_token" in given
    pooled = "norm.weight" not in given and "fc_norm.weight" in given  # as timm's and MAE's
    mean = pooled or not has_cls or pool == "mean"
    return {
        "name": OTHER,
        "patch_size": shape.patch_size,
        "width": width,
        "depth": shape.depth,
        "pos_embed": {"learned": "learned", "none": "none"}.get(shape.positions, "sincos"),
        "init": Initialiser.MOCO_V3 if shape.positions == "moco-v3" else Initialiser.TIMM,
        "registers": _size(given.get("reg_token"), 1, 0),
        "pool": "mean" if mean else "cls",
        "cls_token": has_cls if mean else None,
        "final_norm": "pooled" if pooled else "tokens",
        "layer_scale": 1e-5 if f"{first}ls1.gamma" in given else None,
        "mlp": "swiglu" if gated else hints.activation or mlp,
        "mlp_width": inside,
        "mlp_norm": f"{first}mlp.norm.weight" in given,
        "qk_norm": f"{first}attn.q_norm.weight" in given,
        "attn_norm": f"{first}attn.norm.weight" in given,
        "qkv_bias": bias is not None and ("qv" if len(bias) == 2 * width else True),
        "patch_bias": "patch_embed.proj.bias" in given,
        "norm_eps": told["norm_eps"],
        "pre_norm": pre_norm,
        "rope": rope,
        "rope_base": told.get("rope_base") or _base_shown(given.get("rope.periods")),
        "rope_grid": told.get("rope_grid", 16 if rope == "eva02" else None),
    }


def _size(tensor: Tensor | None, side: int, otherwise: int) -> int:
    return otherwise if tensor is None or tensor.ndim < 2 else int(tensor.shape[side])


def _base_shown(periods: Tensor | None) -> float | None:
    """Longest period over shortest, of periods base^(k/n); in half precision too."""
    if periods is None or len(periods) < 2:
        return None
    last = len(periods) - 1
    base = float(periods[last].double() ** ((last + 1) / last))
    return None if abs(base / 100 - 1) < 0.02 else base


def _heads_shown(shape: Shape, given: Mapping[str, Tensor]) -> int | None:
    """Heads, where something that is as wide as one is among the tensors."""
    periods, norm = given.get("rope.periods"), given.get("blocks.0.attn.q_norm.weight")
    each = 4 * len(periods) if periods is not None else 0 if norm is None else len(norm)
    return shape.width // each if each and shape.width % each == 0 else None


def _pos_resize(
    shape: Shape, registers: bool, layout: Layout, facts: Facts, hints: Hints
) -> PosResize | None:
    """As the project's own code does; None for a ViT of a user's choice or with nothing around it.

    Of those, MAE's and MoCo-v3's are told by their fixed positions, torchvision's by its names.
    """
    if hints.positions is not None:
        return resampling(hints.positions)
    if facts.positions is not None:
        return facts.positions
    if facts.layout == "torchvision":
        return "bicubic-aligned"
    if facts.layout == "timm" and facts.named is None and shape.positions != "learned":
        return "bicubic"
    if layout.num_heads is AGREED_HEADS and facts.named is None:
        return None
    return layout.pos_resize_registers if registers else layout.pos_resize


def _table(layout: Layout, kind: Positions) -> Heads:
    """The layout's numbers of heads, for a ViT with such a positional embedding."""
    anybody = layout.num_heads is AGREED_HEADS
    if (layout.name == "solo-learn" and kind != "learned") or (anybody and kind == "moco-v3"):
        return SOLO_FIXED_HEADS
    if anybody and kind == "mae":  # solo-learn has 12 heads where timm has 3
        return {key: heads for key, heads in AGREED_HEADS.items() if key[0] != 192}
    return layout.num_heads


def _heads(
    usual: int | None,
    shown: int | None,
    facts: Facts,
    hints: Hints,
    shape: tuple[int, int],
    name: str,
) -> int:
    width, depth = shape
    asked, said = hints.num_heads, facts.num_heads or shown
    if asked is not None and said not in (None, asked):
        raise UserError(f"--num-heads {asked} with {name}", f"it says {said}")
    if None not in (facts.num_heads, shown) and facts.num_heads != shown:
        raise UserError(
            f"{name} has {shown} heads, {facts.named} has {facts.num_heads}", "both must agree"
        )
    if asked is not None and (asked < 1 or width % asked):
        raise UserError(
            f"--num-heads {asked} with {name}, which is {width} wide", "heads must divide the width"
        )
    heads = asked or said or usual
    if heads is None:
        both = ": 6 in DINO, DeiT and timm, 12 in MoCo-v3" if shape == (384, 12) else ""
        raise UserError(
            f"{name} (layout {facts.layout}) is a ViT of {depth} blocks, {width} wide",
            f"its number of attention heads cannot be seen in its weights{both}",
            "add --num-heads N",
        )
    if width % heads:
        raise UserError(f"{name} says {heads} heads, is {width} wide", "heads must divide that")
    return heads


def _cls_after(
    given: Mapping[str, Tensor], facts: Facts, hints: Hints, slots: int, depth: int, name: str
) -> int:
    asked, said = hints.cls_after, facts.cls_after
    if "cls_token" not in given:
        if asked:
            raise UserError(f"--cls-after {asked} with {name}", "it has no [CLS]")
        return 0
    if slots and facts.layout != EXPORT_LAYOUT:
        said = 0
    elif (
        "reg_token" in given
        or "blocks.0.ls1.gamma" in given
        or facts.num_heads is not None
        or "pos_embed" not in given
    ):
        said = said or 0  # timm's no_embed_class: an ordinary ViT, which no delayed one is like
    if asked is not None and said not in (None, asked):
        where = "its positional embedding has a place for [CLS]" if slots else f"it says {said}"
        raise UserError(f"--cls-after {asked} with {name}", where)
    cls_after = asked if asked is not None else said
    if cls_after is None:
        raise UserError(
            f"{name}: its positional embedding has no place for [CLS]",
            "the block after which [CLS] joins cannot be seen in the weights",
            "add --cls-after L, 0 for an ordinary ViT",
        )
    if not 0 <= cls_after < depth:
        raise UserError(
            f"[CLS] of {name} joins after block {cls_after}", f"that must be in 0…{depth - 1}"
        )
    return cls_after

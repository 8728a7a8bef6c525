"""Which ViTs are refused, for what they are, and what of the others is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sercli.encoders.asked import Hints
from sercli.encoders.foreign.facts import Facts
from sercli.encoders.foreign.finding import Candidate
from sercli.encoders.foreign.layouts import UNKNOWN, Layout
from sercli.encoders.rotary import RotaryPositions
from sercli.errors import UserError

_IN_BLOCK = re.compile(r"blocks\.\d+\.(.*)")
_PLAIN_BLOCK = re.compile(
    r"(norm1|norm2|attn\.(qkv|q_norm|k_norm|norm|proj)|mlp\.(fc1|norm|fc2))\.(weight|bias)"
    r"|ls[12]\.gamma"
)
_NAMED = "add --arch NAME_IN_TIMM"
ATTENTION_POOL = "its pooling by attention is not taken: the mean of its tokens stands for an image"


def pools_by_attention(found: Candidate) -> bool:
    """Whether an attention pool stands behind it (SigLIP)."""
    return any(key.startswith(("attn_pool.", "head.probe")) for key in found.tensors)


def require_rotary(given: dict[str, Tensor], layout: Layout, name: str) -> None:
    """Look at what a file has of rotary positions; tables of EVA-02's become their periods.

    Both tell how wide a head is.

    Raises:
        UserError: They are neither DINOv3's nor EVA-02's.
    """
    tables = [key for key in given if re.search(r"rope\.freqs_(cos|sin)$", key)]
    table = given.get("rope.freqs_cos")
    for key in tables:
        del given[key]
    fits = not tables or layout.rope == "eva02"
    if tables and fits and table is not None:
        periods = _periods_of(table)
        fits = periods is not None
        given |= {} if periods is None else {"rope.periods": periods}
    if "rope.periods" in given:
        fits = fits and _are_periods(given["rope.periods"])
    if not fits:
        raise UserError(
            f"{name} has rotary positions of its own ({(*tables, 'periods')[0]})",
            "those of EVA-02, on 16 patches a side, and of DINOv3 are known",
        )


def _periods_of(table: Tensor) -> Tensor | None:
    """Those of a table [h·w, d] of EVA-02's cosines; None if it is another's."""
    if table.ndim != 2 or not table.numel() or table.shape[1] % 4 or table.shape[1] > 4096:
        return None
    side = round(len(table) ** 0.5)
    rope = RotaryPositions("eva02", head_dim=int(table.shape[1]), base=10000.0, grid=16)
    ours = rope.table((side, side))[:, 0].repeat_interleave(2, -1)
    alike = ours.shape == table.shape and torch.allclose(ours, table, rtol=0, atol=2e-2)
    return rope.periods if alike else None


def _are_periods(periods: Tensor) -> bool:
    """Whether they are base^(k/n), as nearly as half precision has it."""
    if periods.ndim != 1 or not len(periods) or not bool((periods > 0).all()):
        return False
    steps = periods.double().log().diff()
    first = abs(float(periods[0]) - 1) < 1e-2
    return first and bool((steps > 0).all()) and bool(((steps - steps.mean()).abs() < 2e-2).all())


def require_kind(
    given: Mapping[str, Tensor], facts: Facts, layout: Layout, found: Candidate, name: str
) -> None:
    """Refuse what is no plain ViT, for what it is, before anything is asked for."""
    if any(key.startswith("patch_embed.proj.0.") for key in given):
        raise UserError(f"{name} has a convolutional stem", "one linear patch embedding is needed")
    if found.family == "transformers" and facts.hidden is None:
        raise UserError(
            f"{name} has the layout of transformers",
            "its config.json must lie beside it: heads and norms are there",
            "name the file model.safetensors, in its folder",
        )
    for key in ("patch_embed.proj.weight", "blocks"):
        if not any(other.startswith(key) for other in given):
            raise UserError(
                f"{name} has no {key} (at {found.place or 'the file itself'})", "a ViT is needed"
            )
    rotary = "rope.periods" in given or (facts.hidden or {}).get("rope")
    if "pos_embed" not in given and not rotary:
        raise UserError(
            f"{name} has no pos_embed",
            "an absolute positional embedding, or rotary positions that are known, are needed",
            f"{_NAMED}, if it is a DINOv3 of timm's",
        )
    inside = {match[1] for key in given if (match := _IN_BLOCK.match(key))}
    if strange := sorted(key for key in inside if not _PLAIN_BLOCK.fullmatch(key)):
        raise UserError(
            f"{name}: its blocks hold {', '.join(strange[:2])}",
            "a plain ViT's hold queries, keys and values, a projection, an MLP, norms and "
            "LayerScale; BEiT, CaiT and others compute something else",
        )
    if facts.refused is not None:
        raise UserError(f"{name} says it is {facts.named}: {facts.refused}")
    if layout.name == "clip" and (
        "norm_pre.weight" not in given or any(key.startswith("attn_pool") for key in given)
    ):
        raise UserError(
            f"{name} is a CLIP with another ViT (it pools by attention, or has no ln_pre)",
            "its weights do not show how it stands for an image",
        )
    if "cls_token" not in given and not _known_without_cls(given, facts, layout, found):
        raise UserError(
            f"{name} has no cls_token (at {found.place or 'the file itself'})",
            "a ViT without [CLS] has to say which it is",
            _NAMED,
        )


def _known_without_cls(
    given: Mapping[str, Tensor], facts: Facts, layout: Layout, found: Candidate
) -> bool:
    """Whether it is known to have no [CLS], rather than to have lost it."""
    return (
        layout.pools
        or (facts.hidden or {}).get("pool") == "mean"
        or pools_by_attention(found)
        or "fc_norm.weight" in given
    )


def require_said(
    settings: Mapping[str, Any], facts: Facts, hints: Hints, found: Candidate, name: str
) -> None:
    """Ask for what no tensor shows and no code fixes: which GELU, and which EVA.

    Raises:
        UserError: It is not said, or said twice.
    """
    told = facts.hidden or {}
    said = told.get("mlp")
    if hints.activation is not None and said not in (None, hints.activation):
        raise UserError(f"--activation {hints.activation} with {name}", f"it says {said}")
    gated = settings["mlp"] == "swiglu"
    if gated and hints.activation is not None:
        raise UserError(f"--activation {hints.activation} with {name}", "its MLPs have SwiGLU")
    layout = found.layout or UNKNOWN
    plain = gated and settings["qkv_bias"] == "qv" and not settings["registers"]
    if layout.rope == "eva02" and "rope" not in told and not plain:
        raise UserError(
            f"{name} is an EVA of another kind than EVA-02's ViTs of up to 24 blocks",
            "its weights do not show its positions, and where its norms stand",
            _NAMED,
        )
    asks = layout.asks_for_mlp or settings["pre_norm"] or pools_by_attention(found)
    if asks and not gated and said is None and hints.activation is None:
        what = "CLIP's ViT" if settings["pre_norm"] else "a ViT of CLIP's or SigLIP's kind"
        raise UserError(
            f"{name} is {what}",
            "its weights do not show whether its MLPs have GELU or QuickGELU (OpenAI's)",
            "add --activation gelu, gelu-tanh or quick-gelu",
        )

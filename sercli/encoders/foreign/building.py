"""From a file's tensors to our encoder: our names, our shapes, and nothing left over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sercli.encoders.asked import Hints
from sercli.encoders.files import require_finite
from sercli.encoders.foreign.architecture import (
    Architecture,
    Shape,
    architecture_of,
    settings_of,
    shape_of,
)
from sercli.encoders.foreign.beside import Beside
from sercli.encoders.foreign.facts import Colour, Facts, stated_facts
from sercli.encoders.foreign.finding import (
    Candidate,
    choose,
    find_candidates,
    require_like_its_twin,
)
from sercli.encoders.foreign.kinds import (
    ATTENTION_POOL,
    pools_by_attention,
    require_kind,
    require_rotary,
    require_said,
)
from sercli.encoders.foreign.layouts import EXPORT_LAYOUT, UNKNOWN, Role
from sercli.encoders.foreign.names import translated
from sercli.encoders.rotary import RotaryPositions
from sercli.encoders.sizes import rope_base_of, size_of
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.model import Model


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
        note: What is to be said of it, "" nothing.
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
    note: str = ""


def read(
    state: Mapping[str, Any],
    name: str,
    *,
    teacher: bool = False,
    hints: Hints | None = None,
    header: Mapping[str, str] | None = None,
    beside: Beside | None = None,
) -> ForeignEncoder:
    """Read the encoder of a file that ser did not write while training.

    Args:
        state: All that the file holds: tensors by name, nested or not, and what is beside them.
        name: What the user called it, for messages.
        teacher: The momentum encoder instead of the student.
        hints: What the file does not say.
        header: Metadata of a safetensors file; that of `ser export` says everything.
        beside: What the file that lies beside it says, see `beside.read_beside`.

    Raises:
        UserError: No ViT in it, not one of those known, or not all of it; or something must be
            asked for.
    """
    hints, header = hints or Hints(), header or {}
    if header.get("layout") == EXPORT_LAYOUT and header.get("weights") == "teacher":
        teacher = False  # the one it holds
    candidates = find_candidates(state)
    found = choose(candidates, state, name, teacher=teacher, key=hints.key)
    facts = stated_facts(state, header, found, beside, hints)
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
        ATTENTION_POOL if pools_by_attention(found) else "",
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
    kept = {k: v for k, v in found.tensors.items() if not re.match(layout.inside, k)}
    given = translated(kept, found.family)
    require_rotary(given, layout, name)
    require_kind(given, facts, layout, found, name)
    shape = shape_of(given, facts, hints, name)
    _fold_positions(given, shape.slots)
    settings = settings_of(shape, given, layout, facts, hints)
    plain = Model(**settings, num_heads=_any_heads(given))
    expected = _empty(plain, shape).state_dict()
    if "rope.periods" not in given:
        expected.pop("rope.periods", None)
    _require_all(expected, given, name)
    require_finite(given, name)
    require_said(settings, facts, hints, found, name)
    architecture = architecture_of(shape, given, layout, facts, hints, name)
    encoder = _empty(architecture.model, shape, architecture.cls_after)
    if "rope.periods" in encoder.state_dict() and "rope.periods" not in given:
        given["rope.periods"] = _periods(architecture.model)
    matched = _require_all(encoder.state_dict(), given, name)
    encoder.load_state_dict(given, assign=True)
    return encoder, architecture, matched


def _any_heads(given: Mapping[str, Tensor]) -> int:
    """A number of heads by which an encoder has the same names and shapes."""
    width = int(given["patch_embed.proj.weight"].shape[0])
    periods, norm = given.get("rope.periods"), given.get("blocks.0.attn.q_norm.weight")
    each = 4 * len(periods) if periods is not None else width if norm is None else len(norm)
    return width // each if each and width % each == 0 else 1


def _periods(model: Model) -> Tensor:
    """Those of rotary positions, which only DINOv3's authors keep with their weights."""
    assert model.rope is not None
    size = size_of(model)
    head_dim = size.width // size.num_heads
    return RotaryPositions(model.rope, head_dim=head_dim, base=rope_base_of(model)).periods


def _empty(model: Model, shape: Shape, cls_after: int = 0) -> Encoder:
    """Our encoder, without weights."""
    side = shape.side * shape.patch_size
    with torch.device("meta"):
        return Encoder.from_model(model, image_size=side, cls_after=cls_after)


def _fold_positions(given: dict[str, Tensor], slots: int) -> None:
    """Add the positions of [CLS] (and registers), which are constants, to those tokens."""
    if not slots:
        return
    position = given["pos_embed"]
    given["pos_embed"] = position[:, slots:].contiguous()
    if given["cls_token"].shape == position[:, :1].shape:
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

"""SER: soft equivariance on an intermediate layer's token grid (ICLR 2026).

What it can be told, and the values of the paper and of the authors' published scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from sercli.addons.settings import TermConfig
from sercli.negatives import Negatives
from sercli.recipe.values import Count, Positive, Range

# Temperature and weight by method, as far as known: paper (weights are those of the scripts) and
# the authors' published scripts.
_PAPER = {"moco": (0.3, 1.0), "dino": (0.5, 0.3), "barlow-twins": (0.3, 1.0)}
_AUTHORS = {"moco": (0.5, 1.0), "dino": (0.4, 0.3), "barlow-twins": (0.4, 1.0)}
# Everything else that a preset fills in.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "authors-code": {
        "negatives": "cross-view",
        "elements": "complementary",
        "share": "per-rank",
        "key_projector": "student",
    },
    "summary": {"fraction": 0.5, "base": "full", "keys": "rank-local"},
}


class SERConfig(TermConfig):
    """Settings of SER."""

    title: ClassVar[str] = "SER"
    place: ClassVar[float] = 5
    presets_fill: ClassVar[frozenset[str]] = frozenset({"temperature", "weight"}).union(
        *_PRESETS.values()
    )

    name: str = "ser"
    preset: Literal["paper", "authors-code", "summary"] = Field(
        "paper", description="fills in what is not given; `summary` follows the paper's summary"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.01, description="share of b₂")
    temperature: Positive = 0.3
    negatives: str = Field("both-views", description="cross-view or both-views, [+spatial:r]")
    base: Literal["crop", "full"] = Field("crop", description="what both views of b₂ come from")
    elements: Literal["independent", "complementary"] = "independent"
    action: Literal["analytic", "placebo"] = Field(
        "analytic", description="placebo: keys are moved by a wrong element (control)"
    )
    share: Literal["global", "per-rank"] = Field("global", description="where n₂ is rounded")
    keys: Literal["gathered", "rank-local"] = Field("gathered", description="negatives' ranks")
    key_projector: Literal["teacher", "student"] = Field(
        "teacher",
        description="what projects the teacher's normed tokens: an averaged copy of the projector, "
        "or the student's own",
    )
    scale: Range = Field((0.7, 1.3), description="area of the grid, relative")
    aspect: Range = Field((3 / 4, 4 / 3), description="change of w/h of the grid")
    projector_width: Count = 512

    @property
    def bound_to_ranks(self) -> tuple[str, ...]:
        settings = {"addon.share": self.share, "addon.keys": self.keys}
        local = ("per-rank", "rank-local")
        return tuple(f"{key} {value}" for key, value in settings.items() if value in local)

    @field_validator("negatives")
    @classmethod
    def _negatives_parse(cls, value: str) -> str:
        Negatives.parse(value)
        return value

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        preset = given.get("preset", "paper")
        table = _AUTHORS if preset == "authors-code" else _PAPER
        values: dict[str, Any] = {}
        if method in table:
            values["temperature"], values["weight"] = table[method]
        values |= _PRESETS.get(preset, {})  # of an unknown one its own check says what there is
        return {key: value for key, value in values.items() if key not in given}

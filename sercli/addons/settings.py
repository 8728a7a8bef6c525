"""What every add-on can be told; the settings of each are beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sercli.recipe.schema import AddonConfig
from sercli.recipe.values import NotNegative


class TermConfig(AddonConfig):
    """Settings that every add-on has."""

    layer: Annotated[int, Field(ge=1)] = Field(3, description="tapped block, 1…depth")
    weight: NotNegative = Field(1.0, description="λ; 0 is the control without the term")

    @property
    def tapped_layer(self) -> int:
        return self.layer


class SummaryConfig(TermConfig):
    """Settings of add-ons that take one vector of an image from the tapped layer."""

    tap: Literal["cls", "pooled"] = Field(
        "cls", description="[CLS] of the tapped layer (then not delayed), or its mean patch token"
    )

    @property
    def taps_cls(self) -> bool:
        return self.tap == "cls"

"""Barlow Twins: Zbontar et al., "Self-Supervised Learning via Redundancy Reduction"."""

from typing import ClassVar

from pydantic import Field

from sercli.recipe.schema import MethodConfig
from sercli.recipe.values import Count, NotNegative


class BarlowTwinsConfig(MethodConfig):
    """Settings of Barlow Twins."""

    title: ClassVar[str] = "Barlow Twins"
    place: ClassVar[float] = 3

    name: str = "barlow-twins"
    off_diagonal: NotNegative = Field(0.0051, description="weight of redundancy reduction")
    hidden_width: Count = 8192
    output_width: Count = 8192

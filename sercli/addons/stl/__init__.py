"""STL: learn representations of transformations (Yu et al., "Self-supervised Transformation
Learning for Equivariant Representations", NeurIPS 2024)."""

from typing import ClassVar

from pydantic import Field

from sercli.addons.settings import SummaryConfig
from sercli.recipe.values import Count, NotNegative, Positive


class STLConfig(SummaryConfig):
    """Settings of STL."""

    title: ClassVar[str] = "STL"
    place: ClassVar[float] = 2

    name: str = "stl"
    temperature: Positive = 0.2
    transformation_weight: NotNegative = Field(
        0.1, description="of the transformation term, relative to the equivariance term"
    )
    transformation_width: Count = Field(128, description="of a transformation's representation")
    hidden_width: Count = Field(512, description="of the projector")
    output_width: Count = 128

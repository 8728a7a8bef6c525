"""MoCo-v3: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers"."""

from typing import Annotated, ClassVar

from pydantic import Field

from sercli.recipe.schema import MethodConfig
from sercli.recipe.values import Count, Positive


class MoCoConfig(MethodConfig):
    """Settings of MoCo-v3."""

    title: ClassVar[str] = "MoCo-v3"
    place: ClassVar[float] = 1
    takes_more_views: ClassVar[bool] = True

    name: str = "moco"
    temperature: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.99, description="of the teacher at the start; rises to 1 on a cosine"
    )
    hidden_width: Count = Field(4096, description="of projector and predictor")
    output_width: Count = 256

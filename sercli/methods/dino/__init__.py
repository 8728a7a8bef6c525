"""DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers"."""

from typing import Annotated, ClassVar

from pydantic import Field

from sercli.recipe.schema import MethodConfig
from sercli.recipe.values import Count, NotNegative, Positive


class DINOConfig(MethodConfig):
    """Settings of DINO."""

    title: ClassVar[str] = "DINO"
    place: ClassVar[float] = 2
    takes_more_views: ClassVar[bool] = True

    name: str = "dino"
    prototypes: Count = Field(65536, description="outputs of the head, K")
    hidden_width: Count = 2048
    bottleneck_width: Count = Field(256, description="where cosines with the prototypes are taken")
    norm_last_layer: bool = Field(
        False, description="keep prototypes at length 1; otherwise each learns its own"
    )
    init_std: Positive = Field(0.02, description="of the head's weights; more for narrow heads")
    frozen_epochs: NotNegative = Field(1.0, description="epochs before the prototypes are trained")
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.07
    first_teacher_temperature: Positive = Field(
        0.04, description="of the first epoch; rises linearly, once an epoch"
    )
    temperature_epochs: NotNegative = Field(
        10.0, description="epochs of the rise; the last of them has teacher_temperature"
    )
    center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.982, description="of the teacher at the start; rises to 1 on a cosine"
    )

"""EquiMod: predict a view's embedding from the plain image's and the augmentation (Devillers and
Lefort, "EquiMod: An Equivariance Module to Improve Self-Supervised Learning", ICLR 2023)."""

from typing import ClassVar

from pydantic import Field

from sercli.addons.settings import SummaryConfig
from sercli.recipe.schema import ViewSetting
from sercli.recipe.values import Count, Positive


class EquiModConfig(SummaryConfig):
    """Settings of EquiMod."""

    title: ClassVar[str] = "EquiMod"
    place: ClassVar[float] = 3
    view_settings: ClassVar[tuple[ViewSetting, ...]] = ("3",)

    name: str = "equimod"
    temperature: Positive = 0.2
    hidden_width: Count | None = Field(None, description="of the projector; default: the model's")
    output_width: Count = 128

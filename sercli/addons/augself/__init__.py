"""AugSelf: predict how two views' augmentations differ (Lee et al., "Improving Transferability of
Representations via Augmentation-Aware Self-Supervision", NeurIPS 2021)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from sercli.addons.settings import SummaryConfig
from sercli.recipe.schema import Views
from sercli.recipe.values import Count, NotNegative


class AugSelfConfig(SummaryConfig):
    """Settings of AugSelf; a target of weight 0 has no head."""

    title: ClassVar[str] = "AugSelf"
    place: ClassVar[float] = 1

    name: str = "augself"
    crop: NotNegative = Field(0.5, description="weight of the crops' difference")
    colour: NotNegative = Field(0.5, description="weight of the jitter factors' difference")
    flip: NotNegative = Field(0.0, description="weight of whether both are mirrored alike")
    blur: NotNegative = Field(0.0, description="weight of the blurs' difference")
    rotation: NotNegative = Field(
        0.0, description="weight of the relative quarter turn; needs views.rot90_p > 0"
    )
    hidden_width: Count = 512

    @model_validator(mode="after")
    def _something_is_predicted(self) -> AugSelfConfig:
        if not any((self.crop, self.colour, self.flip, self.blur, self.rotation)):
            raise ValueError(
                "addon.crop, colour, flip, blur and rotation are all 0: nothing to predict; "
                "give one a weight, or use --addon none"
            )
        return self

    def check_views(self, views: Views) -> None:
        constant = {
            "crop": views.crop_area == (1, 1),
            "flip": views.hflip_p in (0, 1),
            "blur": not (views.view1.blur_p or views.view2.blur_p),
            "colour": not any(v.jitter_p and any(v.jitter) for v in (views.view1, views.view2)),
            "rotation": not views.rot90_p,
        }
        keys = {
            "crop": "views.crop_area below 1",
            "flip": "views.hflip_p between 0 and 1",
            "blur": "views.view1.blur_p or views.view2.blur_p above 0",
            "colour": "jitter in views.view1 or views.view2",
            "rotation": "views.rot90_p above 0",
        }
        for name, is_constant in constant.items():
            if is_constant and getattr(self, name):
                raise ValueError(
                    f"addon.{name} {getattr(self, name):g}: its target would be the same for every "
                    f"image; it needs {keys[name]}, or --set addon.{name}=0"
                )

"""E-SSL: predict by which quarter a small crop was turned (Dangovski et al., "Equivariant
Self-Supervised Learning: Encouraging Equivariance in Representations", ICLR 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from sercli.addons.settings import SummaryConfig
from sercli.recipe.schema import MoreViews, ViewSetting
from sercli.recipe.values import Count

# λ by method: of the port to MoCo-v3, also taken for DINO; Barlow Twins' is the authors'.
_WEIGHTS = {"moco": 1.0, "dino": 1.0, "barlow-twins": 8.0}


class ESSLConfig(SummaryConfig):
    """Settings of E-SSL."""

    title: ClassVar[str] = "E-SSL"
    place: ClassVar[float] = 4
    view_settings: ClassVar[tuple[ViewSetting, ...]] = ("2+4-rotations",)

    name: str = "essl"
    form: Literal["predict", "predict-and-views"] = Field(
        "predict", description="whether the four turned crops also enter the invariance loss"
    )
    hidden_width: Count = Field(256, description="of the head's last hidden layer")

    @property
    def more_views(self) -> MoreViews | None:
        if self.form == "predict":
            return None
        return MoreViews(f"addon.form {self.form}", remedy="addon.form=predict")

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        if "weight" in given or method not in _WEIGHTS:
            return {}
        return {"weight": _WEIGHTS[method]}

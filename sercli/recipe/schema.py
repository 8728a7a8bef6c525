"""The typed recipe: every setting of a run, and what follows from them.

What a method or an add-on can be told is declared beside its class, as a subclass of
`MethodConfig` or `AddonConfig`. `files.py` reads and merges the YAML files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from sercli.recipe.model import Initialiser as Initialiser
from sercli.recipe.model import Model as Model
from sercli.recipe.model import PosResize as PosResize
from sercli.recipe.training import Train as Train
from sercli.recipe.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    Count,
    NotNegative,
    Places,
    Probability,
    Range,
    Section,
    Share,
    Spread,
)
from sercli.runs.text import dump_yaml

Decoder = Literal["pil", "fast"]
ViewSetting = Literal["2", "3", "2+4-crops", "2+4-rotations"]


class Data(Section):
    """What is trained on."""

    path: Places = Field(
        "shapes",
        description="`shapes` or `shapes:scenes` (the embedded world), a directory, archives or a "
        "list of images; or a list of several, as one set",
    )
    image_size: Count = Field(224, description="side of a view, pixels")
    num_train: Count | None = Field(None, description="training images; embedded world only")
    num_val: Count | None = Field(None, description="validation images; embedded world only")
    classes: tuple[str, ...] | None = Field(
        None,
        description="some of the classes: a list of names, or a text file with a name a line",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "string"},
                {"type": "null"},
            ]
        },
    )
    share: Share = Field(1.0, description="share of the training images of each class")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="loader processes a rank, at most as many as cores; default: by their number",
    )
    cache: str | None = Field(
        None,
        description="a directory on a fast disk: images are copied there once and read from there",
    )
    decoder: Decoder = Field(
        "pil", description="pil; fast: libjpeg-turbo and torch, equal to a level of 255"
    )
    mean: Colour = Field(
        IMAGENET_MEAN, description="subtracted from RGB in 0…1; default: of model.weights"
    )
    std: Spread = Field(IMAGENET_STD, description="what that is divided by, likewise")

    @model_serializer(mode="wrap")
    def _without_the_usual_colours(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}  # of all runs of earlier versions
        return {
            k: v for k, v in default(self).items() if k not in usual or getattr(self, k) != usual[k]
        }

    @field_validator("classes")
    @classmethod
    def _classes_stand_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        if not names or len(set(names)) < len(names):
            raise ValueError("at least one class is needed, and none of them twice")
        return tuple(sorted(names))


class Photometrics(Section):
    """What happens to the colours of one view."""

    jitter: tuple[NotNegative, NotNegative, NotNegative, Annotated[float, Field(ge=0, le=0.5)]] = (
        Field((0.4, 0.4, 0.2, 0.1), description="brightness, contrast, saturation, hue")
    )
    jitter_p: Probability = 0.8
    grey_p: Probability = 0.2
    blur_p: Probability = 1.0
    blur_sigma: Range = Field((0.1, 2.0), description="pixels")
    solarise_p: Probability = 0.0


class LocalViews(Section):
    """The small views of the settings 2+4-…"""

    size: Count | None = Field(
        None, description="side, pixels; default: 3/7 of data.image_size in whole patches"
    )
    area: tuple[Share, Share] = Field(
        (0.05, 0.25), description="share of the image's area; of 2+4-rotations 0.05–0.14"
    )
    colours: Photometrics = Photometrics(grey_p=0.0, blur_p=0.5)


class Views(Section):
    """What the encoder sees of an image."""

    setting: Annotated[ViewSetting, BeforeValidator(str)] = Field(
        "2",
        description="2 crops; 3: and the plain image; 2+4-crops: and four small crops; "
        "2+4-rotations: and a small crop in its four quarter turns",
    )
    crop_area: tuple[Share, Share] = Field((0.08, 1.0), description="share of the image's area")
    crop_aspect: Range = Field((3 / 4, 4 / 3), description="width / height, log-uniform")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    hflip_p: Probability = 0.5
    rot90_p: Probability = Field(0.0, description="of a turn by 90, 180 or 270 degrees")
    view1: Photometrics = Photometrics()
    view2: Photometrics = Photometrics(blur_p=0.1, solarise_p=0.2)
    local: LocalViews | None = Field(None, description="small views, of the settings 2+4-… only")

    @model_validator(mode="before")
    @classmethod
    def _local_views_by_setting(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        local, setting = given.get("local"), str(given.get("setting", "2"))
        if not setting.startswith("2+4-"):
            if local is not None:
                raise ValueError(
                    f"views.local is of the settings 2+4-crops and 2+4-rotations only; "
                    f"views.setting is {setting!r}; leave views.local out, or use --views 2+4-crops"
                )
            return given
        area = {"area": (0.05, 0.14)} if setting == "2+4-rotations" else {}
        if local is None or isinstance(local, Mapping):
            return {**given, "local": {**area, **(local or {})}}
        return given

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        ranges = {"crop_area": self.crop_area, "crop_aspect": self.crop_aspect}
        if self.local is not None:
            ranges["local.area"] = self.local.area
        for name, (low, high) in ranges.items():
            if low > high:
                raise ValueError(f"views.{name} [{low}, {high}]: the first must not be larger")
        return self


class FamilyConfig(Section):
    """What an objective or an add-on can be told; its class need not be imported for that.

    Attributes:
        title: What tables call it; empty: its name.
        place: Where it stands in lists and tables; without one it stands last, by name.
    """

    title: ClassVar[str] = ""
    place: ClassVar[float] = math.inf

    name: str


class MethodConfig(FamilyConfig):
    """Base of the settings of an objective.

    Attributes:
        takes_more_views: Whether its loss takes more views than two (multi-crop).
    """

    takes_more_views: ClassVar[bool] = False


@dataclass(frozen=True)
class MoreViews:
    """A setting by which the invariance loss gets more views than two.

    Attributes:
        setting: The setting and its value, as an error line names them.
        remedy: The setting by which it gets two.
    """

    setting: str
    remedy: str


class AddonConfig(FamilyConfig):
    """Base of the settings of an add-on; `none` has no other.

    Attributes:
        view_settings: The view settings it can use.
        presets_fill: The keys that `preset` fills in: choosing one replaces what the recipes below
            say of them.
    """

    view_settings: ClassVar[tuple[ViewSetting, ...]] = ("2", "2+4-crops")
    presets_fill: ClassVar[frozenset[str]] = frozenset()

    @property
    def tapped_layer(self) -> int | None:
        """The block whose output the add-on takes; None: no add-on."""
        return None

    @property
    def taps_cls(self) -> bool:
        """Whether the add-on takes [CLS] of the tapped layer, so that [CLS] cannot be delayed."""
        return False

    @property
    def bound_to_ranks(self) -> tuple[str, ...]:
        """Settings by which a step depends on the number of processes, as an error names them."""
        return ()

    @property
    def more_views(self) -> MoreViews | None:
        """What says that views it asks for also enter the invariance loss; None: they do not."""
        return None

    def check_views(self, views: Views) -> None:
        """Raise a ValueError if these views leave the add-on nothing to learn."""
        del views

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        """Values that follow from others given (presets); explicit values win over them."""
        del given, method
        return {}


class Plugin(Section):
    """Where methods and add-ons that do not come with ser are from: a file, or a package.

    In a recipe the path of a file is enough. The recipe of a run has the rest, for its own copy of
    the file.
    """

    file: str | None = Field(None, description="Python file; its path is relative to the recipe")
    sha256: str | None = Field(None, description="what the file must be, in hex")
    copied_from: str | None = Field(None, description="the file that `file` is a copy of")
    distribution: str | None = Field(None, description="the installed package, by entry points")
    version: str | None = Field(None, description="of the package")

    @model_validator(mode="before")
    @classmethod
    def _a_path_is_enough(cls, given: Any) -> Any:
        return {"file": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.file is None) == (self.distribution is None):
            raise ValueError("a plug-in is a `file`, or the `distribution` that an entry point has")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in default(self).items() if value is not None}


class Recipe(Section):
    """Every setting of a pretraining run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    model: Model = Model()
    views: Views = Views()
    method: SerializeAsAny[MethodConfig]
    addon: SerializeAsAny[AddonConfig]
    train: Train = Train()
    plugins: tuple[Plugin, ...] = Field((), description="where other methods and add-ons are from")

    @model_serializer(mode="wrap")
    def _without_plugins_if_there_are_none(
        self, default: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {k: v for k, v in default(self).items() if k != "plugins" or v}

    @model_validator(mode="after")
    def _views_are_used(self, info: ValidationInfo) -> Self:
        setting, usable = self.views.setting, self.addon.view_settings
        if setting not in usable:
            raise ValueError(
                f"views.setting {setting} with addon {self.addon.name}: it works with "
                f"{' or '.join(usable)}; use --views {usable[0]}"
            )
        more = self.addon.more_views
        if setting == "2+4-crops":
            more = MoreViews("views.setting 2+4-crops", remedy="--views 2")
        if more is not None and not self.method.takes_more_views:
            known: Mapping[str, type[MethodConfig]] = (info.context or {}).get("methods", {})
            able = [name for name, method in known.items() if method.takes_more_views]
            others = f", or a method with multi-crop ({', '.join(able)})" if able else ""
            raise ValueError(
                f"{more.setting} with method {self.method.name}: its loss takes two views; use "
                f"{more.remedy}{others}"
            )
        self.addon.check_views(self.views)
        return self

    def to_yaml(self) -> str:
        """The resolved recipe; reading it gives an equal one."""
        return dump_yaml(self.model_dump(mode="json"))

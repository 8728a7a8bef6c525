"""The typed recipe: every setting of a run, and what follows from them.

What a method or an add-on can be told is declared beside its class, as a subclass of
`MethodConfig` or `AddonConfig`. `recipe_files.py` reads and merges the YAML files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)

from sercli.errors import UserError
from sercli.recipe_yaml import dump_yaml

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]


class Section(BaseModel):
    """A group of settings; unknown keys are refused, values do not change once resolved."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Data(Section):
    """What is trained on."""

    path: str = Field("shapes", description="`shapes` (the embedded world) or a directory")
    image_size: Count = Field(224, description="side of a view, pixels")
    num_train: Count | None = Field(None, description="training images; embedded world only")
    num_val: Count | None = Field(None, description="validation images; embedded world only")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="loader processes a rank; default: by the number of cores"
    )

    @model_validator(mode="after")
    def _counts_are_used(self) -> Self:
        if self.path != "shapes" and (self.num_train or self.num_val):
            raise ValueError(
                "data.num_train and data.num_val only size the embedded world; "
                f"data.path is {self.path!r}"
            )
        return self


class Model(Section):
    """The ViT."""

    name: str = Field(
        "vit_small", description="vit_micro, vit_tiny, vit_small, vit_base, vit_large"
    )
    patch_size: Count = Field(16, description="side of a patch, pixels")
    width: Count | None = Field(None, description="embedding width; default: by name")
    depth: Count | None = Field(None, description="number of blocks; default: by name")
    num_heads: Count | None = Field(None, description="attention heads; default: by name")
    pos_embed: Literal["learned", "sincos"] = Field("learned", description="sincos is MoCo-v3's")
    patch_embed: Literal["trained", "frozen"] = Field(
        "trained", description="frozen: a random patch embedding, as in MoCo-v3"
    )
    init: Literal["timm", "moco-v3"] = Field("timm", description="weight initialisation")
    cls_after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="block after which [CLS] joins; default: follows addon.layer"
    )


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


class Views(Section):
    """What the encoder sees of an image."""

    setting: Annotated[Literal["2"], BeforeValidator(str)] = Field(
        "2", description="views an image"
    )
    crop_area: tuple[Share, Share] = Field((0.08, 1.0), description="share of the image's area")
    crop_aspect: Range = Field((3 / 4, 4 / 3), description="width / height, log-uniform")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    hflip_p: Probability = 0.5
    view1: Photometrics = Photometrics()
    view2: Photometrics = Photometrics(blur_p=0.1, solarise_p=0.2)

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"views.{name} [{low}, {high}]: the first must not be larger")
        return self


class Train(Section):
    """Optimisation and bookkeeping."""

    epochs: Positive = 100
    max_steps: Count | None = Field(None, description="stop the schedule after this many steps")
    batch_size: Count = Field(2048, description="images a step over all ranks")
    lr: Positive = Field(3e-4, description="base learning rate, for 256 images: × batch_size / 256")
    min_lr: NotNegative = Field(
        0.0, description="final learning rate of the cosine, for 256 images"
    )
    warmup_epochs: NotNegative = 10
    weight_decay: NotNegative = 0.1
    decay: Literal["all", "weights"] = Field(
        "all", description="weights: no decay on biases, norms and tokens"
    )
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: on CUDA"
    )
    tensorboard: bool = Field(False, description="also log to TensorBoard (extra `track`)")
    log_steps: Count = Field(10, description="steps between rows of metrics.jsonl")
    checkpoint_epochs: Positive = Field(1.0, description="epochs between checkpoints")
    monitor_epochs: NotNegative = Field(
        10.0, description="epochs between kNN and collapse measurements; 0: none"
    )


class MethodConfig(Section):
    """Base of the settings of an objective."""

    name: str


class AddonConfig(Section):
    """Base of the settings of an add-on; `none` has no other."""

    name: str

    @property
    def tapped_layer(self) -> int | None:
        """The block whose output the add-on takes; None: no add-on."""
        return None

    @property
    def taps_cls(self) -> bool:
        """Whether the add-on takes [CLS] of the tapped layer, so that [CLS] cannot be delayed."""
        return False

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        """Values that follow from others given (presets); explicit values win over them."""
        del given, method
        return {}


class Recipe(Section):
    """Every setting of a pretraining run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    model: Model = Model()
    views: Views = Views()
    method: SerializeAsAny[MethodConfig]
    addon: SerializeAsAny[AddonConfig]
    train: Train = Train()

    def to_yaml(self) -> str:
        """The resolved recipe; reading it gives an equal one."""
        return dump_yaml(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Schedule:
    """Durations in steps, converted once.

    Attributes:
        steps_per_epoch: Full batches in the data set.
        total_steps: Length of the run (and of the cosine).
        warmup_steps: Linear warm-up, at most `total_steps`.
        checkpoint_steps: Steps between checkpoints.
        monitor_steps: Steps between kNN and collapse measurements (0: none).
        lr: Peak learning rate, train.lr × batch_size / 256.
        min_lr: Final learning rate, scaled alike.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: int
    monitor_steps: int
    lr: float
    min_lr: float

    @classmethod
    def of(cls, train: Train, num_images: int) -> Schedule:
        """Convert epochs to steps for a data set of `num_images`.

        Raises:
            UserError: The batch is larger than the data set.
        """
        if train.batch_size > num_images:
            raise UserError(
                f"train.batch_size {train.batch_size} with {num_images} images",
                "a batch must not be larger than the data set",
                f"use --set train.batch_size={max(2, num_images // 2)} or more images",
            )
        per_epoch = num_images // train.batch_size
        total = max(1, round(train.epochs * per_epoch))
        total = min(total, train.max_steps or total)

        def steps(epochs: float) -> int:
            return max(1, round(epochs * per_epoch))

        return cls(
            steps_per_epoch=per_epoch,
            total_steps=total,
            warmup_steps=min(total, round(train.warmup_epochs * per_epoch)),
            checkpoint_steps=steps(train.checkpoint_epochs),
            monitor_steps=steps(train.monitor_epochs) if train.monitor_epochs else 0,
            lr=train.lr * train.batch_size / 256,
            min_lr=train.min_lr * train.batch_size / 256,
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0…total−1: linear warm-up, then half a cosine to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        return cosine(self.lr, self.min_lr, (step - self.warmup_steps) / span)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

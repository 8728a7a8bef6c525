"""Settings of the optimiser and of what is around its steps, with what is usual by optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sercli.recipe.values import Count, NotNegative, Positive, Section, Share

Below1 = Annotated[float, Field(ge=0, lt=1)]

# What stands where a recipe does not say it, for 256 images; of AdamW the rest are the defaults
# below. LARS: Barlow Twins' script, whose last rate is 0.001 of the first. SGD: MoCo's, and DINO's
# of a ResNet-50. These two are of ResNets: no source for a ViT was found.
USUAL: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "adamw": {"betas": (0.9, 0.999)},
        "lars": {
            "lr": 0.2,
            "lr_biases": 0.0048,
            "min_lr": 2e-4,
            "weight_decay": 1e-6,
            "decay": "not-1d",
            "momentum": 0.9,
            "trust_coefficient": 0.001,
        },
        "sgd": {"lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9},
    }
)
# Those that other optimisers do not have.
_OF_ONE = ("betas", "momentum", "trust_coefficient")
# What is of an optimiser: choosing another leaves nothing of it that was said for the one before.
OPTIMISERS_OWN = frozenset(
    {*(key for usual in USUAL.values() for key in usual), "final_weight_decay"}
)


class Train(Section):
    """Optimisation and bookkeeping."""

    epochs: Positive = 100
    max_steps: Count | None = Field(None, description="stop the schedule after this many steps")
    batch_size: Count = Field(2048, description="images a step over all ranks")
    optimiser: Literal["adamw", "lars", "sgd"] = Field(
        "adamw", description="lars: as Barlow Twins; sgd: with momentum, as MoCo"
    )
    lr: Positive = Field(
        3e-4,
        description="base learning rate, for 256 images: × batch_size / 256; default: by optimiser",
    )
    lr_biases: Positive | None = Field(
        None,
        description="that of biases, norms and all else of one dimension; null: as lr; default: "
        "by optimiser",
    )
    layer_decay: Share | None = Field(
        None,
        description="learning rate of a block by that of the next one, d ** (depth + 1 - block); "
        "embedding: block 0; heads and final norm: all of it; null: 1",
    )
    min_lr: NotNegative = Field(
        0.0, description="final learning rate of the cosine, for 256 images"
    )
    warmup_epochs: NotNegative = 10
    warmup_ramp: Literal["step/W", "step/(W-1)"] = Field(
        "step/W",
        description="share of the peak at a step of the W of warm-up; step/(W-1) reaches the peak "
        "in the last of them (DINO)",
    )
    weight_decay: NotNegative = Field(0.1, description="default: by optimiser")
    final_weight_decay: NotNegative | None = Field(
        None, description="weight decay rises or falls to this on a cosine; default: constant"
    )
    decay: Literal["all", "not-1d", "weights"] = Field(
        "all",
        description="what decays; not-1d: all but biases and one-dimensional tensors (DINO); "
        "weights: all but those, [CLS] and positions",
    )
    betas: tuple[Below1, Below1] | None = Field(
        None, description="of AdamW: of its two running means; default: 0.9, 0.999"
    )
    momentum: Below1 | None = Field(None, description="of LARS and SGD; default: 0.9")
    trust_coefficient: Positive | None = Field(
        None, description="of LARS: length of a step by that of its weights; default: 0.001"
    )
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient")
    clip: Literal["global", "each"] = Field(
        "global", description="what clip_norm is of: the whole gradient, or each parameter's (DINO)"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: on CUDA"
    )
    accumulate: Count = Field(
        1, description="micro-batches of a step: the same numbers in less memory"
    )
    checkpointing: Literal["off", "blocks"] = Field(
        "off",
        description="blocks: the student keeps only what enters each block, and runs it again "
        "for its gradient",
    )
    tensorboard: bool = Field(False, description="also log to TensorBoard (extra `track`)")
    log_steps: Count = Field(10, description="steps between rows of metrics.jsonl")
    checkpoint_epochs: Positive = Field(1.0, description="epochs between checkpoints")
    keep_epochs: NotNegative | None = Field(
        None, description="epochs between milestones, checkpoints that are never dropped; 0: none"
    )
    monitor_epochs: NotNegative = Field(
        10.0, description="epochs between kNN and collapse measurements; 0: none"
    )

    @model_validator(mode="before")
    @classmethod
    def _what_is_usual_by_optimiser(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        optimiser = str(given.get("optimiser", cls.model_fields["optimiser"].default))
        if optimiser not in USUAL:
            return given
        usual = USUAL[optimiser]
        told = {k: v for k, v in given.items() if v is not None or k not in _OF_ONE}
        for key in _OF_ONE:
            if key in told and key not in usual:
                others = " and ".join(name for name, has in USUAL.items() if key in has)
                raise ValueError(
                    f"train.{key} is of {others}; train.optimiser is {optimiser!r}; leave "
                    f"train.{key} out"
                )
        return {**usual, **told}

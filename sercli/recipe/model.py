"""The settings of a ViT: its size, its blocks, its positions, and what stands for an image."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sercli.recipe.values import Count, Positive, Section

TIMM = "timm:"
MlpKind = Literal["gelu", "gelu-tanh", "quick-gelu", "swiglu"]
PosResize = Literal["bicubic", "bicubic-antialias", "bicubic-offset", "bicubic-aligned"]

# Settings that earlier versions did not have. Where they are as they were then, a recipe is
# written, and hashed, without them.
_ADDED = frozenset(
    {
        "registers",
        "pool",
        "cls_token",
        "final_norm",
        "layer_scale",
        "mlp",
        "mlp_width",
        "mlp_norm",
        "qk_norm",
        "qkv_bias",
        "attn_norm",
        "patch_bias",
        "norm_eps",
        "pre_norm",
        "rope",
        "rope_base",
        "rope_grid",
    }
)

_OF_WEIGHTS = frozenset({"weights", "weights_sha256", "weights_as"})  # no earlier version had them

# Settings that follow from a ViT of timm's: what it is, not how it is drawn and trained.
ARCHITECTURE = _ADDED | {
    "patch_size",
    "width",
    "depth",
    "num_heads",
    "pos_embed",
    "pos_resize",
}


class Initialiser(StrEnum):
    """Whose way of drawing a ViT's weights; what each does stands at `Encoder.initialise`."""

    TIMM = auto()
    DINO = auto()
    MOCO_V3 = "moco-v3"
    SER_MOCO = "ser-moco"


class WeightsAs(Section):
    """How the weights that a run begins from are read: what evaluators take as options."""

    teacher: bool = Field(False, description="the momentum encoder, not the student")
    key: str | None = Field(None, description="where in the file the encoder is")
    num_heads: Count | None = Field(None, description="attention heads, if the file is silent")
    cls_after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="block after which [CLS] joined there, if the file is silent"
    )
    positions: PosResize | None = Field(
        None, description="how its own code resamples positions, if the file is silent"
    )
    arch: str | None = Field(None, description="its name in timm, if the file is silent")
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] | None = Field(
        None, description="in its MLPs, of a CLIP or SigLIP whose file is silent"
    )


class Model(Section):
    """The ViT, and what it begins from."""

    name: str = Field(
        "vit_small",
        description="its size, such as vit_small or vit_base; or timm:NAME, one of timm's ViTs, "
        "whose settings are then the defaults",
    )
    patch_size: Count = Field(16, description="side of a patch, pixels")
    width: Count | None = Field(None, description="embedding width; default: by name")
    depth: Count | None = Field(None, description="number of blocks; default: by name")
    num_heads: Count | None = Field(None, description="attention heads; default: by name")
    pos_embed: Literal["learned", "sincos", "none"] = Field(
        "learned", description="added to patches; sincos is MoCo-v3's"
    )
    pos_resize: PosResize = Field(
        "bicubic",
        description="positions on another grid: resampled to its exact size; bicubic-offset: by "
        "(n + 0.1) / m, as DINO and the SER authors do; bicubic-antialias: as timm; "
        "bicubic-aligned: corner to corner, as torchvision",
    )
    patch_embed: Literal["trained", "frozen"] = Field(
        "trained", description="frozen: a random patch embedding, as in MoCo-v3"
    )
    init: Initialiser = Field(
        Initialiser.TIMM,
        description="who draws the weights: timm; dino ([CLS] as large as positions); moco-v3 "
        "(Xavier); ser-moco (the same, but patches as any convolution)",
    )
    cls_after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="block after which [CLS] joins; default: follows addon.layer"
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="stochastic depth of the student's last block, rising from 0 at the first"
    )
    registers: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="tokens beside [CLS] that stand for nothing, and join with it (DINOv2)"
    )
    pool: Literal["cls", "mean"] = Field(
        "cls", description="what stands for an image: [CLS], or the mean of its patch tokens"
    )
    cls_token: bool | None = Field(None, description="whether there is a [CLS]; default: by pool")
    final_norm: Literal["tokens", "pooled"] = Field(
        "tokens", description="what the last norm is of: tokens, or their mean (EVA-02)"
    )
    layer_scale: Positive | None = Field(
        None, description="LayerScale: at first both branches of a block are multiplied by this"
    )
    mlp: MlpKind = Field(
        "gelu", description="of a block: gelu, gelu-tanh (SigLIP), quick-gelu (CLIP) or swiglu"
    )
    mlp_width: Count | None = Field(
        None,
        description="inside the MLP; default: 4 times the width, of swiglu 8/3 of it, in whole 8",
    )
    mlp_norm: bool = Field(False, description="a norm inside the MLP (EVA-02)")
    qk_norm: bool = Field(False, description="norms of queries and of keys, head by head")
    qkv_bias: bool | Literal["qv"] = Field(
        True, description="of queries, keys and values; qv: of queries and values only (EVA)"
    )
    attn_norm: bool = Field(False, description="a norm behind attention, before its projection")
    patch_bias: bool = Field(True, description="of the patch embedding")
    norm_eps: Positive = Field(1e-6, description="what all norms add to the variance")
    pre_norm: bool = Field(False, description="a norm of all tokens before the blocks (CLIP)")
    rope: Literal["dinov3", "eva02"] | None = Field(
        None, description="rotary positions: queries and keys of patches are turned by their place"
    )
    rope_base: Annotated[float, Field(gt=1)] | None = Field(
        None, description="longest period over shortest; default: dinov3 100, eva02 10000"
    )
    rope_grid: Count | None = Field(
        None, description="eva02: patches a side that places of any grid are scaled to"
    )

    weights: str | None = Field(
        None,
        description="what it begins from: a run directory, a checkpoint file or timm:NAME; the "
        "architecture is then that of the weights",
    )
    weights_sha256: str | None = Field(
        None, description="what these must be, in hex; a run notes it when it begins"
    )
    weights_as: WeightsAs | None = Field(
        None, description="how they are read, where their file does not say it"
    )

    @property
    def has_cls(self) -> bool:
        """Whether there is a [CLS] token."""
        return self.pool == "cls" if self.cls_token is None else self.cls_token

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.pool == "cls" and not self.has_cls:
            raise ValueError("model.cls_token false with model.pool cls: use model.pool=mean")
        if self.final_norm == "pooled" and self.pool == "cls":
            raise ValueError("model.final_norm pooled with model.pool cls: it is of a mean")
        if self.cls_after is not None and not self.has_cls:
            raise ValueError(
                f"model.cls_after {self.cls_after} without a [CLS] (model.pool mean): there is "
                "none that could join; leave model.cls_after out, or set model.cls_token=true"
            )
        if self.rope_base is not None and self.rope is None:
            raise ValueError("model.rope_base without model.rope: use model.rope=dinov3 or eva02")
        if self.rope_grid is not None and self.rope != "eva02":
            raise ValueError("model.rope_grid is of model.rope=eva02 only")
        return self

    @model_validator(mode="after")
    def _are_said_of_weights(self) -> Self:
        for key in ("weights_sha256", "weights_as"):
            if self.weights is None and getattr(self, key) is not None:
                raise ValueError(
                    f"model.{key} without model.weights: it says what these are; leave it out, or "
                    "name them (--weights MODEL)"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_what_earlier_versions_had_no_word_for(
        self, default: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        usual, by_name = type(self).model_fields, self.name.startswith(TIMM)
        added = _OF_WEIGHTS if by_name else _ADDED | _OF_WEIGHTS
        return {
            key: value
            for key, value in default(self).items()
            if key not in added or getattr(self, key) != usual[key].default
        }

"""The table of layouts, `LAYOUTS`.

Where each project puts its encoders, what else it stores beside and inside them, how many
attention heads its own code gives a ViT of that width and depth, how that code resamples
positions for images of another size, and what else no tensor shows.

Sources of the facts: facebookresearch/moco-v3 `vits.py`, `moco/builder.py`, `main_moco.py`;
facebookresearch/dino `vision_transformer.py`, `main_dino.py`; facebookresearch/barlowtwins
`main.py`; aitrics-chris/SER `vision_transformer.py`, `main_*.py`; facebookresearch/dinov2
`models/vision_transformer.py`, `train/train.py`, `layers/swiglu_ffn.py`; lightly-ai/lightly
`masked_vision_transformer_*.py`, `benchmarks/imagenet/vitb16`, `examples`; vturrisi/solo-learn
`backbones/vit`, `methods/base.py`; timm `vision_transformer.py`, `train.py`; facebookresearch/mae
`util/pos_embed.py`; torchvision `models/vision_transformer.py`; facebookresearch/deit
`models_v2.py`, `main.py`; facebookresearch/ijepa `src/train.py`,
`src/models/vision_transformer.py`; facebookresearch/dinov3 `hub/backbones.py`, README; openai/CLIP
`clip/model.py`, `clip/clip.py`; mlfoundations/open_clip `model.py`, `transformer.py`;
baaivision/EVA `EVA-02/asuka/modeling_*.py`, `datasets.py`.

MoCo-v3's own code takes one size only; its README leads on to DeiT's, which resamples bicubically.
OpenAI's takes one size too; open_clip resamples its files with antialiasing. I-JEPA's own function
is for positions with a place for [CLS], which it has not; transformers' is bicubic. solo-learn's
ViTs are timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.foreign.names import Family
from sercli.recipe.schema import PosResize

Role = Literal["student", "teacher", "encoder"]
Heads = Mapping[tuple[int, int], int]
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]

EXPORT_LAYOUT = "ser-export"
IMAGENET: Colours = (IMAGENET_MEAN, IMAGENET_STD)
CLIPS: Colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIPS: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Of DINOv3 trained on satellites' images: those ViTs have a norm for [CLS] of small crops.
SATELLITES: Colours = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

# (width, depth): heads, as the projects' own code builds them.
TIMM_HEADS: Heads = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_DINO_HEADS: Heads = {(192, 12): 3, (384, 12): 6, (768, 12): 12}
_DINOV2_HEADS: Heads = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}
_DINOV3_HEADS: Heads = {
    (384, 12): 6,
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 32): 20,
    (4096, 40): 32,
}
_DEIT_HEADS: Heads = {**TIMM_HEADS, (512, 12): 8}
_IJEPA_HEADS: Heads = {**TIMM_HEADS, (1408, 40): 16}
_EVA02_HEADS: Heads = {**_DINO_HEADS, (1024, 24): 16}
_CLIP_HEADS: Heads = {
    (384, 12): 6,
    (512, 12): 8,
    (768, 12): 12,
    (896, 12): 14,
    (1024, 24): 16,
    (1280, 32): 16,
    (1408, 40): 16,
    (1664, 48): 16,
}
_SIGLIP_HEADS: Heads = {(768, 12): 12, (1024, 24): 16, (1152, 27): 16}
_SER_HEADS: Heads = {(384, 12): 6}
_MOCO_V3_HEADS: Heads = {(384, 12): 12, (768, 12): 12}
# solo-learn's own ViTs of MoCo-v3 and MAE, both with fixed positions, go on to other widths.
SOLO_FIXED_HEADS: Heads = {**_MOCO_V3_HEADS, (192, 12): 12, (1024, 24): 16, (1280, 32): 16}
# Whoever's they are: 384 wide is left out, there MoCo-v3 differs from everybody else.
AGREED_HEADS: Heads = {key: heads for key, heads in TIMM_HEADS.items() if key != (384, 12)}

# Blocks of a ViT of that width in all of this code; some of timm's have more, none has fewer.
USUAL_DEPTHS = dict((*TIMM_HEADS, *_DINOV2_HEADS))

_LIGHTNING = (
    r"[^.]*(head|project|predict|classifier|criterion|loss|prototype|queue|bank|decoder|mask_token"
    r"|momentum|backbone|center|knn|metric|teacher|student)"
)


_CLIPS_REST = (
    r"(visual\.head|text|transformer|token_embedding|ln_final|text_projection)(\.|$)"
    r"|(positional_embedding|logit_scale|logit_bias|attn_mask|input_resolution|context_length"
    r"|vocab_size)$"
)
# In front of the names, by the task that a model of transformers' is for.
_TRANSFORMERS = (
    "",
    "vision_model.",
    "vit.",
    "dinov2.",
    "dinov2_with_registers.",
    "dinov3_vit.",
    "ijepa.",
)


@dataclass(frozen=True)
class Layout:
    """How one project lays out its checkpoints.

    Attributes:
        name: Recorded with results.
        places: (sub-dictionary of the file as a shell pattern, beginning of the tensor names in
            it, whose encoder that is). A leading `module.` is taken off before.
        marks: The file must have all of one of these groups: beginnings of keys or, between dots,
            of tensor names. Empty: no condition.
        beside: Regular expression for tensors of the same sub-dictionary that are no encoder.
        inside: The same for tensors among the encoder's own that belong to heads.
        families: Whose names its encoders have.
        num_heads: By (width, depth), where the project's own code fixes it.
        pos_resize: How the project's own code resamples positions, see `Encoder.positions`.
        pos_resize_registers: The same for its ViTs with registers, where that is another way.
        norm_eps: ε of its LayerNorms.
        colours: Mean and std of its input.
        asks_for_mlp: Its tensors do not show which GELU its MLPs have, and its code has several.
        rope: Its rotary positions.
        pools: It has no [CLS]: the mean of its tokens stands for an image.
    """

    name: str
    places: tuple[tuple[str, str, Role], ...]
    num_heads: Heads
    pos_resize: PosResize = "bicubic-antialias"
    marks: tuple[tuple[str, ...], ...] = ()
    beside: str = r"(?!)"
    inside: str = r"heads?\."
    pos_resize_registers: PosResize = "bicubic-antialias"
    families: tuple[Family, ...] = ("timm", "torchvision")
    norm_eps: float = 1e-6
    colours: Colours = IMAGENET
    asks_for_mlp: bool = False
    rope: Literal["dinov3", "eva02"] | None = None
    pools: bool = False


LAYOUTS = (
    Layout(  # the authors': one main_*.py for each of MoCo-v3, DINO and Barlow Twins
        "ser-authors",
        (
            ("student", "", "student"),
            ("teacher", "", "teacher"),
            ("student", "backbone.", "student"),
            ("teacher", "backbone.", "teacher"),
            ("model", "", "student"),
            ("model", "backbone.", "student"),
            ("*", "base_encoder.", "student"),  # MoCo-v3's wrapper around their ViT
            ("*", "momentum_encoder.", "teacher"),
            ("*", "", "encoder"),
        ),
        _SER_HEADS,
        pos_resize="bicubic-offset",
        marks=(("norm_equiv.",), ("projector_equiv",), ("projector_inv",), ("args.equiv_layer",)),
        beside=r"(head|predictor|projector|projector_equiv|projector_inv|bn)\.",
        inside=r"(head|norm_equiv)\.",
    ),
    Layout(
        "ijepa",
        (("encoder", "", "student"), ("target_encoder", "", "teacher")),
        _IJEPA_HEADS,
        pos_resize="bicubic",
        marks=(("predictor_blocks.",),),
        pools=True,
    ),
    Layout(  # OpenAI's and open_clip's own ViTs: the text tower lies beside
        "clip",
        (("*", "visual.", "encoder"), ("*", "", "encoder")),
        _CLIP_HEADS,
        families=("clip",),
        beside=_CLIPS_REST,
        inside=r"proj$",
        norm_eps=1e-5,
        colours=CLIPS,
        asks_for_mlp=True,
    ),
    Layout(  # open_clip around a ViT of timm's
        "open_clip",
        (("*", "visual.trunk.", "encoder"),),
        _SIGLIP_HEADS,
        beside=_CLIPS_REST,
        inside=r"(heads?|fc_norm|attn_pool)\.",
        asks_for_mlp=True,
        pools=True,
    ),
    Layout(
        "transformers",
        tuple(("*", f"{place}", "encoder") for place in _TRANSFORMERS),
        {},
        pos_resize="bicubic",
        families=("transformers",),
        beside=r"(classifier|decoder|lm_head|text_model|pooler|head|visual_projection"
        r"|text_projection)\.|logit_(scale|bias)$",
        inside=r"(pooler|head|classifier)\.|embeddings\.(mask_token|position_ids)$",
    ),
    Layout(
        "moco-v3",
        (("*", "base_encoder.", "student"), ("*", "momentum_encoder.", "teacher")),
        _MOCO_V3_HEADS,
        pos_resize="bicubic",
        marks=(("base_encoder.",),),
        beside=r"predictor\.",
    ),
    Layout(
        "dinov3",
        (
            ("student", "backbone.", "student"),
            ("teacher", "backbone.", "teacher"),
            ("*", "", "encoder"),
        ),
        _DINOV3_HEADS,
        marks=(("rope_embed.periods",), ("backbone.rope_embed.periods",)),
        beside=r"(dino_head|ibot_head)\.",
        inside=r"(head\.|mask_token$|local_cls_norm\.)",
        norm_eps=1e-5,
        rope="dinov3",
    ),
    Layout(
        "dinov2",
        (
            ("student", "backbone.", "student"),
            ("teacher", "backbone.", "teacher"),
            ("model", "student.backbone.", "student"),  # what its training goes on from (FSDP)
            ("model", "teacher.backbone.", "teacher"),
            ("*", "", "encoder"),
        ),
        _DINOV2_HEADS,
        pos_resize="bicubic-offset",
        marks=(("register_tokens",), ("mask_token", "blocks.0.ls1."), ("blocks.0.0.",)),
        beside=r"((student\.|teacher\.)?(dino_head|ibot_head)|dino_loss|ibot_patch_loss)\.",
        inside=r"(head\.|mask_token$)",
    ),
    Layout(
        "eva02",
        (("*", "", "encoder"),),
        _EVA02_HEADS,
        pos_resize="bicubic",
        marks=(("blocks.0.attn.q_bias", "blocks.0.mlp.w3."),),
        inside=r"((head|lm_head)\.|mask_token$)",
        colours=CLIPS,
        rope="eva02",
    ),
    Layout(  # timm's EVA-02
        "timm",
        (("*", "", "encoder"),),
        _EVA02_HEADS,
        marks=(("blocks.0.attn.q_bias",), ("blocks.0.attn.q_proj.",)),
        inside=r"(head|mask_token)(\.|$)",
        colours=CLIPS,
        rope="eva02",
    ),
    Layout(
        "deit-iii",
        (("*_ema", "", "teacher"), ("*", "", "encoder")),
        _DEIT_HEADS,
        pos_resize="bicubic",
        marks=(("blocks.0.gamma_1",),),
    ),
    Layout(
        "dino",
        (("student", "backbone.", "student"), ("teacher", "backbone.", "teacher")),
        _DINO_HEADS,
        pos_resize="bicubic-offset",
        beside=r"head\.",
        inside=r"(head\.|masked_embed$)",  # iBOT's
    ),
    Layout(  # its public weights are ResNets, so no number of heads is
        "barlow-twins",
        (("*", "backbone.", "student"),),
        AGREED_HEADS,
        marks=(("projector.", "bn.running_mean"),),
        beside=r"(projector|bn)\.",
    ),
    Layout(
        "solo-learn",
        (
            ("state_dict", "backbone.", "student"),
            ("state_dict", "momentum_backbone.", "teacher"),
            ("state_dict", "encoder.", "student"),  # its earlier releases
            ("state_dict", "momentum_encoder.", "teacher"),
        ),
        TIMM_HEADS,
        marks=(("classifier.",), ("momentum_backbone.",)),
        beside=_LIGHTNING,
    ),
    Layout(  # examples and benchmarks: timm's ViT in a wrapper that holds it as `vit`
        "lightly",
        (
            ("state_dict", "student_backbone.vit.", "student"),
            ("state_dict", "anchor_backbone.vit.", "student"),
            ("state_dict", "teacher_backbone.vit.", "teacher"),
            ("state_dict", "backbone.vit.", "teacher"),
        ),
        TIMM_HEADS,
        marks=(("student_backbone.vit.",), ("anchor_backbone.vit.",)),
        beside=_LIGHTNING,
    ),
    Layout(
        "lightly",
        (
            ("state_dict", "backbone.vit.", "student"),
            ("state_dict", "backbone_momentum.vit.", "teacher"),
        ),
        TIMM_HEADS,
        beside=_LIGHTNING,
    ),
    Layout(  # a ViT of the user's choice in a LightningModule, named as lightly's examples do
        "lightly",
        (
            ("state_dict", "student_backbone.", "student"),
            ("state_dict", "teacher_backbone.", "teacher"),
            ("state_dict", "backbone.", "teacher"),
        ),
        AGREED_HEADS,
        marks=(("student_backbone.",),),
        beside=_LIGHTNING,
    ),
    Layout(
        "lightly",
        (
            ("state_dict", "backbone.", "student"),
            ("state_dict", "backbone_momentum.", "teacher"),
        ),
        AGREED_HEADS,
        beside=_LIGHTNING,
    ),
    Layout(  # timm's names with nothing around them: timm, DeiT, MAE, DINO's and others' backbones
        "timm",
        (
            ("*_ema", "", "teacher"),
            ("student", "", "student"),
            ("teacher", "", "teacher"),
            ("*", "", "encoder"),
        ),
        AGREED_HEADS,
        inside=r"(head|heads|head_dist|pre_logits|decoder\w*|mask_token|attn_pool)(\.|$)",
    ),
)
# Of an encoder whose place the user named, where none of these fits.
UNKNOWN = Layout("timm", (), AGREED_HEADS, inside=LAYOUTS[-1].inside)

"""The table of layouts, `LAYOUTS`.

Where each project puts its encoders, what else it stores beside and inside them, how many
attention heads its own code gives a ViT of that width and depth, and how that code resamples
positions for images of another size.

Sources of the facts: facebookresearch/moco-v3 `vits.py`, `moco/builder.py`, `main_moco.py`;
facebookresearch/dino `vision_transformer.py`, `main_dino.py`; facebookresearch/barlowtwins
`main.py`; aitrics-chris/SER `vision_transformer.py`, `main_*.py`; facebookresearch/dinov2
`models/vision_transformer.py`, `train/train.py`, `layers/swiglu_ffn.py`; lightly-ai/lightly
`masked_vision_transformer_*.py`, `benchmarks/imagenet/vitb16`, `examples`; vturrisi/solo-learn
`backbones/vit`, `methods/base.py`; timm `vision_transformer.py`, `train.py`; facebookresearch/mae
`util/pos_embed.py`; torchvision `models/vision_transformer.py`.

MoCo-v3's own code takes one size only; its README leads on to DeiT's, which resamples bicubically.
solo-learn's ViTs are timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sercli.recipe.schema import PosResize

Role = Literal["student", "teacher", "encoder"]
Heads = Mapping[tuple[int, int], int]

EXPORT_LAYOUT = "ser-export"

# (width, depth): heads, as the projects' own code builds them.
_TIMM_HEADS: Heads = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_DINO_HEADS: Heads = {(192, 12): 3, (384, 12): 6, (768, 12): 12}
_DINOV2_HEADS: Heads = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}
_SER_HEADS: Heads = {(384, 12): 6}
_MOCO_V3_HEADS: Heads = {(384, 12): 12, (768, 12): 12}
# solo-learn's own ViTs of MoCo-v3 and MAE, both with fixed positions, go on to other widths.
SOLO_FIXED_HEADS: Heads = {**_MOCO_V3_HEADS, (192, 12): 12, (1024, 24): 16, (1280, 32): 16}
# Whoever's they are: 384 wide is left out, there MoCo-v3 differs from everybody else.
AGREED_HEADS: Heads = {key: heads for key, heads in _TIMM_HEADS.items() if key != (384, 12)}

# Blocks of a ViT of that width in all of this code; some of timm's have more, none has fewer.
USUAL_DEPTHS = dict((*_TIMM_HEADS, *_DINOV2_HEADS))

_LIGHTNING = (
    r"[^.]*(head|project|predict|classifier|criterion|loss|prototype|queue|bank|decoder|mask_token"
    r"|momentum|backbone|center|knn|metric|teacher|student)"
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
        num_heads: By (width, depth), where the project's own code fixes it.
        pos_resize: How the project's own code resamples positions, see `Encoder.positions`.
        pos_resize_registers: The same for its ViTs with registers, where that is another way.
    """

    name: str
    places: tuple[tuple[str, str, Role], ...]
    num_heads: Heads
    pos_resize: PosResize = "bicubic-antialias"
    marks: tuple[tuple[str, ...], ...] = ()
    beside: str = r"(?!)"
    inside: str = r"heads?\."
    pos_resize_registers: PosResize = "bicubic-antialias"


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
        "moco-v3",
        (("*", "base_encoder.", "student"), ("*", "momentum_encoder.", "teacher")),
        _MOCO_V3_HEADS,
        pos_resize="bicubic",
        marks=(("base_encoder.",),),
        beside=r"predictor\.",
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
        _TIMM_HEADS,
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
        _TIMM_HEADS,
        marks=(("student_backbone.vit.",), ("anchor_backbone.vit.",)),
        beside=_LIGHTNING,
    ),
    Layout(
        "lightly",
        (
            ("state_dict", "backbone.vit.", "student"),
            ("state_dict", "backbone_momentum.vit.", "teacher"),
        ),
        _TIMM_HEADS,
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
        inside=r"(head|heads|head_dist|pre_logits|decoder\w*|mask_token)(\.|$)",
    ),
)
# Of an encoder whose place the user named, where none of these fits.
UNKNOWN = Layout("timm", (), AGREED_HEADS, inside=LAYOUTS[-1].inside)

"""The paper's published numbers, as data.

"Soft Equivariance Regularization for Invariant Self-Supervised Learning", ICLR 2026,
arXiv 2603.06693: ViT-S/16, ImageNet-1k, 100 epochs. They are never comparable with runs on other
data, and `compare` shows them in rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sercli.protocols import PROTOCOLS

PAPER = "ICLR 2026, arXiv 2603.06693; ViT-S/16, ImageNet-1k, 100 epochs"
LINEAR = PROTOCOLS["linear-eval"].key("top1", "ser")
SKETCH = PROTOCOLS["robustness"].key("top1", "imagenet-sketch")
V2 = PROTOCOLS["robustness"].key("top1", "imagenet-v2-matched-frequency")
R = PROTOCOLS["robustness"].key("top1", "imagenet-r")
CORRUPTED = PROTOCOLS["robustness"].key("top1", "imagenet-c")
PERTURBED = PROTOCOLS["robustness"].key("top1", "imagenet-p")
DETECTION = tuple(  # engine not stated
    PROTOCOLS["coco-detect"].key("ap", engine) for engine in ("detectron2", "torchvision")
)
FLOPS = "run/flops_ratio_none"
RAW_COSINE = PROTOCOLS["equiv-score"].key("cosine_raw/block{block}/rotation")

ALONE = "By the paper's protocol; no run here has it; percent."

V2_NOTE = "Published for ImageNet-V2 without naming which of its three sets."
TOP1_NOTE = "Published as a top-1 gain of SER, not as mCE or flip rate; base and views not named."
DETECTION_NOTE = "Published as a gain in mAP on a frozen backbone; protocol not public."
FLOPS_NOTE = (
    "The paper's 1.008 counts the rows that eight ranks each compute; a run's ratio is counted "
    "once and comes out lower."
)
ROTATION_NOTE = (
    "Published as Rotation Equiv, one number a model, definition and block not public: beside "
    "the raw cosine because it is probably of that kind, never beside ES."
)


@dataclass(frozen=True)
class Number:
    """One published number.

    Attributes:
        value: As printed, or None where only a difference is published.
        difference: To the paper's baseline, where the paper states it.
        note: What a reader must know of it.
    """

    value: float | None = None
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedRow:
    """One row of the paper.

    Attributes:
        method, addon: Names of method and add-on, as in recipes.
        views: "2", "3", "2+4", or empty where the paper does not say.
        layer: Block whose output the add-on uses; None for baselines and where not stated.
        weight_zero: The control with λ = 0.
        main: Stands for its method and add-on where no row has a run's layer.
        numbers: By column key; `{block}` stands for the block that is compared.
        source: Which of the paper's tables or statements.
    """

    method: str
    addon: str
    views: str
    layer: int | None
    source: str
    numbers: Mapping[str, Number]
    weight_zero: bool = False
    main: bool = True


def _accuracies(
    linear: float, sketch: float, v2: float, r: float, gain: float | None = None
) -> dict[str, Number]:
    return {
        LINEAR: Number(linear, gain),
        SKETCH: Number(sketch),
        V2: Number(v2, note=V2_NOTE),
        R: Number(r),
    }


def _rotation(value: float) -> dict[str, Number]:
    return {RAW_COSINE: Number(value, note=ROTATION_NOTE)}


_MAIN = "main results"
_ABLATION = "layer ablation"
_GAINS = {
    CORRUPTED: Number(difference=1.11, note=TOP1_NOTE),
    PERTURBED: Number(difference=1.22, note=TOP1_NOTE),
    **dict.fromkeys(DETECTION, Number(difference=1.7, note=DETECTION_NOTE)),
    FLOPS: Number(1.008, note=FLOPS_NOTE),
}

ROWS: tuple[PublishedRow, ...] = (
    PublishedRow(
        "moco",
        "none",
        "2",
        None,
        f"{_MAIN}; {_ABLATION}",
        {**_accuracies(68.44, 17.65, 56.54, 18.59), **_rotation(0.804)},
    ),
    PublishedRow("moco", "augself", "2", None, _MAIN, _accuracies(67.55, 13.30, 53.74, 17.62)),
    PublishedRow(
        "moco",
        "augself",
        "2",
        3,
        "layer transfer, from 67.55",
        {LINEAR: Number(68.23)},
        main=False,
    ),
    PublishedRow("moco", "stl", "2", None, _MAIN, _accuracies(65.49, 15.40, 55.43, 17.22)),
    PublishedRow(
        "moco",
        "ser",
        "2",
        3,
        f"{_MAIN}; {_ABLATION}; text",
        {**_accuracies(69.28, 17.68, 56.95, 18.95, gain=0.84), **_rotation(0.840), **_GAINS},
    ),
    PublishedRow(
        "moco",
        "ser",
        "2",
        3,
        "control with λ = 0",
        {LINEAR: Number(68.82, 0.38)},
        weight_zero=True,
    ),
    PublishedRow(
        "moco",
        "ser",
        "2",
        9,
        _ABLATION,
        {LINEAR: Number(68.72), **_rotation(0.888)},
        main=False,
    ),
    PublishedRow(
        "moco",
        "ser",
        "2",
        12,
        _ABLATION,
        {LINEAR: Number(68.18), **_rotation(0.924)},
        main=False,
    ),
    PublishedRow("moco", "equimod", "3", None, _MAIN, _accuracies(68.95, 14.81, 56.31, 16.54)),
    PublishedRow(
        "moco",
        "equimod",
        "3",
        3,
        "layer transfer, from 68.95",
        {LINEAR: Number(69.51)},
        main=False,
    ),
    PublishedRow("moco", "essl", "2+4", None, _MAIN, _accuracies(70.60, 19.23, 58.33, 19.86)),
    PublishedRow("moco", "ser", "2+4", 3, _MAIN, _accuracies(71.56, 19.76, 59.50, 20.27)),
    PublishedRow("dino", "ser", "", 3, "text, consistency", {LINEAR: Number(difference=0.26)}),
    PublishedRow(
        "barlow-twins", "ser", "", 3, "text, consistency", {LINEAR: Number(difference=0.68)}
    ),
)


@dataclass(frozen=True)
class Identity:
    """What of a run decides which published rows belong to it."""

    method: str
    addon: str
    views: str
    layer: int | None = None
    weight_zero: bool = False


@dataclass(frozen=True)
class Matching:
    """Published rows that belong to some runs, and the columns they fill."""

    rows: tuple[PublishedRow, ...] = field(default=())

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for row in self.rows for key in row.numbers)


def matching(runs: Iterable[Identity]) -> Matching:
    """The published rows of the same method, add-on, views and layer, in the paper's order.

    Where the paper has no row of a run's layer, its main row stands for it.
    """
    found: set[int] = set()
    for run in runs:
        alike = [
            index
            for index, row in enumerate(ROWS)
            if (row.method, row.addon, row.weight_zero) == (run.method, run.addon, run.weight_zero)
            and row.views in {"", run.views.partition("-")[0]}
        ]
        exact = [index for index in alike if ROWS[index].layer == run.layer]
        found.update(exact or [index for index in alike if ROWS[index].main])
    return Matching(tuple(ROWS[index] for index in sorted(found)))

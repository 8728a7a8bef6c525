"""The paper's tables, as data: which runs are in each, in which columns, and what fills them.

Like `published`, this names protocols and add-ons: a table of the paper is of certain numbers of
certain models. How a table is made of it is `named`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sercli.protocols import PROTOCOLS
from sercli.report.compare import published as paper

# In a pattern: the blocks that add-ons tap, a column for each, and the one that is compared.
TAPPED = "{tapped}"
COMPARED = "{compared}"


@dataclass(frozen=True)
class Wanted:
    """A column of a table.

    Attributes:
        pattern: Its key, with wildcards between slashes, `TAPPED` or `COMPARED`; all that fit.
        words: What it is, for where no run has it.
        fill: The command that measures it.
        beside: Patterns of what stands in where no run has it, and is shown as well where runs are
            of images that are no one else's (the embedded world).
    """

    pattern: str
    words: str
    fill: str
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables.

    Attributes:
        title: What it is headed.
        columns: The paper's.
        addons: Whose runs are in it; none: all.
        varied: Also any add-on that was run at several layers.
        controls: Whether runs are in it that only explain others (λ = 0, a placebo, delayed [CLS]).
        layers: By add-on, the layer at which it stands for itself: where it was run at that one,
            its runs at others are not in the table.
    """

    title: str
    columns: tuple[Wanted, ...]
    addons: tuple[str, ...] = ()
    varied: bool = False
    controls: bool = True
    layers: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_blocks(self) -> bool:
        """Whether columns of it are of blocks."""
        return any(TAPPED in one.pattern or COMPARED in one.pattern for one in self.columns)


# What makes a run a control: a key of its recipe, and how it stands there.
CONTROLS: Mapping[str, Callable[[Any], bool]] = {
    "addon.weight": lambda value: value == 0,
    "addon.action": lambda value: value == "placebo",
    "model.cls_after": lambda value: value is not None,
}

_PROBE_OF = PROTOCOLS["linear-eval"]
_PROBE = Wanted(
    paper.LINEAR,
    "linear probe top-1",
    "ser linear-eval RUN",
    beside=(
        *(
            _PROBE_OF.key("top1", f"{preset}{kept}")
            for preset in _PROBE_OF.variants
            for kept in ("", "-no-augment")
        ),
        PROTOCOLS["knn"].key("top1"),
    ),
)
_ROTATION = "ES under rotation"


def _shifted(key: str, words: str, *beside: str) -> Wanted:
    return Wanted(key, words, "ser robustness RUN --all DIR", beside)


def _of_run(pattern: str, words: str) -> Wanted:
    return Wanted(f"run/{pattern}", words, "ser pretrain")


# The add-ons of others are at the last layer in the paper's main table, as their authors have them.
_PLACES = {"ser": 3, "augself": 12, "stl": 12, "equimod": 12, "essl": 12}
_SETS = (
    _shifted(paper.SKETCH, "ImageNet-Sketch"),
    _shifted(paper.V2, "ImageNet-V2"),
    _shifted(paper.R, "ImageNet-R"),
)

PAPERS_TABLES: Mapping[str, PaperTable] = {
    "main": PaperTable(
        "Main results",
        (_PROBE, *_SETS),
        controls=False,
        layers=_PLACES,
    ),
    "ablation": PaperTable(
        "Layer ablation",
        (
            _of_run("layer", "the layer"),
            _PROBE,
            Wanted(f"equiv-score/es/block{TAPPED}/rotation", _ROTATION, "ser equiv-score RUN"),
        ),
        addons=("none", "ser"),
        varied=True,
    ),
    "robustness": PaperTable(
        "Robustness",
        (
            _shifted(
                paper.CORRUPTED,
                "ImageNet-C top-1",
                "robustness--val/top1",
                "robustness--imagenet-c-otf/top1",
            ),
            _shifted("robustness--imagenet-c/mce", "mCE", "robustness--imagenet-c-otf/mce"),
            _shifted(paper.PERTURBED, "ImageNet-P top-1"),
            _shifted("robustness--imagenet-p/fp", "flip probability"),
            _shifted("robustness--imagenet-p-mfr/mfr", "mFR (with --alexnet-p)"),
            *_SETS,
            _shifted("robustness--imagenet-a/top1", "ImageNet-A"),
        ),
    ),
    "objectives": PaperTable(
        "Objectives without and with SER",
        (
            _PROBE,
            Wanted(f"equiv-score/es/block{COMPARED}/rotation", _ROTATION, "ser equiv-score RUN"),
        ),
        addons=("none", "ser"),
        controls=False,
        layers=_PLACES,
    ),
    "transfer": PaperTable(
        "Transfer",
        (
            Wanted("coco-detect--*/ap", "detection AP", "ser coco-detect RUN"),
            Wanted("coco-detect--*/mask_ap", "mask AP", "ser coco-detect RUN"),
            Wanted("segment*/miou", "segmentation mIoU", "ser segment RUN"),
        ),
    ),
    "cost": PaperTable(
        "Cost",
        (
            _of_run("parameters", "trained parameters"),
            _of_run("encoder_parameters", "parameters of the encoder"),
            _of_run("flops", "FLOPs a step"),
            _of_run("flops_ratio_none", "FLOPs against none"),
            _of_run("flops_ratio_weight0", "FLOPs against λ=0"),
            _of_run("train_seconds", "training time"),
            _of_run("*memory_gib", "memory"),
            _of_run("images_per_s", "images/s"),
        ),
    ),
}
ALL = "all"

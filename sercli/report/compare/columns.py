"""Which columns a comparison can have: the catalogue of quantities, and the choice."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sercli.errors import UserError
from sercli.report.compare.runs import Run
from sercli.report.compare.tables import Column, Direction, Kind

DEFAULT_BLOCK = 3
ROTATION = "rotation"
_RUN_QUANTITIES: dict[str, tuple[str, str, str, Kind, str]] = {
    "run/flops_ratio_none": (
        "flops",
        "ratio_none",
        "FLOPs / none",
        "ratio",
        "Counted training FLOPs a step, relative to the same run without add-on.",
    ),
    "run/flops_ratio_weight0": (
        "flops",
        "ratio_weight0",
        "FLOPs / λ=0",
        "ratio",
        "Counted training FLOPs a step, relative to the same run with λ=0 and the same [CLS].",
    ),
    "run/train_seconds": ("timings", "train_seconds", "Train time", "duration", "Training time."),
    "run/images_per_s": (
        "timings",
        "images_per_s",
        "Images /s",
        "rate",
        "Training throughput in images per second.",
    ),
}
_SETS = {
    "val": "Clean val",
    "imagenet-c": "ImageNet-C",
    "imagenet-c-otf": "ImageNet-C on the fly",
    "imagenet-p": "ImageNet-P",
    "imagenet-p-mfr": "ImageNet-P",
    "imagenet-r": "ImageNet-R",
    "imagenet-a": "ImageNet-A",
    "imagenet-sketch": "ImageNet-Sketch",
    "imagenet-v2-matched-frequency": "ImageNet-V2 matched-freq.",
    "imagenet-v2-threshold-0.7": "ImageNet-V2 threshold 0.7",
    "imagenet-v2-top-images": "ImageNet-V2 top-images",
}
_VARIANTS = {"ser": "SER", "dino": "DINO", "moco-v3": "MoCo-v3"}
_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    **{
        f"{kind}ap{suffix}": f"{kind.replace('_', ' ')}AP{shown}"
        for kind in ("", "mask_")
        for suffix, shown in (
            *(("", ""), ("50", "50"), ("75", "75")),
            *(("_small", " small"), ("_medium", " medium"), ("_large", " large")),
        )
    },
    "mce": "mCE",
    "relative_mce": "relative mCE",
    "ce": "CE",
    "relative_ce": "relative CE",
    "fp": "FP",
    "ut5d": "uT5D",
    "mfr": "mFR",
    "mt5d": "mT5D",
    "fr": "FR",
    "t5d": "T5D",
}
_LOWER_IS_BETTER = {
    *("mce", "relative_mce", "ce", "relative_ce"),
    *("fp", "ut5d", "mfr", "mt5d", "fr", "t5d"),
}
_DEFAULT_METRICS = {
    "knn": ("top1",),
    "linear-eval": ("top1", "top5"),
    "robustness": ("top1", "mce", "fp", "mfr"),
    "coco-detect": ("ap", "mask_ap"),
}
_PROTOCOLS = ("knn", "linear-eval", "robustness", "coco-detect", "equiv-score")
_EXPLANATIONS = {
    "knn": "Weighted nearest neighbours on the frozen encoder's [CLS]; percent.",
    "linear-eval": "A linear probe on frozen features, chosen on a hold-out, tested once; percent.",
    "robustness": "The trained probe on a shifted test set; percent.",
    "coco-detect": "COCO average precision of a detector on the frozen backbone; percent.",
    "equiv-score": "Equivariance score of the patch tokens after this block: 1 is exact.",
    "cosine_raw": "Uncentred token cosine: high even for an untrained encoder, ranks nothing.",
}
_BLOCK = re.compile(r"^es/block(\d+)/")


@dataclass(frozen=True)
class Spec:
    """A column and where its numbers come from.

    Attributes:
        column: What is shown.
        source: Result name, or `flops`/`timings` of run.json where `metric` is a key there.
        metric: Name of the metric.
        floor: Metric of the random twin's score, or None.
        correctness: A share of images classified rightly, so that Wilson's interval and paired
            tests over images apply.
        default: Shown without being asked for.
    """

    column: Column
    source: str
    metric: str
    floor: str | None = None
    correctness: bool = False
    default: bool = True

    @property
    def of_run(self) -> bool:
        return self.column.key.startswith("run/")


def catalogue(runs: Sequence[Run], block: int | None) -> list[Spec]:
    """Every quantity that some run has, in the order of the paper's tables."""
    names = {name: result.protocol["name"] for run in runs for name, result in run.results.items()}
    specs: list[Spec] = []
    for name in sorted(names, key=lambda name: (_rank(names[name]), _set_rank(name), name)):
        metrics = _metrics(runs, name)
        if names[name] == "equiv-score":
            specs += [_score_spec(name, metric, metrics, block) for metric in metrics]
        else:
            specs += [_result_spec(runs, name, names[name], metric) for metric in metrics]
    for key, (section, field, heading, kind, explanation) in _RUN_QUANTITIES.items():
        if any(run.quantity(section, field) is not None for run in runs):
            column = Column(key, heading, kind, explanation=explanation)
            specs.append(Spec(column, section, field))
    return specs


def _rank(protocol: str) -> int:
    return _PROTOCOLS.index(protocol) if protocol in _PROTOCOLS else len(_PROTOCOLS)


def _set_rank(name: str) -> int:
    variant = name.partition("--")[2]
    return list(_SETS).index(variant) if variant in _SETS else len(_SETS)


def _metrics(runs: Sequence[Run], name: str) -> list[str]:
    found = (metric for run in runs if name in run.results for metric in run.results[name].metrics)
    unique = dict.fromkeys(found)
    return [metric for metric in unique if not metric.endswith(("/low", "/high"))]


def _result_spec(runs: Sequence[Run], name: str, protocol: str, metric: str) -> Spec:
    variant = name.partition("--")[2]
    results = [run.results[name] for run in runs if name in run.results]
    measured = any(result.metrics.get(metric) is not None for result in results)
    shown = _METRICS.get(metric, metric)
    if protocol == "knn":
        heading = f"kNN {shown}"
    elif protocol == "linear-eval":
        heading = f"Linear {_in_brackets(_VARIANTS.get(variant, variant))}{shown}"
    elif protocol == "coco-detect":
        family, _, category = metric.partition("/")
        shown = " ".join(filter(None, (_METRICS.get(family, family), category)))
        heading = f"COCO {_in_brackets(variant)}{shown}"
    else:
        heading = f"{_SETS.get(variant, variant or protocol)} {shown}"
    quantity = next((part for part in metric.split("/") if part in _METRICS), "")
    direction: Direction = "up"
    if quantity in _LOWER_IS_BETTER or not quantity:
        direction = "down" if quantity else "none"
    column = Column(
        key=f"{name}/{metric}",
        heading=heading,
        kind="score" if quantity in {"fp", "ut5d", ""} else "percent",
        direction=direction,
        explanation=_EXPLANATIONS.get(protocol, ""),
        ranked=bool(quantity),
    )
    # Accuracies over corruptions or frames are means of dependent cells, not of n images.
    dependent = protocol == "robustness" and re.match(r"imagenet-[cp]\b", variant) is not None
    known = protocol in {"knn", "linear-eval", "robustness"} and not dependent
    return Spec(
        column,
        name,
        metric,
        correctness=known and metric in {"top1", "top5"},
        default=metric in _DEFAULT_METRICS.get(protocol, (metric,)) and measured,
    )


def _in_brackets(variant: str) -> str:
    return f"({variant}) " if variant else ""


def _score_spec(name: str, metric: str, metrics: Sequence[str], block: int | None) -> Spec:
    family, _, rest = metric.partition("/")
    place, _, action = rest.partition("/")
    is_score = family == "es"
    twin = f"es_random/{rest}"
    where = f"block {int(place[5:])}" if place[5:].isdigit() else place
    shown = "ES" if is_score else "raw cosine" if family == "cosine_raw" else family
    variant = name.partition("--")[2]
    column = Column(
        key=f"{name}/{metric}",
        heading=" ".join(part for part in (shown, action, where, _in_brackets(variant)) if part),
        kind="score",
        direction="up" if is_score else "none",
        explanation=_EXPLANATIONS.get("equiv-score" if is_score else family, ""),
        ranked=is_score,
    )
    wanted = is_score and place == block_name(block) and action in {ROTATION, "hflip"}
    floor = twin if is_score and twin in metrics else None
    return Spec(column, name, metric, floor=floor, default=wanted)


def block_name(block: int | None) -> str:
    """A block as in metric names."""
    return "" if block is None else f"block{block:02d}"


def compared_block(runs: Sequence[Run], block: int | None) -> int | None:
    """The block whose equivariance is shown: `block`, else 3, else the only one there is.

    Returns:
        None where no run has an equivariance score and none was asked for, or where the choice
        is open (then the default table has no such column and says so).

    Raises:
        UserError: `block` was asked for and no run has it.
    """
    blocks = sorted(
        {
            int(match[1])
            for run in runs
            for result in run.results.values()
            for metric in result.metrics
            if (match := _BLOCK.match(metric))
        }
    )
    if block is not None and block not in blocks:
        listed = f"blocks scored are {', '.join(map(str, blocks))}" if blocks else "none is scored"
        raise UserError(f"--block {block}", listed, "run `ser equiv-score` or name another block")
    if block is not None:
        return block
    if DEFAULT_BLOCK in blocks:
        return DEFAULT_BLOCK
    return blocks[0] if len(blocks) == 1 else None


def choose(specs: Sequence[Spec], patterns: Sequence[str]) -> list[Spec]:
    """The columns asked for, in that order; without patterns, the default ones.

    A pattern is a whole key (`knn/top1`), a key's beginning (`knn`: the default columns of it,
    or all where none is default), or holds wildcards (`knn/*`: all of it).

    Raises:
        UserError: A pattern fits nothing.
    """
    if not patterns:
        return [spec for spec in specs if spec.default]
    chosen: dict[str, Spec] = {}
    for pattern in patterns:
        fitting = _fitting(specs, pattern)
        if not fitting:
            available = ", ".join(spec.column.key for spec in specs if spec.default)
            raise UserError(
                f"--columns {pattern!r} fits no column",
                f"columns of these runs are {available}, and more with wildcards",
            )
        chosen.update({spec.column.key: spec for spec in fitting})
    return list(chosen.values())


def _fitting(specs: Sequence[Spec], pattern: str) -> list[Spec]:
    exact = [spec for spec in specs if spec.column.key == pattern]
    if exact:
        return exact
    if any(sign in pattern for sign in "*?["):
        return [spec for spec in specs if fnmatch.fnmatchcase(spec.column.key, pattern)]
    starting = [spec for spec in specs if re.match(rf"{re.escape(pattern)}(/|--)", spec.column.key)]
    return [spec for spec in starting if spec.default] or starting

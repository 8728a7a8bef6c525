"""Numbers of the robustness protocols from predictions, and the rules they follow.

NumPy in, flat metric names out: accuracies and normalised errors in percent, flip probabilities in
0…1, undefined values None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions.catalogue import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from sercli.errors import UserError
from sercli.evals.common import Metrics, Right
from sercli.evals.robustness.metrics import (
    NOISE_PERTURBATIONS,
    corruption_errors,
)
from sercli.protocols.contract import PRECISION
from sercli.protocols.robustness import PROTOCOL
from sercli.runs.reading import LARGEST_JSON, parse_json, read_bytes, shown
from sercli.statistics import CONFIDENCE

_VERSION = 2
# 2: motion blur cuts levels as ImageMagick does, the rims of spatter are Canny's; 3: _VERSION's.
_VERSIONS = {"imagenet-c-otf": 3}
SEED = 0  # of a limited sample, and of corruptions made on the fly

Best = NDArray[np.int64]


def corruption_metrics(
    cells: Mapping[tuple[str, int], Right], *, clean: float | None = None
) -> Metrics:
    """mCE, relative mCE and accuracies of a grid of corruptions and severities.

    Means are over those of the fifteen corruptions that are there (all cells weigh the same); all
    others are reported each, but enter no mean. mCE is None unless all fifteen have all severities.

    Args:
        cells: (corruption, severity) → what was right.
        clean: Top-1 on the uncorrupted images, percent.
    """
    names = list(dict.fromkeys(corruption for corruption, _ in cells))
    whole = [name for name in names if all((name, s) in cells for s in SEVERITIES)]
    errors = {name: [1 - cells[name, s].top1 / 100 for s in SEVERITIES] for name in whole}
    found = corruption_errors(errors, clean=None if clean is None else 1 - clean / 100)
    means = [right for (name, _), right in cells.items() if name in CORRUPTIONS]
    values: Metrics = {
        "top1": _mean([right.top1 for right in means]),
        "top5": _mean([right.top5 for right in means]),
        "mce": found.mce,
        "relative_mce": found.relative_mce,
        "top1/clean": clean,
    }
    for name in names:
        own = [right.top1 for (other, _), right in cells.items() if other == name]
        values[f"top1/{name}"] = _mean(own)
        values[f"ce/{name}"] = found.ce.get(name)
        values[f"relative_ce/{name}"] = found.relative_ce.get(name)
    for (name, severity), right in cells.items():
        values[f"top1/{name}/{severity}"] = right.top1
    return values


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


# -- Perturbations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """What a classifier made of the V videos of one perturbation.

    Attributes:
        predictions: int64 [V, T], −1 beyond a video's end.
        labels: int64 [V].
        flips: float64 [V], flip probability of each.
        distances: float64 [V], uT5D of each.
    """

    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    flips: NDArray[np.float64]
    distances: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.float64]:
        """[V], share of each video's frames that are classified rightly."""
        frames = (self.predictions >= 0).sum(1)
        share: NDArray[np.float64] = (self.predictions == self.labels[:, None]).sum(1) / frames
        return share


def perturbation_metrics(found: Mapping[str, Sequences]) -> Metrics:
    """FP, uT5D and top-1: means over videos, and the means of those over perturbations."""
    families = {
        "fp": {name: float(one.flips.mean()) for name, one in found.items()},
        "ut5d": {name: float(one.distances.mean()) for name, one in found.items()},
        "top1": {name: 100 * float(one.right.mean()) for name, one in found.items()},
    }
    values: Metrics = {family: _mean(list(each.values())) for family, each in families.items()}
    for family, each in families.items():
        values |= {f"{family}/{name}": value for name, value in each.items()}
    return values


@dataclass(frozen=True)
class Normalisers:
    """AlexNet's numbers on ImageNet-P as the user gives them; ser has none of its own.

    Attributes:
        fp: Perturbation → flip probability, 0…1.
        ut5d: Perturbation → uT5D; may be empty.
    """

    fp: Mapping[str, float]
    ut5d: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: Path) -> Normalisers:
        """Read `{"fp": {"gaussian_noise": …, …}, "ut5d": {…}}`, or the first mapping alone.

        Raises:
            UserError: It cannot be read, or does not hold positive numbers by perturbation.
        """
        rule = 'JSON such as {"fp": {"gaussian_noise": 0.2, …}} is needed, "ut5d" beside it or not'
        try:
            stored = parse_json(read_bytes(path, limit=LARGEST_JSON), f"--alexnet-p {path}")
        except UserError as error:
            raise UserError(str(error), rule) from error
        tables = stored if isinstance(stored, dict) else {}
        if "fp" not in tables:
            tables = {"fp": tables}
        for name, table in tables.items():
            if name not in {"fp", "ut5d"} or not isinstance(table, dict) or not table:
                raise UserError(
                    f"--alexnet-p {path} has no table of numbers under {shown(name)}", rule
                )
            for perturbation, value in table.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                    raise UserError(
                        f"--alexnet-p {path}: {name} of {perturbation[:80]} is {shown(value)}",
                        "a positive number is needed",
                    )
        return cls(tables["fp"], tables.get("ut5d", {}))


def normalised_metrics(metrics: Mapping[str, float | None], alexnet: Normalisers) -> Metrics:
    """mFR = mean over perturbations of 100 FP / FP_AlexNet, and mT5D likewise.

    None where the table or the measurement lacks one of the other's perturbations.
    """
    values: Metrics = {}
    for family, normalised, table in (
        ("fp", "mfr", alexnet.fp),
        ("ut5d", "mt5d", alexnet.ut5d),
    ):
        measured = {
            name.partition("/")[2]: value
            for name, value in metrics.items()
            if name.startswith(f"{family}/") and value is not None
        }
        ratios = {name: 100 * measured[name] / table[name] for name in table if name in measured}
        complete = bool(ratios) and measured.keys() == table.keys()
        values[normalised] = _mean(list(ratios.values())) if complete else None
        single = {"fp": "fr", "ut5d": "t5d"}[family]
        values |= {f"{single}/{name}": value for name, value in ratios.items()}
    return values


# -- Rules ----------------------------------------------------------------------------------------


def protocol(variant: str, rule: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol: the classifier's rule and that of the set, all of it hashed."""
    return {
        "name": PROTOCOL.name,
        "variant": variant,
        "version": _VERSIONS.get(variant, _VERSION),
        "settings": {
            **rule,
            **settings,
            "labels": "by class name, in the order of the head",
            "precision": PRECISION,
        },
    }


def image_settings(*, masked: bool) -> dict[str, Any]:
    return {
        "logits": "of the set's classes only, before argmax" if masked else "of all classes",
        "interval": "Wilson over images",
        "confidence": CONFIDENCE,
    }


def corruption_settings(corruptions: Sequence[str], *, on_the_fly: bool) -> dict[str, Any]:
    """The rule of a grid of corruptions; those that ImageNet-C does not have are named."""
    rule = _ON_THE_FLY_SETTINGS if on_the_fly else _CORRUPTION_SETTINGS
    own = [name for name in corruptions if name not in CORRUPTIONS + EXTRA_CORRUPTIONS]
    return {**rule, "own_corruptions": own} if own else dict(rule)


_CORRUPTION_SETTINGS: Mapping[str, Any] = {
    "view": "files as they are, no resize",
    "severities": list(SEVERITIES),
    "top1": "mean over the cells of the fifteen corruptions",
    "mce": "mean over the fifteen of 100 Σ E / Σ E of AlexNet",
    "relative_mce": "the same of errors minus the clean error on val",
}
_ON_THE_FLY_SETTINGS: Mapping[str, Any] = {
    **_CORRUPTION_SETTINGS,
    "view": "val, bilinear resize 256/224 of the side, central crop, corrupted, JPEG quality 85",
    "seed": SEED,
}
PERTURBATION_SETTINGS: Mapping[str, Any] = {
    "view": "frames as they are, no resize",
    "compared": "each frame with the one before",
    "compared_noise": f"each frame with the first, for {', '.join(sorted(NOISE_PERTURBATIONS))}",
    "fp": "mean over pairs of frames, then over videos, then over perturbations",
    "ut5d": "top-5 distance, unnormalised, averaged likewise",
    "top1": "share of frames, averaged likewise",
}

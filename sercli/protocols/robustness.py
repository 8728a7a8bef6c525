"""A classifier on shifted test sets; each set is a variant."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity

SETS = {
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
_GRIDS = ("imagenet-c", "imagenet-c-otf")
_SEQUENCES = ("imagenet-p",)
_NORMALISED = ("imagenet-p-mfr",)

# Means over corruptions or frames are of dependent cells, not of n images: no interval.
_OF_GRIDS = (
    Quantity("top1", "top-1", default=True, variants=_GRIDS),
    Quantity("top5", "top-5", variants=_GRIDS),
    Quantity("mce", "mCE", better="down", default=True, variants=_GRIDS),
    Quantity("relative_mce", "relative mCE", better="down", variants=_GRIDS),
    Quantity("ce/{corruption}", better="down", variants=_GRIDS),
    Quantity("relative_ce/{corruption}", better="down", variants=_GRIDS),
    Quantity("top1/clean", variants=_GRIDS),
    Quantity("top1/{corruption}", variants=_GRIDS),
    Quantity("top1/{corruption}/{severity}", variants=_GRIDS, grid=("corruption", "severity")),
)
_OF_SEQUENCES = (
    Quantity("fp", "FP", unit="score", better="down", default=True, variants=_SEQUENCES),
    Quantity("ut5d", "uT5D", unit="score", better="down", variants=_SEQUENCES),
    Quantity("top1", "top-1", default=True, variants=_SEQUENCES),
    Quantity("fp/{perturbation}", unit="score", better="down", variants=_SEQUENCES),
    Quantity("ut5d/{perturbation}", unit="score", better="down", variants=_SEQUENCES),
    Quantity("top1/{perturbation}", variants=_SEQUENCES),
)
_RELATIVE_TO_ALEXNET = (
    Quantity("mfr", "mFR", better="down", default=True, variants=_NORMALISED),
    Quantity("mt5d", "mT5D", better="down", variants=_NORMALISED),
    Quantity("fr/{perturbation}", better="down", variants=_NORMALISED),
    Quantity("t5d/{perturbation}", better="down", variants=_NORMALISED),
)
_OF_LABELLED_SETS = (
    Quantity("top1", "top-1", default=True, interval="wilson", paired=True),
    Quantity("top5", "top-5", interval="wilson"),
)

PROTOCOL = Protocol(
    name="robustness",
    title="robustness",
    explanation="The trained probe on a shifted test set; percent.",
    heading="{variant} {quantity}",
    place=3,
    variants=SETS,
    order=tuple(SETS),
    quantities=(*_OF_GRIDS, *_OF_SEQUENCES, *_RELATIVE_TO_ALEXNET, *_OF_LABELLED_SETS),
)

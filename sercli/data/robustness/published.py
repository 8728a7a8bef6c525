"""What the published robustness sets consist of: classes, numbers of images, names."""

from __future__ import annotations

from collections.abc import Sequence

from sercli.data.robustness.folders import FolderRule, either
from sercli.data.robustness.imagenet_classes import (
    imagenet_a_classes,
    imagenet_classes,
    imagenet_r_classes,
    is_imagenet,
)
from sercli.data.shapes.settings import SETTINGS

V2_VARIANTS = ("matched-frequency", "threshold-0.7", "top-images")
KINDS = (
    "imagenet-r",
    "imagenet-a",
    "imagenet-sketch",
    *(f"imagenet-v2-{variant}" for variant in V2_VARIANTS),
)
PERTURBATIONS = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "zoom_blur",
    "snow",
    "brightness",
    "translate",
    "rotate",
    "tilt",
    "scale",
)
TITLES = {
    "imagenet-r": "ImageNet-R",
    "imagenet-a": "ImageNet-A",
    "imagenet-sketch": "ImageNet-Sketch",
    **{f"imagenet-v2-{variant}": f"ImageNet-V2 {variant}" for variant in V2_VARIANTS},
    "imagenet-c": "ImageNet-C",
    "imagenet-p": "ImageNet-P",
}

# As downloaded. ImageNet-Sketch's paper says 50,000; its one archive has 51 images of 889 classes.
_NUM_IMAGES = {"imagenet-r": 30_000, "imagenet-a": 7_500, "imagenet-sketch": 50_889}
_PER_CLASS = {"imagenet-sketch": (50, 51), "imagenet-v2": (10,), "imagenet-c": (50,)}


def folder_rule(kind: str, classes: Sequence[str]) -> FolderRule:
    """What the class folders of a set, or of a cell of "imagenet-c", must be for a head."""
    index = {name: label for label, name in enumerate(classes)}
    published = is_imagenet(classes)
    if kind in ("imagenet-c", "imagenet-p"):
        known = published and kind == "imagenet-c"
        return FolderRule(index, per_class=_PER_CLASS[kind] if known else ())
    if kind.startswith("imagenet-v2"):
        # Folders are numbered by the sorted classes; those of a head for some of ImageNet's classes
        # cannot be told from the whole's, so that ImageNet's own numbers are meant.
        of_imagenet = set(index) <= set(imagenet_classes())
        order = imagenet_classes() if of_imagenet else sorted(classes)
        numbered = {str(i): index[name] for i, name in enumerate(order) if name in index}
        per_class = _PER_CLASS["imagenet-v2"] if published else ()
        return FolderRule(numbered, per_class=per_class, refuses_val=published)
    if not published:
        swapped = {
            f"those of the embedded world's {other}": names
            for world in SETTINGS.values()
            for other, names in world.some_classes.items()
            if kind in world.some_classes and other != kind and set(names) <= set(index)
        }
        return FolderRule(index, complete=kind == "imagenet-sketch", others=swapped)
    subsets = {
        "those of ImageNet-R": imagenet_r_classes(),
        "those of ImageNet-A": imagenet_a_classes(),
        "all 1000": imagenet_classes(),
    }
    names = {
        "imagenet-r": imagenet_r_classes(),
        "imagenet-a": imagenet_a_classes(),
        "imagenet-sketch": imagenet_classes(),
    }[kind]
    labels = {name: index[name] for name in names}
    return FolderRule(
        labels,
        per_class=_PER_CLASS.get(kind, ()),
        total=_NUM_IMAGES[kind],
        others=subsets,
        refuses_val=True,
    )


def published_rule(kind: str, classes: Sequence[str]) -> str:
    """What a set must be, in words."""
    if not is_imagenet(classes):
        which = "folders of" if kind in ("imagenet-r", "imagenet-a") else "a folder for each of"
        return f"{TITLES[kind]} must hold {which} the head's {len(classes)} classes"
    rule = folder_rule(kind, classes)
    numbers = [f"{either(rule.per_class)} images each"] if rule.per_class else []
    numbers += [f"{rule.total:,} images in all"] if rule.total else []
    named = ", named 0 to 999" if kind.startswith("imagenet-v2") else ""
    cells = ", in each of 15 corruptions × 5 severities" if kind == "imagenet-c" else ""
    with_ = ", ".join(numbers)
    return f"{TITLES[kind]} has exactly {len(rule.labels)} classes{named}, with {with_}{cells}"

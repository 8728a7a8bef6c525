"""The published robustness sets as files: ImageNet-R, -A, -Sketch, -V2, -C and -P.

Labels are looked up by the class folders' names in the class order of a head, never counted off. A
set must be what was published: for a head with ImageNet's 1000 classes exactly the published class
folders and numbers of images, for another head (the embedded world's) the folders of its classes.
What would make labels wrong is always an error; what is missing is one unless partial sets are
allowed.

ImageNet-C is in `corrupted.py`, ImageNet-P in `perturbed.py`, what was
published of each set in `published.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions.catalogue import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from sercli.data.images.folder import class_names, require_directory
from sercli.data.robustness.corrupted import CorruptedSet, open_corrupted, open_otf
from sercli.data.robustness.folders import ClassFolders, Findings, inspect_folder
from sercli.data.robustness.perturbed import PerturbedSet, open_perturbed
from sercli.data.robustness.published import (
    KINDS,
    PERTURBATIONS,
    TITLES,
    V2_VARIANTS,
    folder_rule,
    published_rule,
)
from sercli.data.source import ImageSource
from sercli.errors import UserError

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "KINDS",
    "PERTURBATIONS",
    "SEVERITIES",
    "CorruptedSet",
    "LabelledSet",
    "PerturbedSet",
    "find_v2",
    "open_corrupted",
    "open_otf",
    "open_perturbed",
    "open_set",
]


@dataclass(frozen=True)
class LabelledSet:
    """A set of labelled images.

    Attributes:
        name: What it is, or where.
        source: Labels are indices into the head's classes.
        subset: int64 [K], ascending: the classes to restrict the logits to; None: all.
        variant: What a result on it is a variant of the protocol for: one of `KINDS`, or "val".
        partial: Whether something is missing of it.
        notes: What a partial set lacks, a sentence each.
    """

    name: str
    source: ImageSource
    subset: NDArray[np.int64] | None
    variant: str
    partial: bool
    notes: tuple[str, ...]


def open_set(
    kind: str, path: Path, classes: Sequence[str], *, allow_partial: bool = False
) -> LabelledSet:
    """Open one of the sets in class folders.

    Args:
        kind: Which set it is, one of `KINDS`.
        path: The folder of its class folders; for ImageNet-V2 a folder that names its variant, or
            one that holds such.
        classes: The class order of the head.
        allow_partial: Accept missing classes and images, and mark the set as partial.

    Raises:
        UserError: It is missing, another set, or not as published.
        ValueError: `kind` is unknown.
    """
    source, found = inspect_set(kind, path, classes)
    found.require(path, kind, published_rule(kind, classes), allow_partial=allow_partial)
    assert source is not None  # nothing is wrong
    subset = None
    if kind in ("imagenet-r", "imagenet-a"):
        published = folder_rule(kind, classes)
        labels = published.labels.values() if published.complete else source.labels
        subset = np.unique(np.fromiter(labels, np.int64))
    return LabelledSet(TITLES[kind], source, subset, kind, bool(found.lacking), found.lacking)


def inspect_set(
    kind: str, path: Path, classes: Sequence[str]
) -> tuple[ClassFolders | None, Findings]:
    """What `open_set` opens (None where labels would be wrong), and what is not as published.

    Raises:
        UserError: It is missing, or another variant of ImageNet-V2 than `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {KINDS}")
    require_directory(path)
    if kind.startswith("imagenet-v2"):
        variant = kind.removeprefix("imagenet-v2-")
        variants = find_v2(path)
        if variant not in variants:
            raise UserError(
                f"{path} holds ImageNet-V2's {', '.join(variants)}", f"{variant} is asked for"
            )
        path = variants[variant]
    return inspect_folder(path, folder_rule(kind, classes), classes)


def find_v2(path: Path) -> dict[str, Path]:
    """Which of ImageNet-V2's three sets a folder is or holds: variant → its folder.

    Class folders are named 0, 1, 2…; which set they are, only the folder's name can tell:
    `matched-frequency`, `threshold-0.7`, `top-images`, or as published
    `imagenetv2-matched-frequency-format-val`.

    Raises:
        UserError: None is there, a folder's name does not tell its variant, or two tell the same.
    """
    require_directory(path)
    inside = [path / name for name in class_names(path)]
    candidates = [path] if is_numbered(path) else [one for one in inside if is_numbered(one)]
    found: dict[str, Path] = {}
    for folder in candidates:
        variant = v2_variant(folder)
        if variant is None:
            raise UserError(
                f"{folder} has class folders named by numbers, as each of ImageNet-V2's three sets",
                "only the folder's name tells which it is",
                f"rename it to {', '.join(V2_VARIANTS[:-1])} or {V2_VARIANTS[-1]}",
            )
        if variant in found:
            raise UserError(f"{found[variant]} and {folder} are both {variant}", "one is needed")
        found[variant] = folder
    if not found:
        raise UserError(
            f"{path} holds none of ImageNet-V2's sets",
            "they are folders of class folders named 0 to 999",
            "name the folder that holds them",
        )
    return {variant: found[variant] for variant in V2_VARIANTS if variant in found}


def is_numbered(folder: Path) -> bool:
    """Whether most class folders in it are named by numbers; a stray one is found when opened."""
    names = class_names(folder)
    return 2 * sum(name.isdecimal() for name in names) > len(names)


def v2_variant(folder: Path) -> str | None:
    """The variant that a folder's name tells; a link and what it leads to must tell the same."""
    names = {os.path.basename(os.path.abspath(folder)), os.path.basename(os.path.realpath(folder))}
    told = set()
    for name in names:
        plain = name.lower().replace("imagenet-v2", "imagenetv2").removeprefix("imagenetv2-")
        plain = plain.removesuffix("-format-val").replace("threshold0.7", "threshold-0.7")
        told |= {plain} & set(V2_VARIANTS)
    return told.pop() if len(told) == 1 else None

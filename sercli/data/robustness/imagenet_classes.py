"""ImageNet's 1000 classes, and the 200 each of ImageNet-R and ImageNet-A, from timm's lists."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.errors import UserError

# What 1000 classes are called where only their indices are told.
BARE = tuple(map(str, range(1000)))


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 wnids ("n01440764", …), sorted: a label of ImageNet is an index into them."""
    return _wnids("imagenet_synsets.txt", 1000)


def imagenet_r_classes() -> tuple[str, ...]:
    """The 200 wnids of ImageNet-R, sorted."""
    return _wnids("imagenet_r_synsets.txt", 200)


def imagenet_a_classes() -> tuple[str, ...]:
    """The 200 wnids of ImageNet-A, sorted."""
    return _wnids("imagenet_a_synsets.txt", 200)


def is_imagenet(classes: Collection[str]) -> bool:
    """Whether these are ImageNet's 1000 classes, in any order."""
    return len(classes) == 1000 and set(classes) == set(imagenet_classes())


def wnids_of_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """ImageNet's wnids, sorted, where these are what its classes are called, in that order.

    Sets on the Hugging Face Hub have "tench, Tinca tinca", in the order of the wnids; other lists
    have "tench". Each name must hold a word or words of WordNet's for the class at its place, so
    that a thousand other names, or these in another order, are never taken for ImageNet's.

    Args:
        names: Of classes, by index.

    Returns:
        The wnids; None: these are no such names.
    """
    if len(names) != 1000:
        return None
    wnids = imagenet_classes()
    known = _lemmas()
    held = all(
        any(f" {one} " in f" {_plain(name)} " for one in known.get(wnid, ()))
        for name, wnid in zip(names, wnids, strict=True)
    )
    return wnids if held else None


def wnids_of_images(names: Sequence[bytes], labels: NDArray[np.int64]) -> tuple[str, ...] | None:
    """ImageNet's wnids, sorted, where images of `BARE` classes are named by them in that order.

    Files of ImageNet's train are called `n01440764_10026.JPEG`. That there are 1000 classes says
    nothing: every image must have the wnid that is its label's.

    Args:
        names: [N], of the images; directories before them do not count.
        labels: int64 [N], in 0…999.

    Returns:
        The wnids; None: not all images are named so.
    """
    wnids = imagenet_classes()
    starts = [f"{wnid}_".encode() for wnid in wnids]
    held = all(
        name.rpartition(b"/")[2].startswith(starts[label])
        for name, label in zip(names, labels.tolist(), strict=True)
    )
    return wnids if held else None


def _plain(name: str) -> str:
    """A name as words: "crane2" and "crane_(bird)" hold the word "crane"."""
    return " ".join(re.findall("[^\\W\\d_]+", name.lower()))


@cache
def _lemmas() -> dict[str, tuple[str, ...]]:
    """What WordNet calls each wnid, in plain words."""
    lines = _read("imagenet_synset_to_lemma.txt").splitlines()
    pairs = (line.partition("\t")[::2] for line in lines)
    return {wnid: tuple(filter(None, map(_plain, told.split(",")))) for wnid, told in pairs}


@cache
def _wnids(name: str, number: int) -> tuple[str, ...]:
    lines = _read(name).split()
    if len(set(lines)) != number:
        raise UserError(
            f"timm's list {name} has {len(set(lines))} classes",
            f"{number} are needed, as timm 1.0.22 ships them",
            "install that version of timm, or a later one",
        )
    return tuple(sorted(lines))


def _read(name: str) -> str:
    """A list of timm's; "" where there is none. Found without importing timm, and with it torch."""
    spec = find_spec("timm")
    folders = (spec and spec.submodule_search_locations) or ()
    files = [Path(folder) / "data" / "_info" / name for folder in folders]
    return next((file.read_text() for file in files if file.is_file()), "")

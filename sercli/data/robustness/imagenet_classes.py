"""ImageNet's 1000 classes, and the 200 each of ImageNet-R and ImageNet-A, from timm's lists."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sercli.errors import UserError


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


@cache
def _wnids(name: str, number: int) -> tuple[str, ...]:
    # Found without importing timm, which imports torch.
    spec = find_spec("timm")
    folders = (spec and spec.submodule_search_locations) or ()
    files = [Path(folder) / "data" / "_info" / name for folder in folders]
    lines = next((file.read_text().split() for file in files if file.is_file()), [])
    if len(set(lines)) != number:
        raise UserError(
            f"timm's list {name} has {len(set(lines))} classes",
            f"{number} are needed, as timm 1.0.22 ships them",
            "install that version of timm, or a later one",
        )
    return tuple(sorted(lines))

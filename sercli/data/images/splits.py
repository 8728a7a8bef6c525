"""Which split a file or folder holds, by its name; the same for every form of data."""

from __future__ import annotations

import re

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_told(path: str) -> str | None:
    """The split that a path's first part with such a word names: "train", "val", "test".

    Args:
        path: Below what the user named: "imagenet1k-train-0000.tar", "val/n01440764.tar".

    Returns:
        None where no part has such a word.
    """
    words = re.split(r"[^a-z]+", path.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)

"""Names of classes that labels tell by a number: `classes.txt` beside shards or a list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sercli.data.robustness.imagenet_classes import wnids_of_names
from sercli.errors import UserError
from sercli.runs.reading import MIB, read_bytes

CLASSES = "classes.txt"
_LARGEST = 16 * MIB


def file_of_names(folders: Iterable[str]) -> str | None:
    """The first of some folders' files of names; None: there is none."""
    places = (os.path.join(folder, CLASSES) for folder in dict.fromkeys(folders))
    return next((place for place in places if os.path.isfile(place)), None)


def read_names(path: str) -> Sequence[str]:
    """A name a line, in the order of the indices; ImageNet's human names as its wnids.

    Raises:
        UserError: It cannot be read, has an empty line, or a name twice.
    """
    text = read_bytes(Path(path), limit=_LARGEST).removeprefix(b"\xef\xbb\xbf")
    names = [line.strip() for line in text.decode("utf-8", "backslashreplace").rstrip().split("\n")]
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name or name in seen:
            raise UserError(
                f"line {number} of {path} {'stands above already' if name else 'is empty'}",
                "it names the classes, one a line, in the order of their indices",
            )
        seen.add(name)
    return wnids_of_names(names) or names

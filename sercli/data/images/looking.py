"""One look at a directory, for all who ask what it holds: which kind of data is it, which split?

What is in it is counted, names of images are not kept, and the look is remembered while the
directory has the times that it had. On a network disk it is looks that cost.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sercli.data.images import kept
from sercli.data.images.listing import Stamp, added_as, has_suffix

_REMEMBERED = 256  # directories of a process


@dataclass(frozen=True)
class Look:
    """What is in a directory, without what systems add; links are followed.

    Attributes:
        folders: Names, sorted.
        files: Names of what is neither a folder nor called as an image, sorted.
        images: How many files are called as images.
        an_image: The name of one of them; empty where there are none.
    """

    folders: tuple[bytes, ...] = ()
    files: tuple[bytes, ...] = ()
    images: int = 0
    an_image: bytes = b""

    @property
    def flat(self) -> bool:
        """Whether there are images, and no folders that could be classes."""
        return self.images > 0 and not self.folders

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Names of the files that have one of some suffixes."""
        return [os.fsdecode(name) for name in self.files if has_suffix(name, suffixes)]


def look(folder: str | Path) -> Look:
    """What is in a directory.

    Raises:
        OSError: It cannot be listed.
        ValueError: It is no path.
    """
    path = os.fsencode(folder)
    stamp = Stamp.of(os.stat(path))
    # What changed this recently may change again without another time.
    settled = kept.are_settled(np.array([stamp.row()]), time.time_ns())
    return _remembered(path, stamp) if settled else _scan(path)


@functools.lru_cache(maxsize=_REMEMBERED)
def _remembered(path: bytes, _stamp: Stamp) -> Look:
    return _scan(path)


def _scan(path: bytes) -> Look:
    folders: list[bytes] = []
    files: list[bytes] = []
    images, an_image = 0, b""
    with os.scandir(path) as entries:
        for entry in entries:
            if added_as(entry.name) is not None:
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif has_suffix(entry.name):
                images, an_image = images + 1, entry.name
            else:
                files.append(entry.name)
    return Look(tuple(sorted(folders)), tuple(sorted(files)), images, an_image)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False

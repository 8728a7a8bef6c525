"""The order of the images of a set, the same for one set in whatever form it is stored.

By class, then by directory, then by name, as class folders are scanned: the files of a directory
come before those of the folders in it. So image i of a set is the same in folders, archives, tables
and lists, and with it every permutation of an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def place_among(name: bytes) -> bytes:
    """What names are compared by within a class; slashes part directories."""
    directory, _, file = name.rpartition(b"/")
    return directory.replace(b"/", b"\0") + b"\0\0" + file


def ordered(names: Sequence[bytes], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which image comes where.

    Args:
        names: [N], below the folder that holds the classes, or whatever they are called by.
        labels: int64 [N].

    Returns:
        int64 [N], indices into `names`; images of one class and one name stay as they are.
    """
    keys = list(map(place_among, names))
    by_name = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    return by_name[np.argsort(labels[by_name], kind="stable")]


def first_twice(names: Sequence[bytes], order: NDArray[np.int64]) -> tuple[int, int] | None:
    """Two images of one name, if there are any: identifiers must tell images apart.

    Args:
        names: [N].
        order: Of `ordered`.
    """
    seen: dict[bytes, int] = {}
    for index in order.tolist():
        if (before := seen.setdefault(names[index], index)) != index:
            return before, index
    return None


def is_index(told: str) -> bool:
    """Whether what a class is called is a whole number, from 0."""
    return told.isascii() and told.isdigit()


def numbered(
    told: Sequence[str], *, folders: bool = False
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes and labels of what each image's class is called.

    Names are sorted as folders are, by their bytes; labels that are all whole numbers, by these.

    Args:
        told: [N].
        folders: Whether they are names of folders, so that numbers are names like others.

    Returns:
        The classes, and int64 [N], indices into them.
    """
    names = set(told)
    whole = not folders and all(map(is_index, names))
    classes = sorted(names, key=(lambda name: (int(name), name)) if whole else str.encode)
    places = {name: place for place, name in enumerate(classes)}
    return tuple(classes), np.fromiter((places[name] for name in told), np.int64, len(told))

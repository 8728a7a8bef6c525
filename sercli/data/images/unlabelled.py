"""Images without labels in folders: all below one, at any depth.

`unlabelled:DIR` says that folders are no classes. A directory whose images lie in it, with no
folders, has no classes whatever it is called; likewise `train/` of one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from sercli.data.images.folder import ImageFolder, refuse_faults, split_folder
from sercli.data.images.listing import Stamp, added_as, has_suffix
from sercli.data.lists.finding import is_list_set
from sercli.errors import UserError

PREFIX = "unlabelled:"


def is_unlabelled(path: str) -> bool:
    """Whether a user named images without labels: by the prefix, or as nothing else is there."""
    if path.startswith(PREFIX):
        return True
    root = Path(path)
    if not os.path.isdir(root) or is_list_set(path):  # whatever else it is, others say
        return False
    if is_flat(root):
        return True
    train = split_folder(root, "train")
    return train is not None and train != root and is_flat(train)


def is_flat(folder: Path) -> bool:
    """Whether a directory has images, and no folders that could be classes.

    What has folders is told by the first of them. Of a million files all names are looked at, once
    while the directory stays as it is.
    """
    try:
        return _is_flat(str(folder), *Stamp.of(os.stat(folder)).row())
    except OSError:
        return False  # who opens it says why


@functools.lru_cache(maxsize=64)
def _is_flat(folder: str, *_stamp: int) -> bool:
    images = False
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if added_as(entry.name) is not None:
                continue
            if entry.is_dir():
                return False
            images = images or has_suffix(entry.name)
    return images


def folder_of(path: str, split: str) -> Path | None:
    """The folder that holds a split; None: there is no such split.

    Raises:
        UserError: There is no such directory.
    """
    return split_folder(Path(path.removeprefix(PREFIX)), split)


def open_unlabelled(path: str, split: str) -> ImageFolder:
    """Open one split: all images below its folder, whatever lies between.

    Raises:
        UserError: There is no such directory, split or image, or a file is none that can be read.
    """
    folder = folder_of(path, split)
    if folder is None:
        raise UserError(f"{path} has no {split}/ folder", f"the {split} images are needed here")
    source = ImageFolder(folder, name=path, split=split, labelled=False)
    refuse_faults(folder, source.faults)
    return source

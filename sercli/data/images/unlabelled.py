"""Images without labels in folders: all below one, at any depth.

`unlabelled:DIR` says that folders are no classes. A directory whose images lie in it, with no
folders, has no classes whatever it is called; likewise `train/` of one.
"""

from __future__ import annotations

import os
from pathlib import Path

from sercli.data.images.folder import ImageFolder, refuse_faults, split_folder
from sercli.data.images.looking import Look, look
from sercli.data.lists.finding import PACKED, is_list_set
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

    Of a million files all names are looked at, once while the directory stays as it is.
    """
    return _look(folder).flat


def _look(folder: Path) -> Look:
    try:
        return look(folder)
    except OSError:
        return Look()  # who opens it says why


def require_alone(path: str) -> None:
    """Refuse images that lie beside archives or tables: which of them are the set, nothing tells.

    Raises:
        UserError: They do, and the prefix does not say that the images are meant.
    """
    folder = None if path.startswith(PREFIX) else folder_of(path, "train")
    if folder is not None and (packed := _look(folder).with_suffix(*PACKED)):
        raise UserError(
            f"{folder} holds images, and {packed[0]} beside them",
            "either may be the set",
            f"name {folder / packed[0]} or a pattern, or unlabelled:{path} for the images",
        )


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
    require_alone(path)
    folder = folder_of(path, split)
    if folder is None:
        raise UserError(f"{path} has no {split}/ folder", f"the {split} images are needed here")
    source = ImageFolder(folder, name=path, split=split, labelled=False)
    refuse_faults(folder, source.faults)
    return source

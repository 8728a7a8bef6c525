"""Which lists a user named: one file, or a directory with `train.csv` and maybe `val.csv`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from sercli.data.images.looking import Look, look
from sercli.data.images.splits import split_told
from sercli.errors import UserError, from_os_error

SUFFIXES = ("csv", "tsv", "txt")
_STEMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLITS = ("train", "val", "test")
# Beside these a list is about what is in them.
PACKED = ("tar", "zip", "parquet", "arrow")


@dataclass(frozen=True)
class ListSet:
    """The lists that a user named.

    Attributes:
        files: Split, "train" or "val" → its list.
        left_out: Lists of test.
    """

    files: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def is_list_set(path: str) -> bool:
    """Whether a path is a list, or a directory of lists; by names alone.

    A directory of class folders is none, whatever lists lie in it: one with two folders, other than
    those that splits are called, or with folders in `train/` or `val/`.
    """
    if os.path.isfile(path):
        return path.lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES))
    if not os.path.isdir(path) or not any("train" in found for found in _found(path)):
        return False
    here = _looked_at(path)
    if here.with_suffix(*PACKED):
        return False
    folders = [os.fsdecode(name) for name in here.folders]
    if len([name for name in folders if split_told(name) is None]) > 1:
        return False
    return not any(
        _looked_at(os.path.join(path, name)).folders for name in folders if name in ("train", "val")
    )


def find_lists(path: str) -> ListSet:
    """The lists of a path for which `is_list_set` holds; one file is train.

    Raises:
        UserError: It cannot be listed, or there are two lists of one split.
    """
    if not os.path.isdir(path):
        return ListSet({"train": path})
    files: dict[str, str] = {}
    for found in _found(path):
        for split, name in found.items():
            if split in files:
                raise UserError(
                    f"{path} holds {os.path.basename(files[split])} and {name}",
                    "a split has one list",
                    "name the one that is meant, or remove the other",
                )
            files[split] = os.path.join(path, name)
    test = files.pop("test", None)
    return ListSet(files, () if test is None else (test,))


def _found(path: str) -> list[dict[str, str]]:
    """Split → name, of each list in a directory."""
    names = _looked_at(path).with_suffix(*SUFFIXES)
    stems = [(os.path.splitext(name)[0].lower(), name) for name in names]
    return [{split: name} for stem, name in stems if (split := _STEMS.get(stem, stem)) in _SPLITS]


def _looked_at(path: str) -> Look:
    try:
        return look(path)
    except OSError as error:
        raise from_os_error(error, f"cannot list {path}") from error

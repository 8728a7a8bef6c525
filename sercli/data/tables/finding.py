"""Which files of a set of tables belong to which split, by their names alone.

`data/train-00000-of-00294.parquet`, `default/train/0000.parquet`, a file, or a pattern of files.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sercli.data.archives.finding import expanded, is_pattern, matching
from sercli.data.images.folder import some
from sercli.data.images.listing import list_directory, printable
from sercli.data.images.looking import Look, look
from sercli.data.images.splits import split_told
from sercli.data.registry import SPLITS
from sercli.errors import UserError

_NUMBERED = re.compile(r"(?P<series>.*?)(?P<number>\d{4,6})-of-(?P<total>\d{4,6})(?P<rest>.*)")
_FOLDERS = 8  # in which tables may lie, to tell the same
_DEEP = 2


@dataclass(frozen=True)
class Tables:
    """The files of a set.

    Attributes:
        files: "train", "val" → absolute paths, sorted by name.
        left_out: What is of neither split → how many files.
        faults: What is wrong with their names, a line each.
        lacking: Files of a series that are missing, a line for each series.
        silent: A line on files that are left out because others tell a split and they do not.
    """

    files: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


def names_tables(path: str, suffix: str) -> bool:
    """Whether a path is a file of a suffix, or a pattern that such a file has."""
    if is_pattern(path):
        try:
            first = next(iter(expanded(path)))
        except UserError:
            return False  # it spells too many
        return any(one.lower().endswith(f".{suffix}") for one in (first, *glob.glob(first)[:1]))
    return path.lower().endswith(f".{suffix}") and os.path.isfile(path)


def holds_tables(root: str, suffix: str) -> bool:
    """Whether a folder is a set of tables, by what is in a few folders.

    Class folders stay such, whatever tables lie beside them: two folders of images are classes. One
    is some other folder where a table's name tells a split.
    """
    here = _look(root)
    folders = [os.fsdecode(one) for one in here.folders]
    if any(_look(root, one).folders for one in {*SPLITS} & {*folders}):
        return False  # train/<class>/
    below = [_look(root, one) for one in folders[:_FOLDERS]]
    if tables := here.with_suffix(suffix):
        by_split = any(split_told(name) for name in tables)
        return sum(one.images > 0 for one in below) <= by_split
    if any(one.with_suffix(suffix) and not one.images for one in below):
        return True
    deeper = [
        _look(root, one, os.fsdecode(inside))
        for one, found in zip(folders, below, strict=False)
        for inside in found.folders[:_FOLDERS]
        if split_told(os.fsdecode(inside))
    ]
    return any(one.with_suffix(suffix) and not one.images for one in deeper)


def _look(*parts: str) -> Look:
    """What is in a folder; nothing, where it cannot be listed: who opens it says why."""
    try:
        return look(os.path.join(*parts))
    except OSError:
        return Look()


def find_tables(path: str, suffix: str) -> Tables:
    """The files that a path names: a file, a pattern of files, or a folder of them.

    Args:
        path: As the user gave it; it names or holds such.
        suffix: "parquet" or "arrow".

    Raises:
        UserError: A folder cannot be listed, or holds two sets; or files of a pattern are missing.
    """
    if not os.path.isdir(path):
        found = sorted(set(matching(path))) if is_pattern(path) else [path]
        files = [one for one in found if one.lower().endswith(f".{suffix}")]
        told = {split_told(os.path.basename(file)) for file in files}
        if len(told) == 1:  # of one split only: all of it is "train", as with class folders
            return Tables({"train": tuple(map(os.path.abspath, files))})
        return _by_split(path, ((file, os.path.basename(file)) for file in files))
    walked = _walk(Path(path), suffix)
    return _by_split(path, ((file, os.path.relpath(file, path)) for file in walked), series=True)


def _walk(root: Path, suffix: str) -> Iterator[str]:
    pending = [(os.fsencode(root), 0)]
    while pending:
        folder, depth = pending.pop(0)
        listing = list_directory(folder, suffixes=(suffix,))
        for name in listing.files:
            if name in listing.faults:
                raise UserError(
                    f"{printable(os.path.join(folder, name))} is {listing.faults[name]}",
                    "a table is a regular file",
                )
            if not name.startswith(b"cache-"):  # what `datasets` computed of others
                yield os.fsdecode(os.path.join(folder, name))
        if depth < _DEEP:
            pending += [(os.path.join(folder, one), depth + 1) for one in listing.folders]


def _by_split(path: str, files: Iterator[tuple[str, str]], *, series: bool = False) -> Tables:
    """Files by what their names below `path` say."""
    by_split: dict[str | None, list[str]] = {}
    for file, below in files:
        parts = reversed(below.split(os.sep))  # the file's own name says more than its folder's
        told = next((split for part in parts if (split := split_told(part))), None)
        by_split.setdefault(told, []).append(os.path.abspath(file))
    if set(by_split) == {None}:
        by_split = {"train": by_split[None]}
    kept = {split: tuple(by_split[split]) for split in SPLITS if split in by_split}
    for split, some_files in kept.items():
        folders = sorted({os.path.dirname(file) for file in some_files})
        if len(folders) > 1:
            raise UserError(
                f"{path} holds files of {split} in {len(folders)} folders ({some(folders, 3)})",
                "which of them are one set, nothing tells",
                f"name one folder, or a pattern of its files: '{folders[0]}/*'",
            )
    names = {"test": "files of test", None: "files whose names tell no split"}
    left_out = {text: len(by_split[one]) for one, text in names.items() if one in by_split}
    unsaid = some([os.path.basename(file) for file in by_split.get(None, [])], 3)
    silent = (f"left out, as their names tell no split: {unsaid}",) if unsaid else ()
    looked = [look_at_series(one) for one in kept.values()] if series else []
    faults, lacking = (tuple(line for pair in looked for line in pair[place]) for place in (0, 1))
    return Tables(kept, left_out, faults, lacking, silent)


def look_at_series(files: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Series of files that say how many they are: `train-00003-of-00294.parquet`.

    Returns:
        What is wrong with them, and what lacks; a line each.
    """
    found: dict[tuple[str, int, str], dict[int, str]] = {}
    for file in files:
        if told := _NUMBERED.fullmatch(os.path.basename(file)):
            key = told["series"], int(told["total"]), told["rest"]
            found.setdefault(key, {})[int(told["number"])] = told["number"]
    faults, lacks = [], []
    for (series, total, rest), numbers in found.items():
        lacking = [one for one in range(total) if one not in numbers]
        wide = len(next(iter(numbers.values())))
        names = [f"{series}{one:0{wide}}-of-{total:0{wide}}{rest}" for one in lacking[:5]]
        if lacking:
            more = f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
            lacks.append(f"{len(lacking):,} of {total:,} files lack: {', '.join(names)}{more}")
    if several := [one for one, times in Counter(key[::2] for key in found).items() if times > 1]:
        totals = sorted(key[1] for key in found if key[::2] == several[0])
        faults.append(
            f"{several[0][0]}* are series of {' and of '.join(map(str, totals))} files: one of "
            "them is an older version"
        )
    return faults, lacks

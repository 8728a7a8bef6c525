"""Which archives a user named: one file, a directory of them, or a pattern.

Names decide, and a few bytes where a name does not; no archive is listed for it.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sercli.data.images.folder import some
from sercli.data.images.listing import added_as
from sercli.data.images.looking import look
from sercli.data.images.splits import split_told
from sercli.errors import UserError, from_os_error, shortened
from sercli.runs.reading import NotRegular, open_regular

SUFFIXES = (".tar", ".zip")
# Recognised to be refused: what is in them cannot be read where it lies.
_COMPRESSED = (
    *(f".tar.{how}" for how in ("gz", "xz", "bz2", "zst", "lz4", "lzma", "z")),
    *(".tgz", ".txz", ".tbz", ".tbz2", ".tzst", ".7z", ".rar"),
)
# ImageNet's archives beside its images: boxes, and what tells the classes of its val images.
_NO_IMAGES = re.compile(r"^ilsvrc.*(devkit|bbox|bounding_boxes)", re.IGNORECASE)
_TAR_AT, _TAR = 257, b"ustar"
_SPECIAL = re.compile(r"[*?\[{]")
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_MOST = 100_000  # archives of one pattern
_LOOKED_INTO = 64  # folders, for an image that lies unpacked


@dataclass(frozen=True)
class Archive:
    """A file that holds images.

    Attributes:
        path: Absolute.
        below: Its path below what the user named: what its name says is read from this.
    """

    path: str
    below: str

    @property
    def stem(self) -> str:
        """Its file name without the suffix."""
        name = os.path.basename(self.below)
        return os.path.splitext(name)[0] if name.lower().endswith(SUFFIXES) else name


@dataclass(frozen=True)
class ArchiveSet:
    """The archives that a user named.

    Attributes:
        root: The directory that they lie in, or below; absolute.
        archives: Sorted by their paths below it.
        passed_over: What beside them is none by its name, and how many of each.
        whole: Whether they are all in a directory that was named.
    """

    root: str
    archives: tuple[Archive, ...]
    passed_over: Counter[str]
    whole: bool = False

    def by_split(self) -> dict[str | None, list[Archive]]:
        """Archives by the split that their names tell.

        Those whose names tell nothing are of train.

        Returns:
            "train" and "val", where both are told; "val", where a directory holds nothing else;
            otherwise all under None: what is in them says more. Those of "test" are none of them,
            unless there are no others.
        """
        told: dict[str, list[Archive]] = defaultdict(list)
        for archive in self.archives:
            told[split_told(archive.below) or "train"].append(archive)
        if "val" in told and ("train" in told or self.whole):
            return {split: told[split] for split in ("train", "val") if split in told}
        return {None: told.get("train") or told.get("val") or told["test"]}

    def remarks(self) -> list[str]:
        """What its names leave open, and how it was understood; a line each."""
        told = {archive.below: split_told(archive.below) for archive in self.archives}
        silent = [name for name, split in told.items() if split is None]
        if not silent or "train" not in told.values():
            return []
        return [
            f"{some(silent, 3)} in {self.root} tell no split by their names: they are read as "
            "train, beside those that say train"
        ]

    def left_out(self) -> list[Archive]:
        """Archives of "test", where there are others."""
        kept = {archive.path for group in self.by_split().values() for archive in group}
        return [archive for archive in self.archives if archive.path not in kept]


def is_set_of_archives(path: str) -> bool:
    """Whether a user named an archive, a directory of archives or a pattern of such.

    A directory in which images lie unpacked is none: it is read as the folders that it holds.
    """
    try:
        if is_pattern(path):
            return _is_named_as_archive(next(iter(expanded(path)), ""))
        if not os.path.isdir(path):
            return os.path.isfile(path) and (_is_named_as_archive(path) or _is_tar(path))
        inner = [path, *_folders_to_look_into(path)]
        names = (os.fsdecode(name) for folder in inner for name in look(folder).files)
        return any(map(_may_hold_images, names)) and not _holds_images(path)
    except (OSError, UserError):
        return False  # who opens it says what is wrong


def is_pattern(path: str) -> bool:
    """Whether a path has braces or wildcards, and is no file of that very name."""
    return bool(_SPECIAL.search(path)) and not os.path.lexists(path)


def find_archives(path: str) -> ArchiveSet:
    """The archives that a user named.

    Raises:
        UserError: There are none, files of a pattern are missing, or a directory cannot be listed.
    """
    passed: Counter[str] = Counter()
    if is_pattern(path):
        root = os.path.abspath(os.path.dirname(path[: _SPECIAL.search(path).start()] or "."))  # type: ignore[union-attr]
        files = matching(path)
    elif os.path.isdir(path):
        root = os.path.abspath(path)
        try:
            folders = [root, *_folders_to_look_into(root)]
            files = [file for folder in folders for file in _archives_in(folder, passed)]
        except OSError as error:
            raise from_os_error(error, f"cannot list {path}") from error
    else:
        root, files = os.path.abspath(os.path.dirname(path) or "."), [path]
    if not files:
        raise UserError(
            f"{path} holds no archive",
            f"archives are files named *.{{{','.join(one[1:] for one in SUFFIXES)}}}",
        )
    absolute = sorted({os.path.abspath(file) for file in files})
    archives = (Archive(file, os.path.relpath(file, root)) for file in absolute)
    return ArchiveSet(root, tuple(archives), passed, whole=os.path.isdir(path))


# -- Directories ----------------------------------------------------------------------------------


def _folders_to_look_into(root: str) -> list[str]:
    """Folders whose archives belong to a set at `root`: those of splits, and `data`."""
    names = map(os.fsdecode, look(root).folders)
    return [os.path.join(root, name) for name in names if name == "data" or split_told(name)]


def _archives_in(folder: str, passed_over: Counter[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_named_as_archive(entry.name) or entry.is_dir():
                continue
            if (added := added_as(os.fsencode(entry.name))) is not None:
                passed_over[added] += 1
            elif not _may_hold_images(entry.name):
                passed_over["archives without images by their names"] += 1
            else:
                yield entry.path


def _holds_images(root: str) -> bool:
    """Whether an image lies in a directory or in folders below it; a few of these tell."""
    pending = [root]
    for folder in pending:  # grows
        found = look(folder)
        if found.images:
            return True
        room = max(0, _LOOKED_INTO - len(pending))
        pending += [os.path.join(folder, os.fsdecode(name)) for name in found.folders[:room]]
    return False


def _may_hold_images(name: str) -> bool:
    return _is_named_as_archive(name) and not _NO_IMAGES.match(name)


def _is_named_as_archive(name: str) -> bool:
    return name.lower().endswith((*SUFFIXES, *_COMPRESSED))


def _is_tar(path: str) -> bool:
    """Whether a file of another name begins as a tar."""
    try:
        with open_regular(path) as file:
            return file.read(_TAR_AT + len(_TAR)).endswith(_TAR)
    except NotRegular:
        return False


# -- Patterns -------------------------------------------------------------------------------------


def matching(pattern: str) -> list[str]:
    """Files of a pattern; every file that its braces spell must be there.

    Raises:
        UserError: There are none, or some are missing.
    """
    found: list[str] = []
    missing: list[str] = []
    for one in expanded(pattern):
        some = glob.glob(one) if re.search(r"[*?\[]", one) and not os.path.lexists(one) else [one]
        there = [file for file in some if os.path.isfile(file)]
        found += there
        if not there:
            missing.append(one)
    if not found:
        raise UserError(
            f"{shortened(pattern)} matches no file", "a pattern names files that are there"
        )
    if missing:
        some_of = ", ".join(os.path.basename(one) for one in missing[:5])
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise UserError(
            f"{shortened(pattern)}: {some_of}{more} missing",
            f"each of the {len(found) + len(missing):,} files that its braces spell must be there",
            "fetch what is missing, or name fewer",
        )
    return found


def expanded(pattern: str) -> list[str]:
    """What braces spell: `{00..63}` numbers of that width, `{train,val}` words; as a shell does.

    Raises:
        UserError: Too many.
    """
    done: dict[str, None] = {}
    pending = [pattern]
    while pending:
        one = pending.pop()
        for group in _GROUP.finditer(one):
            choices = _choices(group[1])
            if len(choices) + len(pending) + len(done) > _MOST:
                raise UserError(
                    f"{shortened(pattern)} spells more than {_MOST:,} files",
                    "a set has fewer files",
                )
            if choices:
                start, end = one[: group.start()], one[group.end() :]
                pending += [f"{start}{choice}{end}" for choice in reversed(choices)]
                break
        else:
            done[one] = None
    return list(done)


def _choices(inside: str) -> list[str]:
    """What stands between braces, spelled out; none: they are part of the name."""
    if (span := _RANGE.fullmatch(inside)) is None:
        return inside.split(",") if "," in inside else []
    first, last = int(span[1]), int(span[2])
    padded = any(text.startswith("0") and len(text) > 1 for text in span.groups())
    width = max(map(len, span.groups())) if padded else 0
    step = 1 if last >= first else -1
    if abs(last - first) > _MOST:
        return [""] * (_MOST + 1)
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


# -- Series ---------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"(.*?)([0-9]+)(?:-of-([0-9]+))?")
_WNID = re.compile(r"n[0-9]{8}")


def is_wnid(stem: str) -> bool:
    """Whether a name is one of ImageNet's classes: "n01440764"."""
    return _WNID.fullmatch(stem) is not None


def shard_number(stem: str) -> tuple[str, int, int | None] | None:
    """What a name says of its place in a series: prefix, number, and of how many.

    A number is a shard's where it stands alone, or behind `-`, `_` or `.`, or has four digits or
    more with a leading zero. A wnid is none.

    Returns:
        None where the name is no shard's: it may be a class's.
    """
    found = _NUMBERED.fullmatch(stem)
    if found is None or is_wnid(stem):
        return None
    prefix, number = found[1], found[2]
    apart = not prefix or prefix[-1] in "-_."
    if not apart and not (len(number) >= 4 and number.startswith("0")):
        return None
    return prefix, int(number), int(found[3]) if found[3] else None


def missing_from_series(archives: list[Archive]) -> list[str]:
    """A line for each numbered series that lacks some of its numbers."""
    series: dict[tuple[str, str, int | None], dict[int, Archive]] = defaultdict(dict)
    for archive in archives:
        if (told := shard_number(archive.stem)) is not None:
            series[os.path.dirname(archive.below), told[0], told[2]][told[1]] = archive
    lines = []
    for (_, _, total), found in series.items():
        first = 1 if total is not None and total in found and 0 not in found else 0
        wanted = range(first, total + first) if total else range(min(found), max(found) + 1)
        if len(wanted) > _MOST or not (lacking := sorted(set(wanted) - found.keys())):
            continue
        if total is None and len(lacking) > len(found):
            continue  # no series: numbers of something else
        like = next(iter(found.values()))
        spelled = [_renumbered(like.below, number) for number in lacking[:5]]
        more = f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
        lines.append(
            f"{', '.join(spelled)}{more} missing from a series of {len(wanted):,}; "
            "fetch what is missing"
        )
    return lines


def _renumbered(below: str, number: int) -> str:
    """A shard's path, with another number in its place."""
    folder, name = os.path.split(below)
    found = re.search(r"([0-9]+)(?=(?:-of-[0-9]+)?\.[a-z]+$)", name, re.IGNORECASE)
    assert found is not None  # or it would be of no series
    spelled = f"{number:0{len(found[1])}d}"
    return os.path.join(folder, f"{name[: found.start()]}{spelled}{name[found.end() :]}")

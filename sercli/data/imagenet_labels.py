"""Classes of ImageNet's validation images, whose names do not tell them.

The devkit numbers the classes 1…1000 in an order of its own, which is not that of the sorted wnids:
only its meta.mat says which number is which wnid. So a list of such numbers alone is refused, and
what is taken are the devkit (`ILSVRC2012_devkit_t12.tar.gz`, or its folder), its two files, or a
text file with a wnid a line, in the order of the images' numbers.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sercli.errors import UserError, from_os_error
from sercli.runs.reading import MIB, NotRegular, open_regular, read_bytes, shown
from sercli.visible import counted

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_NAME = re.compile(rb"ILSVRC2012_val_([0-9]{8})\.[A-Za-z]{3,4}")
_WNID = re.compile(r"n[0-9]{8}")
_LARGEST = 8 * MIB  # the lists have some 0.5 MB, meta.mat has 3
_UNPACKED = 128 * MIB  # of a devkit
_FEW_TEXTS = 64  # beside the images; where there are more, each is an image's own
_REMEDY = (
    "put ILSVRC2012_devkit_t12.tar.gz, or the folder it unpacks to, or a text file with a wnid "
    "(n01440764) a line beside the images"
)
_WHY = (
    "the numbers 1…1000 of ImageNet's validation images are the devkit's, not places among the "
    "sorted wnids"
)


def validation_number(name: bytes) -> int | None:
    """Which image of ImageNet's validation set a file is by its name, from 1; None: it is none."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class ValidationLabels:
    """Files that say of which class each image is, not read yet.

    Attributes:
        files: Absolute paths; what is made of their content depends on these.
        read: Reads them: the wnid of each image, in the order of the images' numbers.
            Raises `UserError`: They are not what they should be.
    """

    files: tuple[str, ...]
    read: Callable[[], list[str]]


def validation_wnids(*folders: Path) -> list[str]:
    """The wnid of each of ImageNet's validation images, in the order of their numbers.

    Args:
        folders: Where the files that tell them may lie: beside the images, or above them.

    Raises:
        UserError: There are none, or they do not tell it.
    """
    return find_validation_labels(*folders).read()


def find_validation_labels(*folders: Path) -> ValidationLabels:
    """The files that tell the classes of ImageNet's validation images; see `validation_wnids`.

    Raises:
        UserError: There are none, or more than one list of wnids.
    """
    numbers: list[Path] = []
    for folder in folders:
        lists = []
        for path in _texts(folder):
            first = _first_line(path)
            if _WNID.fullmatch(first):
                lists.append(path)
            elif first.isascii() and first.isdigit():
                numbers.append(path)
        if lists:
            return _one_of(lists)
        for place in _devkits(folder):
            if place.is_dir() and (place / _META).is_file() and (place / _TRUTH).is_file():
                truth, meta = place / _TRUTH, place / _META
                return _labels((truth, meta), _from_files)
            if place.is_file():
                return _labels((place,), _from_devkit)
    where = " and ".join(map(str, folders))
    if numbers:
        raise UserError(f"{numbers[0]} has no {_META} beside it", _WHY, _REMEDY)
    raise UserError(
        f"nothing in {where} tells the classes of ImageNet's validation images",
        "their names do not",
        _REMEDY,
    )


def wnid_of(number: int, wnids: list[str], *, image: str) -> str:
    """The wnid of an image by its number, from 1.

    Args:
        number: Of `validation_number`.
        wnids: Of `validation_wnids`.
        image: Its name, for the message.

    Raises:
        UserError: There is no such number.
    """
    if not 1 <= number <= len(wnids):
        raise UserError(
            f"{image} is image {number}, and classes are told of {counted(len(wnids), 'image')}",
            "a class is told for each of ImageNet's validation images, in their order",
            _REMEDY,
        )
    return wnids[number - 1]


# -- Which files ----------------------------------------------------------------------------------


def _texts(folder: Path) -> list[Path]:
    """Text files in a folder, unless there are so many that each is about an image."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".txt") and not entry.name.startswith("."):
                    found.append(entry.name)
                if len(found) > _FEW_TEXTS:
                    return []
    except OSError as error:
        raise from_os_error(error, f"cannot list {folder}") from error
    return [folder / name for name in sorted(found)]


def _devkits(folder: Path) -> Iterator[Path]:
    """Where the devkit's two files may be: folders, or its archive."""
    yield from (folder, folder / "data")
    for kit in sorted(folder.glob("*devkit*")):
        if kit.is_dir():
            yield from (kit / "data", kit)
        elif kit.name.endswith((".tar.gz", ".tgz", ".tar")):
            yield kit


def _first_line(path: Path) -> str:
    """The first word of a text, "" where it is none."""
    try:
        with open_regular(path) as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf").split(b"\n")[0].strip().decode("latin-1")
    except (OSError, NotRegular):
        return ""


def _one_of(lists: list[Path]) -> ValidationLabels:
    contents = {tuple(_lines(read_bytes(path, limit=_LARGEST))) for path in lists}
    if len(contents) > 1:
        raise UserError(
            f"{lists[0]} and {lists[1].name} both hold wnids, and not the same",
            "one file tells the classes of ImageNet's validation images",
            "move the other away",
        )
    return _labels((lists[0],), _from_wnids)


def _labels(paths: tuple[Path, ...], read: Callable[..., list[str]]) -> ValidationLabels:
    return ValidationLabels(tuple(os.path.abspath(path) for path in paths), lambda: read(*paths))


# -- What they say --------------------------------------------------------------------------------


def _from_wnids(path: Path) -> list[str]:
    wnids = _lines(read_bytes(path, limit=_LARGEST))
    for number, wnid in enumerate(wnids, 1):
        if not _WNID.fullmatch(wnid):
            raise UserError(
                f"line {number} of {path} is {shown(wnid)}",
                "each line must be a wnid, as n01440764",
            )
    return wnids


def _from_files(truth: Path, meta: Path) -> list[str]:
    content = read_bytes(truth, limit=_LARGEST)
    first = next(iter(_lines(content)), "")
    if _WNID.fullmatch(first):
        return _from_wnids(truth)
    return _told(content, read_bytes(meta, limit=_LARGEST), called=(str(truth), str(meta)))


def _from_devkit(path: Path) -> list[str]:
    packed = read_bytes(path, limit=_UNPACKED)
    found: dict[str, bytes] = {}
    try:
        if packed.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
                packed = file.read(_UNPACKED + 1)
        if len(packed) > _UNPACKED:
            raise ValueError(f"it unpacks to more than {_UNPACKED // MIB} MiB")
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in (_TRUTH, _META) and member.isreg() and member.size <= _LARGEST:
                    held = archive.extractfile(member)
                    found[name] = b"" if held is None else held.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as ImageNet's devkit ({reason})", remedy="download it again"
        ) from error
    if missing := [name for name in (_TRUTH, _META) if name not in found]:
        raise UserError(
            f"{path} holds no {missing[0]}",
            "ILSVRC2012_devkit_t12.tar.gz is needed, which has it",
        )
    called = (f"{_TRUTH} in {path}", f"{_META} in {path}")
    return _told(found[_TRUTH], found[_META], called=called)


def _told(truth: bytes, meta: bytes, *, called: tuple[str, str]) -> list[str]:
    """The wnid of each number in a list of such; `called`: what both are called in messages."""
    wnids = {str(number): wnid for number, wnid in _numbered(meta, called[1]).items()}
    told = _lines(truth)
    for line, number in enumerate(told, 1):
        if number not in wnids:
            raise UserError(
                f"line {line} of {called[0]} is {shown(number)}",
                f"it must be one of the numbers of {called[1]}",
            )
    return [wnids[number] for number in told]


def _numbered(content: bytes, name: str) -> dict[int, str]:
    """Number → wnid, as a meta.mat has them."""
    from scipy.io import loadmat  # half a second, and only here

    try:
        synsets = np.ravel(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        rows = {_one(row["ILSVRC2012_ID"], int): _one(row["WNID"], str) for row in synsets}
        if not rows or not all(map(_WNID.fullmatch, rows.values())):
            raise ValueError("its WNID are no wnids")
    except Exception as error:  # whatever a file made by hand makes of scipy's reader
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name} cannot be read ({type(error).__name__}: {reason})",
            "it must have synsets with WNID and ILSVRC2012_ID, as the devkit's has",
            "take it from the devkit again",
        ) from error
    return rows


def _one(value: Any, kind: type[Any]) -> Any:
    return kind(np.asarray(value).item())


def _lines(content: bytes) -> list[str]:
    """Lines without what surrounds them; empty ones at the end are none."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace")
    return [line.strip() for line in text.rstrip().splitlines()]

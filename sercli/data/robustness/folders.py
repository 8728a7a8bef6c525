"""Class folders measured against a rule: which names mean which label, and how many images each.

A finding is either *wrong* (labels or pixels would not be what the set's name says: never read) or
*lacking* (something is missing: read only where a partial result is asked for).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image

from sercli.data.images.decode import Header, read_header, read_rgb
from sercli.data.images.folder import counted, require_directory, some
from sercli.data.images.listing import is_directory, printable
from sercli.data.images.manifest import Manifest, read_manifest
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import UserError

_SHOWN = 5  # findings in an error's one line
_VAL_FILES = b"ILSVRC2012_val_"
# Archives of ImageNet-C and -P may be unpacked each into a folder of its own.
_GROUPS = ("noise", "blur", "weather", "digital", "extra", "validation")


@dataclass(frozen=True)
class Findings:
    """What is not as published; a line each."""

    wrong: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return self.wrong + self.lacking

    def require(self, path: Path, layout: str, rule: str, *, allow_partial: bool) -> None:
        """Refuse what is wrong, and what is lacking unless that is allowed.

        Args:
            path: Where the set is.
            layout: Its name for `ser data check --layout`.
            rule: What is required, in words.
            allow_partial: Whether things may be missing.

        Raises:
            UserError: With the first few findings.
        """
        if not self.wrong and (allow_partial or not self.lacking):
            return
        told = "; ".join(self.all[:_SHOWN])
        if (more := len(self.all) - _SHOWN) > 0:
            told += f"; and {more} more"
        remedy = f"`ser data check {path} --layout {layout}` lists everything"
        if not self.wrong:
            remedy += ", --allow-partial accepts it and marks the result as partial"
        raise UserError(f"{path}: {told}", rule, remedy)


@dataclass(frozen=True)
class FolderRule:
    """What the class folders of a set must be.

    Attributes:
        labels: Name of a class folder → label.
        complete: Whether each of them must be there.
        per_class: Numbers of files that a class may have; none: they are not known.
        total: Files in all, if that is known.
        others: Sets that it may be taken for → their class folders.
        refuses_val: Whether files named as those of ImageNet's own val are out of place.
    """

    labels: Mapping[str, int]
    complete: bool = True
    per_class: tuple[int, ...] = ()
    total: int | None = None
    others: Mapping[str, Collection[str]] = field(default_factory=dict)
    refuses_val: bool = False

    def apply(self, counts: Mapping[str, int], *, noun: str = "image") -> Findings:
        """Measure files per class folder against the rule."""
        wrong: list[str] = []
        lacking: list[str] = []
        mistaken = [
            f"its classes are {what}"
            for what, names in self.others.items()
            if set(names) == counts.keys() != self.labels.keys()
        ]
        if unknown := [name for name in counts if name not in self.labels]:
            are = "is no class of it" if len(unknown) == 1 else "are no classes of it"
            line = f"{counted(unknown, 'folder')} that {are} ({some(unknown)})"
            wrong.append(": ".join([line, *mistaken]))
        elif mistaken and not self.complete:
            wrong += mistaken
        elif not sum(counts.values()):
            wrong.append(f"no {noun}s" if counts else f"no class folders, and so no {noun}s")
        else:
            lacking += self._missing(counts, noun)
        return Findings(tuple(wrong), tuple(lacking))

    def _missing(self, counts: Mapping[str, int], noun: str) -> list[str]:
        lines: list[str] = []
        missing = [name for name in self.labels if name not in counts]
        if missing and self.complete:
            lines.append(f"{counted(missing, 'class')} missing ({some(missing)})")
        if empty := [name for name, count in counts.items() if not count]:
            lines.append(f"{counted(empty, 'empty class folder')} ({some(empty)})")
        if self.per_class:
            uneven = [f"{n}: {c:,}" for n, c in counts.items() if c not in (0, *self.per_class)]
            if uneven:
                what, number = counted(uneven, "class"), either(self.per_class)
                lines.append(f"{what} without exactly {number} {noun}s ({some(uneven)})")
        if self.total is not None and sum(counts.values()) != self.total:
            lines.append(f"{sum(counts.values()):,} {noun}s instead of {self.total:,}")
        return lines


def either(numbers: Sequence[int]) -> str:
    """ "50", "50 or 51"."""
    return " or ".join(f"{number:,}" for number in numbers)


@final
class ClassFolders(ImageSource):
    """Images in class folders, with labels looked up by the folders' names.

    Args:
        manifest: The list of the files, by class folder.
        name: The path as the user gave it.
        classes: The class order of a head.
        labels: Name of a class folder → index into `classes`; every folder is in it.
        side: What both sides of every image must be, in pixels; None: they may be anything.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        name: str,
        classes: Sequence[str],
        labels: Mapping[str, int],
        side: int | None = None,
    ) -> None:
        self._manifest = manifest
        self._side = side
        self.name = name
        self.split = "val"
        self.classes = tuple(classes)
        of_folder = np.array([labels[folder] for folder in manifest.classes], np.int64)
        self.labels = of_folder[manifest.labels()]

    def load(self, index: int) -> Image.Image:
        image = read_rgb(self._path(index), called=self.describe(index))
        self._require_side(index, *image.size)
        return image

    def header(self, index: int, *, decode: bool) -> Header:
        """As `ImageFolder.header`; another side is an error here too."""
        header = read_header(self._path(index), called=self.describe(index), decode=decode)
        self._require_side(index, header.width, header.height)
        return header

    def describe(self, index: int) -> str:
        return os.path.join(self.name, self.identifier(index))

    def identifier(self, index: int) -> str:
        """The path below the folder that holds the class folders, with forward slashes."""
        return printable(self._manifest.relative(self.position(index)))

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the scan left out by its name, and how many of each."""
        return self._manifest.passed_over

    def with_side(self, side: int) -> ClassFolders:
        """The same files, all of which must have that side."""
        other = copy.copy(self)
        other._side = side
        return other

    def _path(self, index: int) -> str:
        relative = self._manifest.relative(self.position(index))
        return os.path.join(self._manifest.root, os.fsdecode(relative))

    def _require_side(self, index: int, width: int, height: int) -> None:
        if self._side is not None and (width, height) != (self._side, self._side):
            raise UnreadableImage(
                self.describe(index),
                f"it has {width} × {height} pixels instead of {self._side} × {self._side}, and "
                "corrupted images are used as they are",
            )


def examine(manifest: Manifest, rule: FolderRule) -> Findings:
    """Measure scanned class folders against a rule."""
    counts = dict(zip(manifest.classes, manifest.class_counts().tolist(), strict=True))
    found = rule.apply(counts)
    if manifest.faults:
        told = [fault.said_below(manifest.root) for fault in manifest.faults]
        found = Findings((*found.wrong, *told), found.lacking)
    if rule.refuses_val and _VAL_FILES in manifest.names.tobytes():
        line = f"its files are called {_VAL_FILES.decode()}…: they are those of ImageNet's own val"
        return Findings((*found.wrong, line), found.lacking)
    return found


def merged(findings: Mapping[str, Findings], noun: str) -> Findings:
    """The findings of several parts; what several have in common is one line.

    Args:
        findings: Part → its findings.
        noun: What a part is called: "cell", "perturbation".
    """

    def lines(of_each: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        parts: dict[str, list[str]] = {}
        for part, some_lines in of_each.items():
            for line in some_lines:
                parts.setdefault(line, []).append(part)
        told = []
        for line, having in parts.items():
            others = counted(having[1:], f"other {noun}")
            told.append(f"{having[0]}{f' and {others}' if having[1:] else ''}: {line}")
        return tuple(told)

    return Findings(
        lines({part: found.wrong for part, found in findings.items()}),
        lines({part: found.lacking for part, found in findings.items()}),
    )


def inspect_folder(
    path: Path, rule: FolderRule, classes: Sequence[str]
) -> tuple[ClassFolders | None, Findings]:
    """The images of a folder of class folders (None if anything is wrong), and what was found."""
    manifest = read_manifest(path)
    found = examine(manifest, rule)
    if found.wrong:
        return None, found
    return ClassFolders(manifest, name=str(path), classes=classes, labels=rule.labels), found


def parts(path: Path, names: Sequence[str]) -> dict[str, Path]:
    """Folders of those names in `path`, or in folders of groups in it; in the order of `names`."""
    require_directory(path)
    roots = [path, *(path / group for group in _GROUPS)]
    places = {name: [root / name for root in roots if is_directory(root / name)] for name in names}
    return {name: there[0] for name, there in places.items() if there}


def absent_parts(
    folders: Mapping[str, Path], names: Sequence[str], noun: str, layout: str
) -> list[str]:
    """What to say of those of `names` that have no folder: nothing, or one line."""
    absent = [name for name in names if name not in folders]
    if len(absent) == len(names):
        return [f"no {noun} ({layout})"]
    return [f"{counted(absent, noun)} missing ({some(absent)})"] if absent else []

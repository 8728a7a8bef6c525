"""From what a user named to the images of a split: lists that are kept, or made now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.arranging import LABELLED, UNLABELLED, Holdings, arrange, as_made
from sercli.data.archives.contents import Part, key_of
from sercli.data.archives.finding import Archive, ArchiveSet, find_archives
from sercli.data.archives.made import Record, read_record, require_finished
from sercli.data.archives.members import (
    ArchivedImages,
    Found,
    Members,
    called_as,
    read_members,
)
from sercli.data.archives.scanning import list_parts
from sercli.data.class_names import file_of_names, read_names
from sercli.data.imagenet_labels import find_validation_labels
from sercli.data.images.folder import class_differences
from sercli.data.images.listing import SUFFIXES, stamps_of
from sercli.errors import UserError


def open_archives(path: str, split: str) -> ArchivedImages:
    """Open one split of a set of archives.

    Raises:
        UserError: There is no such split or no image, something in it cannot be used, or its
            classes are not those of train.
    """
    named = find_archives(path)
    members = _sound(named, path, split)
    if split == "val" and has_split_of_archives(path, "train"):
        train = _sound(named, path, "train")
        members = called_as(train, members)
        differences = class_differences(train.classes, members.classes)
        if train.classes and members.classes and differences:
            raise UserError(
                f"{path}: {'; '.join(differences)}", "train and val must hold the same classes"
            )
    return ArchivedImages(members, name=path, split=split, said=named.remarks())


def has_split_of_archives(path: str, split: str) -> bool:
    """Whether there is such a split; what names do not tell, the list of what is in them does.

    Raises:
        UserError: Archives are missing or cannot be read.
    """
    named = find_archives(path)
    groups, _ = _groups(named)
    if None not in groups:
        return split in groups
    return split == "train" or len(list_split(named, "val")) > 0


def have_labels(path: str) -> bool:
    """Whether the images of train have labels, by their list; what has faults, who opens it says.

    Raises:
        UserError: As `list_split`.
    """
    members = list_split(find_archives(path), "train")
    return bool(members.classes or members.faults or not len(members))


def _sound(named: ArchiveSet, path: str, split: str) -> Members:
    """The list of a split without anything wrong.

    Raises:
        UserError: Something is.
    """
    members = list_split(named, split)
    if members.faults:
        more = f" (and {len(members.faults) - 1:,} more such)" if members.faults[1:] else ""
        raise UserError(f"{members.faults[0]}{more}", remedy="`ser data check` lists all there is")
    if not len(members):
        groups, _ = _groups(named)
        if split == "val" or not {None, split} & {*groups}:
            raise UserError(
                f"{path} has no {split} images",
                "names of archives, or folders in them, tell train and val",
                "name the archives of both"
                if split == "val"
                else "name an archive, or a pattern of such: that is all train",
            )
        raise UserError(
            f"{path} holds no image",
            f"images are members named *.{{{','.join(SUFFIXES)}}}",
        )
    return members


def list_split(named: ArchiveSet, split: str) -> Members:
    """The list of a split, with what is wrong in it; without an image where there is no such split.

    Raises:
        UserError: An archive cannot be read, or what tells classes is missing or wrong.
    """
    groups, record = _groups(named)
    inside = None in groups
    archives = groups[None] if inside else groups.get(split, [])
    if not archives:  # of a copy without such a split
        return Found(UNLABELLED).members((), stamps_of(()))
    names = file_of_names([os.path.dirname(archives[0].path), named.root])
    files = [archive.path for archive in archives]

    def scan(_: Sequence[str], stamps: NDArray[np.int64]) -> Mapping[str, Members]:
        whose = None if inside else split
        return list_anew(named, archives, stamps, names=names, split=whose, record=record)

    told_by = "" if names is None else f"{names} {stamps_of([names]).tolist()}"
    how = f"{'splits inside' if inside else 'one split'}\n{named.root}\n{told_by}"
    if record is not None:
        how += f"\nmade, {record.labelled}"
    rules = {one: f"{one}\n{how}" for one in (("train", "val") if inside else (split,))}
    return read_members(files, scan, rules=rules, wanted=split)


def _groups(
    named: ArchiveSet,
) -> tuple[Mapping[str | None, list[Archive]], Record | None]:
    """Archives by split, None: what is in them says more; and what is noted of shards that we made.

    Raises:
        UserError: Some of these shards are still to be made.
    """
    record = read_record(named.root)
    if record is None or record.form != "wds":
        return named.by_split(), None
    if named.whole:
        require_finished(named.root, record)
    groups: dict[str | None, list[Archive]] = {}
    for split, names in record.files.items():
        if archives := [one for one in named.archives if one.below in {*names}]:
            groups[split] = archives
    return (groups, record) if groups else (named.by_split(), None)


def list_anew(
    named: ArchiveSet,
    archives: Sequence[Archive],
    stamps: NDArray[np.int64],
    *,
    names: str | None,
    split: str | None,
    record: Record | None = None,
) -> dict[str, Members]:
    """List archives, whatever is kept: the images of each split.

    Args:
        named: What they are of.
        archives: Which.
        stamps: int64 [F, 5], of each.
        names: The file that names classes; None: there is none.
        split: As `arrange` has it.
        record: Of the shards, where `ser data shard` made them.

    Raises:
        UserError: As `list_split`.
    """
    held = Holdings([archive.stem for archive in archives])
    inner: list[tuple[int, Part]] = []
    parts = [Part(archive.path, archive.below) for archive in archives]
    for number, contents in enumerate(list_parts(parts)):
        held.take(contents, archive=number)
        inner += [(number, part) for part in contents.inner]
    for (number, _), contents in zip(inner, list_parts([part for _, part in inner]), strict=True):
        held.take(contents, archive=number)
    beside = [] if names is None else [names]

    def wnids() -> list[str]:
        folders = dict.fromkeys([*(os.path.dirname(one.path) for one in archives), named.root])
        labels = find_validation_labels(*map(Path, folders))
        beside.extend(labels.files)
        return labels.read()

    classes = None if names is None else read_names(names)
    if record is not None and split is not None:
        found = {split: as_made(held, labelled=record.labelled)}
    else:
        found = arrange(held, split=split, wnids=wnids)
    rows = np.concatenate([stamps, stamps_of(beside)])
    return {
        split: one.members(
            [archive.path for archive in archives],
            rows,
            beside=beside,
            classes=classes if one.form == LABELLED else None,
            key=key_of if one.form == LABELLED and record is None else None,
        )
        for split, one in found.items()
    }

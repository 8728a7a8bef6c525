"""What the names in archives mean: splits, classes, and what each image is called.

An archive is read as the folder that it would unpack to, so that a set is the same in both: one
folder around everything is taken off, folders of splits are splits, and those below are classes.
Where labels lie beside images, as in WebDataset, these tell classes, and folders do not.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sercli.data.archives.contents import Contents
from sercli.data.archives.finding import is_wnid, shard_number
from sercli.data.archives.made import name_of
from sercli.data.archives.members import Found
from sercli.data.imagenet_labels import validation_number, wnid_of
from sercli.data.images.listing import printable
from sercli.data.images.splits import split_told
from sercli.errors import shortened

LABELLED = "WebDataset: a label beside each image"
FOLDERS = "class folders"
A_TAR_A_CLASS = "an archive a class"
VALIDATION = "ImageNet's validation images"
UNLABELLED = "images without labels"


@dataclass
class Holdings:
    """All that some archives hold, column by column.

    Attributes:
        stems: What each archive is called, without its suffix.
        names, told, offset, size: As `Contents` has them.
        archive: Which archive each image is in.
    """

    stems: Sequence[str]
    names: list[bytes] = field(default_factory=list)
    told: list[str | None] = field(default_factory=list)
    archive: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    passed_over: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def take(self, contents: Contents, *, archive: int) -> None:
        """Add what an archive, or a tar in it, holds."""
        self.names += contents.names
        self.told += contents.told
        self.archive.extend([archive] * len(contents.names))
        self.offset.extend(contents.offset)
        self.size.extend(contents.size)
        self.passed_over += contents.passed_over
        self.faults += contents.faults


@dataclass(frozen=True)
class _Group:
    """Some of the images, and how much of their names they share: folders around them."""

    indices: Sequence[int]
    cut: int = 0


def arrange(
    held: Holdings, *, split: str | None, wnids: Callable[[], list[str]]
) -> dict[str, Found]:
    """The images of each split.

    Args:
        held: What there is.
        split: Of which all is; None: folders in the archives may tell splits.
        wnids: Reads what tells the classes of ImageNet's validation images.
            Raises `UserError`: Nothing does.

    Returns:
        Those of `split`; without one those of "train", which has all where there is one split
        only, and of "val", maybe none.

    Raises:
        UserError: As `wnids`.
    """
    whole = _unwrapped(held, _Group(range(len(held.names))))
    groups = (_by_split(held, whole) if split is None else None) or {split or "train": whole}
    left_out = groups.pop("test", None)
    found = {one: _found(held, group, wnids) for one, group in groups.items()}
    if split is None:
        found.setdefault("val", Found(UNLABELLED))
    for one in found.values():
        one.faults += held.faults
    first = found[split or "train"]
    first.passed_over += held.passed_over
    if left_out is not None:
        first.passed_over["images of test"] += len(left_out.indices)
    return found


def as_made(held: Holdings, *, labelled: bool) -> Found:
    """The images of a split in shards of `ser data shard`: names say nothing but what they are."""
    found = Found(LABELLED if labelled else UNLABELLED)
    for index, name in enumerate(held.names):
        _add(found, held, index, name_of(name), held.told[index] if labelled else None)
    found.passed_over += held.passed_over
    found.faults += held.faults
    return found


def _rest(held: Holdings, group: _Group, index: int) -> bytes:
    return held.names[index][group.cut :]


def _unwrapped(held: Holdings, group: _Group) -> _Group:
    """A group without the folders that are around all of it.

    A folder that images lie in directly is a class, unless it is called as a split.
    """
    names, indices, cut = held.names, group.indices, group.cut
    while len(indices):
        top, slash, _ = names[indices[0]][cut:].partition(b"/")
        around = top + slash
        if not slash or not all(names[i].startswith(around, cut) for i in indices):
            break
        inner = cut + len(around)
        direct = any(names[i].find(b"/", inner) < 0 for i in indices)
        if direct and split_told(printable(top)) is None:
            break
        cut = inner
    return _Group(indices, cut)


def _by_split(held: Holdings, whole: _Group) -> dict[str, _Group] | None:
    """Images by the folder of their split; None: the folders are no splits."""
    tops: dict[bytes, list[int]] = {}
    for index in whole.indices:
        top, slash, _ = _rest(held, whole, index).partition(b"/")
        tops.setdefault(top if slash else b"", []).append(index)
    told = {top: split_told(printable(top)) for top in tops}
    splits = set(told.values())
    if len(tops) < 2 or None in splits or len(splits) < len(tops) or "train" not in splits:
        return None
    return {
        str(told[top]): _unwrapped(held, _Group(indices, whole.cut + len(top) + 1))
        for top, indices in tops.items()
    }


def _found(held: Holdings, group: _Group, wnids: Callable[[], list[str]]) -> Found:
    """The images of a group, and what their classes are called."""
    if any(held.told[index] is not None for index in group.indices):
        return _told_by(held, group, LABELLED, lambda index, name: (name, held.told[index]))
    if any(b"/" in _rest(held, group, index) for index in group.indices):
        return _of_class_folders(held, group)
    stems = {held.archive[index]: held.stems[held.archive[index]] for index in group.indices}
    named_as_classes = any(map(is_wnid, stems.values()))  # whatever the images are called
    if (
        group.indices
        and not named_as_classes
        and all(validation_number(_rest(held, group, index)) is not None for index in group.indices)
    ):
        list_of = wnids()

        def of_imagenet(index: int, name: bytes) -> tuple[bytes, str]:
            del index
            number = validation_number(name)
            assert number is not None
            wnid = wnid_of(number, list_of, image=printable(name))
            return wnid.encode() + b"/" + name, wnid

        return _told_by(held, group, VALIDATION, of_imagenet)
    if alike := _differ_by_number([*stems.values()]):
        found = _told_by(held, group, UNLABELLED, lambda _, name: (name, None))
        found.faults.append(
            f"{shortened(alike[0])} and {shortened(alike[1])} hold images without folders or "
            "labels; they may be parts of one set, or a class each; name parts as shards are "
            "(part-1, part-2), classes by words"
        )
        return found
    if _are_classes(list(stems.values())):
        folders = {
            number: stem.encode("utf-8", "surrogateescape") for number, stem in stems.items()
        }
        classes = {number: printable(folder) for number, folder in folders.items()}

        def of_its_archive(index: int, name: bytes) -> tuple[bytes, str]:
            number = held.archive[index]
            return folders[number] + b"/" + name, classes[number]

        return _told_by(held, group, A_TAR_A_CLASS, of_its_archive)
    return _told_by(held, group, UNLABELLED, lambda _, name: (name, None))


def _told_by(
    held: Holdings,
    group: _Group,
    form: str,
    tell: Callable[[int, bytes], tuple[bytes, str | None]],
) -> Found:
    """The images of a group; `tell` says of each what it is called, and its class."""
    found = Found(form, by_folder=form != LABELLED)
    for index in group.indices:
        name, told = tell(index, _rest(held, group, index))
        _add(found, held, index, name, told)
    return found


def _of_class_folders(held: Holdings, group: _Group) -> Found:
    """Images below class folders. Those beside them are left out, as where they are unpacked."""
    found = Found(FOLDERS, by_folder=True)
    loose: Counter[int] = Counter()
    classes: dict[bytes, str] = {}
    for index in group.indices:
        name = _rest(held, group, index)
        folder, slash, _ = name.partition(b"/")
        if slash:
            told = classes.get(folder)
            if told is None:
                told = classes[folder] = printable(folder)
            _add(found, held, index, name, told)
        else:
            loose[held.archive[index]] += 1
    with_folders = set(found.archive)
    if flat := [number for number in loose if number not in with_folders]:
        other = next(iter(with_folders))
        found.faults.append(
            f"{shortened(held.stems[flat[0]])} holds images without folders, and "
            f"{shortened(held.stems[other])} class folders; archives of a set are alike; name one "
            "kind of them"
        )
    if loose:
        found.passed_over["images beside the class folders"] += sum(loose.values())
    return found


def _add(found: Found, held: Holdings, index: int, name: bytes, told: str | None) -> None:
    found.add(
        name,
        told,
        archive=held.archive[index],
        offset=held.offset[index],
        size=held.size[index],
    )


def _differ_by_number(stems: Sequence[str]) -> Sequence[str]:
    """Names such as "part1", "part2", of which nothing tells what they are; none: they do."""
    plain = len(stems) > 1 and not any(map(is_wnid, stems)) and _are_classes(stems)
    return stems if plain and len({stem.rstrip("0123456789") for stem in stems}) == 1 else ()


def _are_classes(stems: Sequence[str]) -> bool:
    """Whether archives of images without folders are a class each, and no shards of one set."""
    if any(map(is_wnid, stems)):
        return True
    return (
        len(stems) > 1
        and all(shard_number(stem) is None for stem in stems)
        and not all(split_told(stem) for stem in stems)
    )

"""Images in class folders: `DIR/<class>/**/*.JPEG`, and `DIR/{train,val}/<class>/**/*.JPEG`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sercli.data.images.files import StoredImages
from sercli.data.images.listing import SUFFIXES, is_directory, list_directory, printable
from sercli.data.images.looking import look
from sercli.data.images.manifest import Fault, Manifest, read_manifest
from sercli.errors import UserError, from_os_error
from sercli.runs.places import require_place

_LAYOUT = "the layout is DIR/train/<class>/*.JPEG and DIR/val/<class>/*.JPEG, or DIR/<class>/*.JPEG"
_NAMED = f"images are files named *.{{{','.join(SUFFIXES)}}}"
# Folders beside train/ and val/ that are never classes of a flat set.
_OTHER_SPLITS = {"test", "valid", "validation"}


class ImageFolder(StoredImages):
    """The images below one folder of class folders; the classes are the folders, sorted by name.

    Args:
        root: The folder that holds the class folders.
        name: What the user called the set (the path, by default).
        split: "train" or "val".
        labelled: Whether there are classes; otherwise all images below `root` are of the set.

    Raises:
        UserError: It is missing, no directory, has no class folders or an empty one.
    """

    def __init__(
        self, root: Path, *, name: str | None = None, split: str = "train", labelled: bool = True
    ) -> None:
        require_directory(root)
        self._manifest = read_manifest(root, labelled=labelled)
        _require_images(root, self._manifest, labelled=labelled)
        self._root = str(root)
        self.name = str(root) if name is None else name
        self.split = split
        self.classes = self._manifest.classes
        self.labels = self._manifest.labels()

    def where(self, index: int) -> str:
        return self.path(index)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What lies among the images and cannot be read, as far as a scan tells."""
        return self._manifest.faults

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the scan left out by its name, and how many of each."""
        return self._manifest.passed_over

    def path(self, index: int) -> str:
        """The file, as the operating system wants it."""
        relative = self._manifest.relative(self.position(index))
        return os.path.join(self._root, os.fsdecode(relative))

    def file_size(self, index: int) -> int | None:
        try:
            return os.stat(self.path(index)).st_size
        except OSError:
            return None

    def listed(self) -> Iterator[bytes | memoryview]:
        told = self._manifest
        yield b"\0".join(told.directories)
        for column in (told.file_directory, told.names, told.offsets):
            yield column.tobytes()

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self.identifier(index))

    def identifier(self, index: int) -> str:
        """The path below the folder that holds the class folders, with forward slashes."""
        return printable(self._manifest.relative(self.position(index)))


def require_directory(path: Path) -> None:
    """Refuse a path that is no readable directory.

    Raises:
        UserError: It is missing, or is a file.
    """
    require_place(path, "data")
    if is_directory(path):
        return
    if path.exists():
        raise UserError(f"{path} is a file", "a data set is a directory", _LAYOUT)
    raise UserError(
        f"{path} does not exist",
        "a data set is a directory; `shapes` and `shapes:scenes` are the embedded world",
        "check the path, or make one with `ser data shapes DIR`",
    )


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of class folders that holds a split of the set at `root`; None if it has none.

    A set with `train/` or `val/` folders is read by split; any other is all "train".

    Raises:
        UserError: `root` is missing or a file.
    """
    require_directory(root)
    if not _is_split(root):
        return root if split == "train" else None
    folder = root / split
    return folder if is_directory(folder) else None


def open_folder(root: Path, split: str, *, name: str) -> ImageFolder:
    """Open one split of the set at `root`.

    Raises:
        UserError: The set or the split is missing or empty, or the classes of `val/` are not
            those of `train/` (its labels would not mean the same), or a file is none that can be
            read (a FIFO, a link that leads nowhere).
    """
    folder = split_folder(root, split)
    if folder is None:
        raise UserError(
            f"{root} has no {split}/ folder",
            f"the {split} images are needed here",
            f"put them in {root / split}/<class>/",
        )
    source = ImageFolder(folder, name=name, split=split)
    refuse_faults(folder, source.faults)
    if split == "val" and (train := split_folder(root, "train")) is not None:
        differences = class_differences(class_names(train), source.classes)
        if differences:
            raise UserError(
                f"{root}: {'; '.join(differences)}",
                "train/ and val/ must hold the same class folders",
            )
    return source


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in `folder`, sorted.

    Raises:
        UserError: It cannot be listed.
    """
    try:
        return tuple(printable(name) for name in look(folder).folders)
    except OSError as error:
        raise from_os_error(error, f"cannot list {folder}") from error


def class_differences(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    """One phrase for the classes that only train has, one for those that only val has."""
    only_train, only_val = sorted({*train} - {*val}), sorted({*val} - {*train})
    return [
        f"{counted(only, 'class')} only in {split}/ ({some(only)})"
        for split, only in (("train", only_train), ("val", only_val))
        if only
    ]


def empty_classes(manifest: Manifest) -> tuple[str, ...]:
    """Names of the class folders without an image."""
    counts = manifest.class_counts()
    return tuple(name for name, count in zip(manifest.classes, counts, strict=True) if not count)


def some(names: tuple[str, ...] | list[str], at_most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(names[:at_most])
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown


def counted(things: tuple[str, ...] | list[str], noun: str) -> str:
    """ "1 class", "2 classes", "3 folders"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(things)} {noun if len(things) == 1 else plural}"


def _is_split(root: Path) -> bool:
    """Whether `root` is read by split.

    A flat set may well have a class called `train`: there the folder holds images and no folders,
    and has other classes beside it.
    """
    names = set(class_names(root))
    splits = names & {"train", "val"}
    if not splits:
        return False
    others = {name for name in names - splits - _OTHER_SPLITS if not class_names(root / name)}
    return not others or any(class_names(root / split) for split in splits)


def _require_images(root: Path, manifest: Manifest, *, labelled: bool) -> None:
    if not labelled:
        if not len(manifest):
            raise UserError(f"no image lies below {root}", _NAMED)
        return
    if not manifest.classes:
        loose = list_directory(root).files
        held = "images but no class folders" if loose else "no class folders"
        raise UserError(f"{root} holds {held}", _LAYOUT)
    if not len(manifest):
        raise UserError(
            f"{root} holds {counted(manifest.classes, 'class folder')} but no image",
            _NAMED,
            _LAYOUT,
        )
    if empty := empty_classes(manifest):
        raise UserError(
            f"{root} has {counted(empty, 'empty class folder')} ({some(empty)})",
            "every class needs an image",
            f"fill or remove the folder{'s' if len(empty) > 1 else ''}, or name it "
            f"unlabelled:{root} if folders are no classes",
        )


def refuse_faults(root: Path, faults: Sequence[Fault]) -> None:
    """Refuse files that can be none: a training should not end hours later, when it comes to one.

    Raises:
        UserError: There are any.
    """
    if faults:
        more = f" (and {len(faults) - 1:,} more such)" if len(faults) > 1 else ""
        raise UserError(
            f"{faults[0].said_below(str(root))}{more}",
            "images are regular files, or links to such",
            "mend or remove it; `ser data check` lists all there are",
        )

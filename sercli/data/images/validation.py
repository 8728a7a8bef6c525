"""ImageNet's validation images as they are unpacked: 50,000 files in one folder, without classes.

What tells their classes (`data.imagenet_labels`) lies beside them, or beside their folder. They are
then the set that class folders of them would be: the same order, labels and identifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sercli.data.imagenet_labels import find_validation_labels, validation_number, wnid_of
from sercli.data.images.files import StoredImages
from sercli.data.images.folder import (
    ImageFolder,
    class_differences,
    class_names,
    refuse_faults,
    split_folder,
)
from sercli.data.images.looking import look
from sercli.data.images.manifest import Fault
from sercli.data.images.order import numbered
from sercli.data.images.unlabelled import is_flat
from sercli.errors import UserError


class FlatValidation(StoredImages):
    """The validation images in a folder.

    Args:
        folder: Where they lie.
        name: What the user called the set.
        split: "train" or "val".

    Raises:
        UserError: Nothing tells their classes, or a file is not named as they are.
    """

    def __init__(self, folder: Path, *, name: str, split: str) -> None:
        self._files = ImageFolder(folder, labelled=False)
        self.name, self.split = name, split
        wnids = find_validation_labels(folder, folder.absolute().parent).read()
        told = []
        for index in range(len(self._files)):
            file = self._files.identifier(index)
            number = validation_number(file.encode())
            if number is None:
                raise UserError(
                    f"{self._files.describe(index)} lies among ImageNet's validation images",
                    "their names are ILSVRC2012_val_ with a number",
                    "move it away",
                )
            told.append(wnid_of(number, wnids, image=file))
        self.classes, labels = numbered(told)
        self._order = np.argsort(labels, kind="stable")
        self.labels = labels[self._order]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What lies among the images and cannot be read, as far as a scan tells."""
        return self._files.faults

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the scan left out by its name, and how many of each."""
        return self._files.passed_over

    def where(self, index: int) -> str:
        return self._files.path(self._place(index))

    def file_size(self, index: int) -> int | None:
        return self._files.file_size(self._place(index))

    def describe(self, index: int) -> str:
        return self._files.describe(self._place(index))

    def identifier(self, index: int) -> str:
        """The path that it would have in class folders."""
        place = self._place(index)
        return f"{self.classes[self.labels[index]]}/{self._files.identifier(place)}"

    def _place(self, index: int) -> int:
        return int(self._order[self.position(index)])


def are_validation_images(folder: Path) -> bool:
    """Whether a folder holds ImageNet's validation images without class folders, by the first."""
    return is_flat(folder) and validation_number(look(folder).an_image) is not None


def tells_classes(folder: Path) -> bool:
    """Whether a folder holds such images, and something tells their classes."""
    if not are_validation_images(folder):
        return False
    try:
        find_validation_labels(folder, folder.absolute().parent)
    except UserError:
        return False
    return True


def flat_validation(root: Path, split: str, *, name: str) -> FlatValidation | None:
    """A split that is such a folder; None: it is something else.

    Raises:
        UserError: It is such a folder and cannot be used, or its classes are not those of train.
    """
    folder = split_folder(root, split)
    if folder is None or not are_validation_images(folder):
        return None
    source = FlatValidation(folder, name=name, split=split)
    refuse_faults(folder, source.faults)
    if split == "val" and (train := split_folder(root, "train")) is not None:
        differences = class_differences(class_names(train), source.classes)
        if differences:
            raise UserError(
                f"{root}: {'; '.join(differences)}", "train/ and val/ must hold the same classes"
            )
    return source

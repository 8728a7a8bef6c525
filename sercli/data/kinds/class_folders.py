"""Class folders, as ImageNet is unpacked: what any directory is that no other kind recognises."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.images.check import CheckReport, Reading, check
from sercli.data.images.folder import open_folder, split_folder
from sercli.data.images.validation import flat_validation
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource


@register
class ClassFolders(DataKind):
    """`DIR/{train,val}/<class>/*.JPEG`, or `DIR/<class>/*.JPEG`; ImageNet's val may be flat."""

    name = "folder"
    title = "an ordinary data set"
    layouts: ClassVar[tuple[str, ...]] = ("folder",)
    asked_last = True

    def recognises(self, path: str) -> bool:
        return Path(path).is_dir()

    def has_split(self, path: str, split: str) -> bool:
        return split_folder(Path(path), split) is not None

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del image_size, num_images, seed  # the files are what they are
        flat = flat_validation(Path(path), split, name=path)
        return open_folder(Path(path), split, name=path) if flat is None else flat

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check(path, reading)

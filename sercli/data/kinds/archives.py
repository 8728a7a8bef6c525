"""Tar and zip: WebDataset's shards, class folders, ImageNet's own archives."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.archives.check import check_archives
from sercli.data.archives.finding import is_set_of_archives
from sercli.data.archives.opening import has_split_of_archives, open_archives
from sercli.data.images.check import CheckReport, Reading
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource


@register
class Archives(DataKind):
    """An archive, a directory of archives, or a pattern such as `train-{0000..1023}.tar`."""

    name = "archives"
    title = "a set of archives"
    given_as = "archives (.tar, .zip)"
    layouts: ClassVar[tuple[str, ...]] = ("archives",)
    asked_last = True  # and before class folders: these take any directory

    def recognises(self, path: str) -> bool:
        return is_set_of_archives(path)

    def has_split(self, path: str, split: str) -> bool:
        return has_split_of_archives(path, split)

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del image_size, num_images, seed  # the files are what they are
        return open_archives(path, split)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check_archives(str(path), reading)

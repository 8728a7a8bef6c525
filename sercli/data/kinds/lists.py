"""Lists of images: a text file of `path[,label]`, or a directory with one for train and val."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.images.check import CheckReport, Reading
from sercli.data.lists.check import check_lists
from sercli.data.lists.finding import find_lists, is_list_set
from sercli.data.lists.opening import has_labels, open_lists
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource


@register
class Lists(DataKind):
    """`FILE.csv`, `.tsv` or `.txt`; or `DIR/train.csv` and `DIR/val.csv`."""

    name = "list"
    title = "a list of images"
    given_as = "a list (.csv, .tsv, .txt)"
    layouts: ClassVar[tuple[str, ...]] = ("list",)

    def recognises(self, path: str) -> bool:
        return is_list_set(path)

    def has_split(self, path: str, split: str) -> bool:
        return split in find_lists(path).files

    def has_labels(self, path: str) -> bool:
        return has_labels(path)

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del image_size, num_images, seed  # the files are what they are
        return open_lists(path, split)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check_lists(str(path), reading)

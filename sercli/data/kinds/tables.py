"""Parquet files as Hugging Face stores sets of images, and Arrow files of `save_to_disk`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from sercli.data.images.check import CheckReport, Reading
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource
from sercli.data.tables.arrow import DICTIONARY, STATE
from sercli.data.tables.check import check_tables
from sercli.data.tables.finding import holds_tables, names_tables
from sercli.data.tables.opening import ARROW, PARQUET, Form, open_tables


class _Tables(DataKind):
    """A form of tables: files, a pattern of such, or a folder that holds them."""

    form: ClassVar[Form]
    suffix: ClassVar[str]

    def recognises(self, path: str) -> bool:
        return names_tables(path, self.suffix) or (
            os.path.isdir(path) and holds_tables(path, self.suffix)
        )

    def has_split(self, path: str, split: str) -> bool:
        return split in self.form.find(path).files

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del image_size, num_images, seed  # the files are what they are
        return open_tables(self.form, path, split)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check_tables(self.form, str(path), reading)


@register
class Parquet(_Tables):
    """`DIR/data/train-00000-of-00294.parquet`: columns `image` and `label`."""

    name = "parquet"
    form = PARQUET
    suffix = "parquet"
    title = PARQUET.title
    given_as = "tables (.parquet, .arrow)"
    layouts: ClassVar[tuple[str, ...]] = ("parquet",)


@register
class Arrow(_Tables):
    """A folder of `datasets.save_to_disk`, or of its cache."""

    name = "arrow"
    form = ARROW
    suffix = "arrow"
    title = ARROW.title
    given_as = ""
    layouts: ClassVar[tuple[str, ...]] = ("arrow",)

    def recognises(self, path: str) -> bool:
        saved = any(os.path.isfile(os.path.join(path, name)) for name in (DICTIONARY, STATE))
        return saved or super().recognises(path)

"""Images without labels: a folder of files, or whatever lies below `unlabelled:DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.imagenet_labels import find_validation_labels
from sercli.data.images.check import CheckReport, Reading, check
from sercli.data.images.unlabelled import PREFIX, folder_of, is_unlabelled, open_unlabelled
from sercli.data.images.validation import are_validation_images, tells_classes
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource


@register
class Unlabelled(DataKind):
    """`unlabelled:DIR`; or `DIR/*.JPEG`, or `DIR/{train,val}/*.JPEG`, without folders."""

    name = "unlabelled"
    title = "images without labels"
    given_as = ""
    layouts: ClassVar[tuple[str, ...]] = ("unlabelled",)
    asked_first = True

    def recognises(self, path: str) -> bool:
        return is_unlabelled(path) and (path.startswith(PREFIX) or not tells_classes(Path(path)))

    def has_split(self, path: str, split: str) -> bool:
        return folder_of(path, split) is not None

    def has_labels(self, path: str) -> bool:
        folder = folder_of(path, "train")
        if folder is not None and are_validation_images(folder):
            find_validation_labels(folder, folder.absolute().parent)  # says why nothing tells them
        return False

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del image_size, num_images, seed  # the files are what they are
        return open_unlabelled(path, split)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check(Path(str(path).removeprefix(PREFIX)), reading, labelled=False)

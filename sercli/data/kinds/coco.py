"""Detection sets in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from sercli.data.coco.check import check_coco
from sercli.data.coco.folder import CocoFolder, is_coco, require_split
from sercli.data.coco.source import DetectionSource
from sercli.data.images.check import CheckReport, Reading
from sercli.data.registry import SPLITS, DataKind, DetectorDefaults, register
from sercli.data.source import ImageSource
from sercli.errors import UserError


@register
class CocoSet(DataKind):
    """`annotations/instances_*.json` and the images that they list; no labels of whole images."""

    name = "coco"
    title = "a set in COCO's format"
    layouts = ("coco",)
    detector = DetectorDefaults(engine="detectron2", preset="standard")

    def recognises(self, path: str) -> bool:
        return is_coco(Path(path))

    def has_split(self, path: str, split: str) -> bool:
        del split
        _refuse(path)

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del split, image_size, num_images, seed
        _refuse(path)

    def open_detection(
        self, path: str, split: str, *, image_size: int, seed: int
    ) -> DetectionSource:
        del image_size, seed
        return CocoFolder(Path(path), split)

    def require_detection(self, path: str) -> None:
        for split in SPLITS:
            require_split(Path(path), split).images()

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        return check_coco(path, reading)


def _refuse(path: str) -> NoReturn:
    raise UserError(
        f"{path} is a detection set in COCO's format",
        "class folders, or train/ and val/ of them, are needed",
        "`ser coco-detect` takes it",
    )

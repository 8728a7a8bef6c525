"""Detection sets in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from sercli.data.coco.check import check_coco
from sercli.data.coco.folder import CocoFolder, is_coco, require_split
from sercli.data.coco.source import DetectionSource
from sercli.data.images.check import CheckReport
from sercli.data.registry import DataKind, DetectorDefaults, Progress, register
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
        for split in ("train", "val"):
            require_split(Path(path), split).images()

    def check(
        self,
        path: Path,
        *,
        layout: str | None,
        classes_of: Path | None,
        decode: bool,
        processes: int | None,
        progress: Progress,
    ) -> CheckReport:
        del layout, classes_of
        return check_coco(path, decode=decode, processes=processes, progress=progress)


def _refuse(path: str) -> NoReturn:
    raise UserError(
        f"{path} is a detection set in COCO's format",
        "class folders, or train/ and val/ of them, are needed",
        "`ser coco-detect` takes it",
    )

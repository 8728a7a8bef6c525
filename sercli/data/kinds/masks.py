"""Images with a class for every pixel, in the layouts of PASCAL VOC and ADE20K."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NoReturn

from sercli.data.images.check import CheckReport, Reading
from sercli.data.masks.check import check_masks
from sercli.data.masks.folder import MaskFolder
from sercli.data.masks.layouts import LAYOUTS, layout_of, require_layout
from sercli.data.registry import SPLITS, DataKind, register
from sercli.data.source import ImageSource
from sercli.errors import UserError


@register
class MaskFolders(DataKind):
    """Folders of images and of masks; no labels of whole images."""

    name = "masks"
    title = "a set of images and masks"
    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)
    has_classes_of_pixels = True

    def recognises(self, path: str) -> bool:
        return layout_of(Path(path)) is not None

    def has_split(self, path: str, split: str) -> bool:
        del split
        _refuse(path)

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del split, image_size, num_images, seed
        _refuse(path)

    def open_masks(self, path: str, split: str, *, image_size: int, seed: int) -> MaskFolder:
        del image_size, seed
        return MaskFolder(Path(path), split)

    def require_masks(self, path: str) -> None:
        require_layout(Path(path)).classes(Path(path))
        for split in SPLITS:
            MaskFolder(Path(path), split)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del classes_of
        return check_masks(path, reading, layout=layout)


def _refuse(path: str) -> NoReturn:
    raise UserError(
        f"{path} is a set of images and masks",
        "class folders, or train/ and val/ of them, are needed",
        "`ser segment` takes it",
    )

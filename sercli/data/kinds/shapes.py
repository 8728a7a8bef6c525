"""The embedded world: images rendered from the seed, and the same world as a detection set."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.images.check import CheckReport, Reading
from sercli.data.masks.objects import ObjectMasks
from sercli.data.registry import DataKind, DetectorDefaults, register
from sercli.data.shapes.detection import ShapesDetection
from sercli.data.shapes.settings import SCENES, SETTINGS, SHAPES, Setting
from sercli.data.shapes.world import ShapesSource
from sercli.data.source import ImageSource
from sercli.errors import UserError


class _Rendered(DataKind):
    """A setting of the embedded world, by its word; a folder of that name is `./shapes`."""

    title = "the embedded world"
    given_as = f"the embedded world ({', '.join(f'`{path}`' for path in SETTINGS)})"
    rendered = True
    detector = DetectorDefaults(engine="torchvision", preset="tiny")
    has_classes_of_pixels = True
    setting: ClassVar[Setting]
    written_by: ClassVar[str] = f"ser data {SHAPES.path} DIR"

    def recognises(self, path: str) -> bool:
        return path == self.setting.path

    def has_split(self, path: str, split: str) -> bool:
        del path
        return split in self.setting.num_images

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del path
        number = self.setting.num_images[split] if num_images is None else num_images
        return ShapesSource(
            split, image_size=image_size, num_images=number, seed=seed, setting=self.setting
        )

    def open_detection(
        self, path: str, split: str, *, image_size: int, seed: int
    ) -> ShapesDetection:
        del path
        return ShapesDetection(split, image_size=image_size, seed=seed, setting=self.setting)

    def open_masks(self, path: str, split: str, *, image_size: int, seed: int) -> ObjectMasks:
        return ObjectMasks(self.open_detection(path, split, image_size=image_size, seed=seed))

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del reading, layout, classes_of
        raise UserError(
            f"{path} is {self.title}",
            "only files can be checked",
            f"write them with `{self.written_by}`",
        )


@register
class EmbeddedWorld(_Rendered):
    """One large object a picture, told by outline and texture alike."""

    setting = SHAPES
    name = SHAPES.path
    recipes = "shapes"
    num_classes = len(SHAPES.classes)


@register
class Scenes(_Rendered):
    """Two sorts of small objects a picture, told by which they are and by how they lie."""

    setting = SCENES
    name = SCENES.path
    recipes = "scenes"
    num_classes = len(SCENES.classes)
    written_by = f"ser data {SHAPES.path} DIR --setting {SCENES.name}"

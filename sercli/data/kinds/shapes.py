"""The embedded world: images rendered from the seed, and the same world as a detection set."""

from __future__ import annotations

from pathlib import Path

from sercli.data.images.check import CheckReport, Reading
from sercli.data.masks.objects import ObjectMasks
from sercli.data.registry import DataKind, DetectorDefaults, register
from sercli.data.shapes.detection import ShapesDetection
from sercli.data.shapes.outlines import CLASSES
from sercli.data.shapes.world import NAME, NUM_IMAGES, ShapesSource
from sercli.data.source import ImageSource
from sercli.errors import UserError


@register
class EmbeddedWorld(DataKind):
    """The word `shapes`; a folder of that name is `./shapes`."""

    name = NAME
    title = "the embedded world"
    given_as = f"`{NAME}` (the embedded world)"
    rendered = True
    recipes = "shapes"
    num_classes = len(CLASSES)
    detector = DetectorDefaults(engine="torchvision", preset="tiny")
    has_classes_of_pixels = True

    def recognises(self, path: str) -> bool:
        return path == NAME

    def has_split(self, path: str, split: str) -> bool:
        del path
        return split in NUM_IMAGES

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del path
        number = NUM_IMAGES[split] if num_images is None else num_images
        return ShapesSource(split, image_size=image_size, num_images=number, seed=seed)

    def open_detection(
        self, path: str, split: str, *, image_size: int, seed: int
    ) -> ShapesDetection:
        del path
        return ShapesDetection(split, image_size=image_size, seed=seed)

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
            f"{path} is the embedded world",
            "only files can be checked",
            f"write them with `ser data {NAME} DIR`",
        )

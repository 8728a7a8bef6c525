"""The settings of the embedded world: which classes there are, and what a picture of one shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sercli.data.shapes import arrangements
from sercli.data.shapes.outlines import A_CLASSES, CLASSES, R_CLASSES
from sercli.data.shapes.scene import Scene, draw_ground, scatter


@dataclass(frozen=True)
class Setting:
    """A setting of the embedded world.

    Attributes:
        path: What `--data` and recipes call it.
        classes: Those of pictures, sorted as folders are.
        objects: Those of objects, sorted.
        some_classes: Of the sets in which not all classes have pictures, as in the published ones.
        num_images: By split.
        num_detected: Images of its detection set, by split.
        num_objects: Least and most objects of an image of that.
        draw: Draws a scene of so many objects, of the class `index` modulo the number of classes.
        version: Another one draws other pictures from the same seed.
    """

    path: str
    classes: tuple[str, ...]
    objects: tuple[str, ...]
    some_classes: Mapping[str, tuple[str, ...]]
    num_images: Mapping[str, int]
    num_detected: Mapping[str, int]
    num_objects: tuple[int, int]
    draw: Callable[[np.random.Generator, int, int], Scene]
    version: int

    @property
    def name(self) -> str:
        """What `ser data shapes --setting` calls it."""
        return self.path.rpartition(":")[2]


def _draw_scene(random: np.random.Generator, index: int, objects: int) -> Scene:
    if objects == 1:
        return arrangements.draw_arranged(random, index)
    return arrangements.draw_scattered(random, index, objects)


def _draw_one(random: np.random.Generator, index: int, objects: int) -> Scene:
    ground = draw_ground(random)
    first = index % len(CLASSES)
    return Scene(first, scatter(random, CLASSES, objects, first=first), ground)


SHAPES = Setting(
    path="shapes",
    classes=CLASSES,
    objects=CLASSES,
    some_classes={"imagenet-r": R_CLASSES, "imagenet-a": A_CLASSES},
    num_images={"train": 4096, "val": 1024},
    num_detected={"train": 1024, "val": 256},
    num_objects=(1, 4),
    draw=_draw_one,
    version=1,
)
SCENES = Setting(
    path="shapes:scenes",
    classes=arrangements.CLASSES,
    objects=arrangements.SORTS,
    some_classes={"imagenet-r": arrangements.R_CLASSES, "imagenet-a": arrangements.A_CLASSES},
    num_images={"train": 8192, "val": 2048},
    num_detected={"train": 1024, "val": 256},
    num_objects=(4, 12),
    draw=_draw_scene,
    version=1,
)
SETTINGS = {one.path: one for one in (SHAPES, SCENES)}


def named(name: str) -> Setting:
    """The setting that `ser data shapes --setting` calls so."""
    return next(one for one in SETTINGS.values() if one.name == name)

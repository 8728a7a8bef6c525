"""A detection set as masks of classes: each pixel has the class of the object in front."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.coco.source import Annotation, DetectionSource
from sercli.data.masks.source import MaskSource

BACKGROUND = "background"


class ObjectMasks(MaskSource):
    """The images of a detection set whose masks are run lengths, as rendered ones are.

    Class 0 is the background, class 1 + label that of an object. Of two objects that share a pixel
    the later one lies in front. (An object that is too little seen to be annotated is background.)

    Args:
        source: Its annotations have uncompressed run lengths.
    """

    def __init__(self, source: DetectionSource) -> None:
        self.source = source
        self.name, self.split = source.name, source.split
        self.classes = (BACKGROUND, *(category.name for category in source.categories))
        self._classes = {one: 1 + label for one, label in source.labels_by_id().items()}

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Image.Image:
        return self.source.load(index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        width, height = self.size(index)
        mask = np.zeros((height, width), np.uint8)
        for annotation in self.source.annotations(index):
            mask[seen(annotation)] = self._classes[annotation["category_id"]]
        return mask

    def size(self, index: int) -> tuple[int, int]:
        width, height = self.source.sizes[index].tolist()
        return width, height

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def identifier(self, index: int) -> str:
        return f"{self.split}/{int(self.source.image_ids[index])}"


def seen(annotation: Annotation) -> NDArray[np.bool_]:
    """Where an object is seen, [H, W], of COCO's uncompressed run lengths."""
    size, counts = annotation["segmentation"]["size"], annotation["segmentation"]["counts"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size, order="F")

"""Noise pictures, folders of small files, and settings of views that leave their colours alone."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.data.source import ImageSource, UnreadableImage
from sercli.recipe.schema import Photometrics

PLAIN = Photometrics(jitter_p=0, grey_p=0, blur_p=0, solarise_p=0)


class Pictures(ImageSource):
    """Noise pictures of various sizes; those in `broken` cannot be read."""

    def __init__(self, count=24, broken=(), sizes=((40, 30), (33, 64), (50, 50))):
        self.name, self.split, self.classes = "pictures", "train", ("a",)
        self.labels = np.zeros(count, dtype=np.int64)
        self.broken, self.sizes = frozenset(broken), sizes

    def load(self, index):
        if index in self.broken:
            raise UnreadableImage(f"picture-{index}", "it is broken")
        width, height = self.sizes[index % len(self.sizes)]
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3))
        return Image.fromarray(pixels.astype(np.uint8))

    def describe(self, index):
        return f"picture-{index}"

    identifier = describe


def write_folders(root, *, classes, images, size):
    """Noise pictures in class folders below `root`, `images` of each class."""
    draws = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(images):
            pixels = draws.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def normalised(crops):
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (crops.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


# -- Folders of image files ------------------------------------------------------------------------


def image(path: Path, level: int = 100, size: tuple[int, int] = (8, 6)) -> Path:
    """Write a flat picture; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level // 2, 7)).save(path)
    return path


def folder(root: Path, *files: str) -> Path:
    """A folder with such pictures."""
    for file in files:
        image(root / file)
    return root


def age(root: Path) -> None:
    """Give every directory a modification time long past, as data sets have."""
    for directory, _, _ in os.walk(root):
        os.utime(directory, (1_000_000_000, 1_000_000_000))


def files_of(source: ImageSource) -> list[tuple[str, str]]:
    """Identifier and class of each image."""
    return [(source.identifier(i), source.classes[source.labels[i]]) for i in range(len(source))]

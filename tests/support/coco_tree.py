"""A directory in the shape of COCO 2017: its 80 categories, polygons, a crowd, an empty image."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_MISSING = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = tuple(number for number in range(1, 91) if number not in _MISSING)
CATEGORIES = [
    {"supercategory": "thing", "id": number, "name": name}
    for number, name in zip(IDS, NAMES, strict=True)
]


@dataclass(frozen=True)
class CocoTree:
    """What was written.

    Attributes:
        root: The directory.
        content: Split ("train", "val") → what its annotation file says.
    """

    root: Path
    content: dict[str, dict[str, Any]]

    def file(self, split: str) -> Path:
        """The annotations of a split."""
        return self.root / f"annotations/instances_{split}2017.json"

    def image(self, split: str, index: int) -> Path:
        """An image of a split, in the order of the file."""
        return self.root / f"{split}2017" / self.content[split]["images"][index]["file_name"]

    def rewrite(self, split: str) -> None:
        """Write the annotations of a split again, after `content` was changed."""
        self.file(split).write_text(json.dumps(self.content[split]))


def write_coco_tree(root: Path, *, num_train: int = 6, num_val: int = 4, seed: int = 0) -> CocoTree:
    """Write small images (40 to 120 px a side, no two sides equal) and their annotations.

    Every image has 1 to 4 objects that do not touch: filled polygons, some in two parts, of a
    colour of their own on grey. In each split the first image has a crowd (run lengths) besides,
    the second (if there are two) no object at all, and the third is stored as grey levels.
    """
    random = np.random.default_rng(seed)
    content, first = {}, 1
    (root / "annotations").mkdir(parents=True)
    for split, number in (("train", num_train), ("val", num_val)):
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        numbers = np.sort(random.choice(np.arange(9, 580_000), number, replace=False)).tolist()
        for index, image_id in enumerate(numbers):
            width, height = random.choice(np.arange(40, 121), 2, replace=False).tolist()
            picture, found = _draw(random, index, width, height)
            name = f"{image_id:012d}.jpg"
            mode = "L" if index == 2 else "RGB"
            picture.convert(mode).save(root / f"{split}2017" / name, quality=95)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for one in found:
                annotations.append({"id": first + len(annotations), "image_id": image_id, **one})
        first += len(annotations)
        content[split] = {
            "info": {"description": "synthetic"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [dict(category) for category in CATEGORIES],
        }
    tree = CocoTree(root, content)
    for split in content:
        tree.rewrite(split)
    return tree


def _draw(
    random: np.random.Generator, index: int, width: int, height: int
) -> tuple[Image.Image, list[dict[str, Any]]]:
    grey = int(random.integers(90, 160))
    picture = Image.new("RGB", (width, height), (grey, grey, grey))
    if index == 1:
        return picture, []
    draw = ImageDraw.Draw(picture)
    found = []
    quarters = random.permutation(4).tolist()
    number = 3 if index == 0 else int(random.integers(1, 5))  # the last quarter is the crowd's
    for quarter in quarters[:number]:
        half = (width / 2, height / 2)
        corner = (half[0] * (quarter % 2), half[1] * (quarter // 2))
        parts = _parts(random, corner, half)
        fill = tuple(int(255 * level) for level in random.permutation([0.0, 1.0, random.random()]))
        for part in parts:
            draw.polygon(part, fill=fill)
        label = int(random.integers(len(IDS)))
        found.append(_annotation(parts, width, height, IDS[label]))
    if index == 0:
        left, top = (quarters[3] % 2) * (width // 2), (quarters[3] // 2) * (height // 2)
        mask = np.zeros((height, width), bool)
        for x in range(left + 1, left + width // 2 - 4, 6):
            mask[top + 2 : top + height // 2 - 2, x : x + 3] = True
        pixels = np.asarray(picture).copy()
        pixels[mask] = (250, 230, 40)
        picture = Image.fromarray(pixels)
        found.append(_crowd(mask))
    return picture, found


def _parts(
    random: np.random.Generator, corner: tuple[float, float], half: tuple[float, float]
) -> list[list[float]]:
    """One polygon, or two beside each other, inside a quarter of the image; x, y, x, y, …"""
    number = 1 + int(random.integers(4) == 0)
    polygons = []
    for part in range(number):
        wide, high = half[0] / number, half[1]
        middle = np.array([corner[0] + wide * (part + 0.5), corner[1] + high / 2])
        angles = np.sort(random.random(8) * 0.5 + np.arange(8)) * np.pi / 4
        reach = random.uniform(0.7, 0.9, 8)[:, None] * np.array([wide, high]) / 2
        points = middle + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
        polygons.append(np.round(points, 2).ravel().tolist())
    return polygons


def _annotation(parts: list[list[float]], width: int, height: int, category: int) -> dict[str, Any]:
    x = np.concatenate([part[0::2] for part in parts])
    y = np.concatenate([part[1::2] for part in parts])
    whole = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    box = [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
    return {
        "category_id": category,
        "bbox": [round(float(value), 2) for value in box],
        "area": float(coco_mask.area(whole)),
        "iscrowd": 0,
        "segmentation": parts,
    }


def _crowd(mask: NDArray[np.bool_]) -> dict[str, Any]:
    counts = [len(list(run)) for _, run in itertools.groupby(mask.ravel(order="F"))]
    counts = [0, *counts] if mask[0, 0] else counts  # runs start with zeros
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "category_id": 1,
        "bbox": [int(value) for value in box],
        "area": int(mask.sum()),
        "iscrowd": 1,
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }

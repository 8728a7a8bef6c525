"""Small sets of images and index masks, in VOC's and ADE20K's layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((20, 16), (16, 20), (16, 16), (48, 16), (17, 90), (300, 16))  # width, height


def scene(number, size, *, classes=3):
    """An image whose colours tell its classes, and its mask (a border of 255)."""
    width, height = size
    draws = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    for label in range(1, classes):
        top, left = draws.integers(0, height // 2), draws.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = label
    colours = np.array([[40, 40, 40], [220, 60, 50], [50, 70, 220], [60, 200, 60]])
    image = colours[mask] + draws.normal(0, 8, (height, width, 3))
    mask[0], mask[:, 0] = 255, 255
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), mask


def palette(mask):
    """As VOC's: an index a pixel, and colours that mean nothing."""
    image = Image.fromarray(mask, mode="P") if mask.dtype == np.uint8 else None
    assert image is not None
    image.putpalette([(37 * value) % 256 for value in range(768)])
    return image


def write_voc(root: Path, numbers, *, classes=("background", "red", "blue"), sizes=SIZES):
    """`numbers` is how many images each split has."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    first = 0
    for split, number in numbers.items():
        names = [f"{split}_{n:03d}" for n in range(number)]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for n, name in enumerate(names):
            image, mask = scene(first + n, sizes[n % len(sizes)], classes=len(classes))
            image.save(root / f"JPEGImages/{name}.jpg", quality=95)
            palette(mask).save(root / f"SegmentationClass/{name}.png")
        first += number
    return root


def write_ade(root: Path, numbers, *, classes=("background", "red", "blue"), sizes=SIZES):
    """Indices from 1 on; what was 255 is 0."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    first = 0
    for split, number in numbers.items():
        folder = {"train": "training", "val": "validation"}[split]
        for part in ("images", "annotations"):
            (root / part / folder).mkdir(parents=True)
        for n in range(number):
            image, mask = scene(first + n, sizes[n % len(sizes)], classes=len(classes))
            image.save(root / f"images/{folder}/{n:03d}.jpg", quality=95)
            shifted = np.where(mask == 255, 0, mask + 1).astype(np.uint8)
            Image.fromarray(shifted).save(root / f"annotations/{folder}/{n:03d}.png")
        first += number
    return root

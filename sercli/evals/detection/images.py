"""What a detector on a frozen ViT sees: a fixed square canvas, and objects in its own frame.

Every image is scaled so that its longer side fits the canvas, and lies in its upper left corner.
The canvas has one size, whatever the batch: positional embeddings are resampled to one grid, and
an image gives the same features alone and beside others.

The detector's *frame* has 16 units a patch, whatever the encoder's patch is, so that the pyramid's
strides are 4, 8, 16, 32 and 64 units for every encoder. With patches of 16 pixels a unit is a pixel
of the canvas.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sercli import distributed
from sercli.data.coco.source import Annotation, DetectionSource, clipped, is_object
from sercli.data.loading import image_to_tensor, normalise
from sercli.errors import UserError
from sercli.randomness import numpy_generator

UNITS = 16  # of the frame, a patch
FLIP_P = 0.5

Key = tuple[int, int | None]  # index of an image, epoch; None: as in evaluation


@dataclass(frozen=True)
class Canvas:
    """The square that images are laid on.

    Attributes:
        size: Side in pixels.
        patch_size: Of the encoder, in pixels.
    """

    size: int
    patch_size: int

    @classmethod
    def of(cls, size: int, *, patch_size: int) -> Canvas:
        """A canvas whose grid the pyramid can halve.

        Raises:
            UserError: `size` is no positive multiple of two patches.
        """
        step = 2 * patch_size
        if size < step or size % step:
            below, above = size // step * step, (size // step + 1) * step
            raise UserError(
                f"--image-size {size} with patches of {patch_size} pixels",
                f"it must be a multiple of two patches ({step})",
                f"use {f'{below} or ' if below else ''}{above}",
            )
        return cls(size, patch_size)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch_size

    @property
    def units(self) -> float:
        """Units of the frame a pixel."""
        return UNITS / self.patch_size

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of an image on the canvas."""
        scale = self.size / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Sample:
    """One image as the detector takes it.

    Attributes:
        index: Position of the image in its source.
        image: uint8 [3, h, w], scaled for the canvas; None where its features are cached.
        original: Height and width in pixels of the file.
        frame: Height and width in units of the frame.
        boxes: float32 [n, 4], x1, y1, x2, y2 in units of the frame.
        labels: int64 [n].
        packed: uint8 [n, ⌈frame height⌉, ⌈⌈frame width⌉ / 8⌉], masks of eight pixels a byte: at
            1024 px a mask is a megabyte, and loader processes hand over many. No rows in
            evaluation.
    """

    index: int
    image: Tensor | None
    original: tuple[int, int]
    frame: tuple[float, float]
    boxes: Tensor
    labels: Tensor
    packed: Tensor

    def masks_on(self, device: torch.device) -> Tensor:
        """uint8 [n, ⌈frame height⌉, ⌈frame width⌉], 0 or 1, on a device."""
        bytes_there = self.packed.to(device, non_blocking=True)[..., None]
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        pixels: Tensor = ((bytes_there >> shifts) & 1).flatten(2)
        return pixels[..., : math.ceil(self.frame[1])]


class DetectionImages:
    """Training and evaluation samples of a source; mirrored at random by (seed, epoch, index).

    Args:
        source: The images and their annotations.
        canvas: The square that an image is scaled for and laid on.
        seed: What mirroring is drawn from, with epoch and index.
        flip: Mirror half of the training samples.
        with_images: Read the files; otherwise only the annotations.
    """

    def __init__(
        self,
        source: DetectionSource,
        canvas: Canvas,
        *,
        seed: int = 0,
        flip: bool = False,
        with_images: bool = True,
    ) -> None:
        self.source, self.canvas, self.seed = source, canvas, seed
        self.flip, self.with_images = flip, with_images
        self._labels = source.labels_by_id()

    def __getitem__(self, key: Key) -> Sample:
        index, epoch = key
        width, height = self.source.sizes[index].tolist()
        shown = self.canvas.fit(width, height)
        frame = (shown[1] * self.canvas.units, shown[0] * self.canvas.units)
        flip = False
        if epoch is not None and self.flip:
            draws = numpy_generator(self.seed, "coco-detect", "flip", epoch, index)
            flip = bool(draws.random() < FLIP_P)
        image = None
        if self.with_images:
            scaled = self.source.load(index).resize(shown, Image.Resampling.BILINEAR)
            image = image_to_tensor(scaled)
            image = image.flip(-1) if flip else image
        if epoch is None:
            nothing = (
                torch.zeros(0, 4),
                torch.zeros(0, dtype=torch.int64),
                torch.zeros(0, 1, 1, dtype=torch.uint8),
            )
            return Sample(index, image, (height, width), frame, *nothing)
        wanted = usable(self.source.annotations(index), width, height)
        scale = (frame[1] / width, frame[0] / height)
        boxes = [_corners(one["bbox"], width, height, scale, flip) for one in wanted]
        masks = [  # packed one by one: of some thousand objects they would take gigabytes
            np.packbits(_mask(one["segmentation"], (height, width), frame, flip), axis=-1)
            for one in wanted
        ]
        return Sample(
            index,
            image,
            (height, width),
            frame,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([self._labels[one["category_id"]] for one in wanted], dtype=torch.int64),
            torch.from_numpy(np.stack(masks)),
        )


def usable(annotations: Sequence[Annotation], width: int, height: int) -> list[Annotation]:
    """Those a detector is trained on: no crowds, and a box with an area inside the image."""
    return [one for one in annotations if is_object(one, width, height)]


def trainable_images(source: DetectionSource) -> NDArray[np.int64]:
    """Indices of the images that have something to train on.

    Raises:
        UserError: There are none.
    """
    found = [
        index
        for index in range(len(source))
        if usable(source.annotations(index), *source.sizes[index].tolist())
    ]
    if not found:
        raise UserError(
            f"{source.name}: no image of {source.split} has an object to train on",
            "an object is no crowd and has a box with an area inside its image",
            "`ser data check` tells what is there",
        )
    return np.array(found, np.int64)


def _corners(
    box: Sequence[float], width: int, height: int, scale: tuple[float, float], flip: bool
) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels of the file → corners in the frame."""
    x1, y1, x2, y2 = clipped(box, width, height)
    if flip:
        x1, x2 = width - x2, width - x1
    return x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]


def _mask(
    segmentation: Any, original: tuple[int, int], frame: tuple[float, float], flip: bool
) -> NDArray[np.uint8]:
    """Polygons or run lengths in pixels of the file → uint8 [⌈H⌉, ⌈W⌉] in the frame.

    Polygons are scaled before they are filled, so that no detail is lost.
    """
    from pycocotools import mask as coco_mask

    rows, columns = (math.ceil(side) for side in frame)
    if isinstance(segmentation, list):
        scale = np.array([frame[1] / original[1], frame[0] / original[0]])
        polygons = []
        for polygon in segmentation:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
            if flip:
                points = points * (-1, 1) + (original[1], 0)
            polygons.append((points * scale).ravel().tolist())
        runs = coco_mask.frPyObjects(polygons, rows, columns)
        filled: NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(runs))
        return filled
    runs = segmentation
    if isinstance(runs["counts"], list):
        runs = coco_mask.frPyObjects(runs, *runs["size"])
    whole = coco_mask.decode(runs)
    whole = whole[:, ::-1] if flip else whole
    return np.asarray(Image.fromarray(whole).resize((columns, rows), Image.Resampling.NEAREST))


def on_canvas(
    samples: Sequence[Sample],
    canvas: Canvas,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    """The images, normalised, on zero: float32 [B, 3, S, S] on the device."""
    canvases = torch.zeros(len(samples), 3, canvas.size, canvas.size, device=device)
    for row, sample in zip(canvases, samples, strict=True):
        assert sample.image is not None
        image = sample.image.to(device, non_blocking=True)
        row[:, : image.shape[1], : image.shape[2]] = normalise(
            image[None].float() / 255, mean, std
        )[0]
    return canvases


@dataclass(frozen=True)
class TrainingOrder:
    """Which images each step takes: a new permutation an epoch, epochs back to back.

    Attributes:
        indices: int64 [N], of the source.
        batch_size: Images a step, of all ranks.
        seed: What the permutation of each epoch is drawn from.
    """

    indices: NDArray[np.int64]
    batch_size: int
    seed: int

    def key(self, place: int) -> Key:
        """The image at a place in the whole sequence, and its epoch."""
        epoch, position = divmod(place, len(self.indices))
        order = _permutation(len(self.indices), self.seed, epoch)
        return int(self.indices[order[position]]), epoch

    def places(self, step: int) -> range:
        """This rank's places of a step: every W-th."""
        rank, world = distributed.rank(), distributed.world_size()
        return range(step * self.batch_size + rank, (step + 1) * self.batch_size, world)

    def batches(self, first: int, total: int) -> Iterator[list[Key]]:
        """This rank's keys of each step from `first` on."""
        for step in range(first, total):
            yield [self.key(place) for place in self.places(step)]


@functools.lru_cache(maxsize=2)
def _permutation(number: int, seed: int, epoch: int) -> NDArray[np.int64]:
    draws = numpy_generator(seed, "coco-detect", "order", epoch)
    return draws.permutation(number)

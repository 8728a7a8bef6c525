"""From image sets to batches of tensors: loader processes, and the transform of every evaluator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sercli.data.source import ImageSource
from sercli.errors import SerError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_T = TypeVar("_T")


def default_workers(ranks_here: int = 1) -> int:
    """Loader processes of a rank: the cores of its share but one, at most 12."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(0, min(12, (cores or 1) // max(1, ranks_here) - 1))


class _Reading(Dataset[Any]):
    """Hands errors over as items: torch would wrap their message in the worker's traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except SerError as error:
            return error


def load_batches(
    dataset: Dataset[_T], batches: Iterable[Sequence[Any]], *, workers: int, prefetch: int = 4
) -> Iterator[list[_T]]:
    """Read `batches` of keys with `workers` processes (0: in this one), in order.

    A batch is a list of what the dataset returns; collating is the receiver's. Each process reads
    up to `prefetch` batches ahead.
    """
    loader: DataLoader[Any] = DataLoader(
        _Reading(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # keys need not be ints
        num_workers=workers,
        collate_fn=_as_list,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=prefetch if workers else None,
    )
    for items in loader:
        for item in items:
            if isinstance(item, SerError):
                raise item
        yield items


def _as_list(items: list[_T]) -> list[_T]:
    return items


def _quiet_worker(_worker: int) -> None:
    """One thread a worker; Ctrl-C is the main process's to handle."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean) / std by channel; images float [B, 3, H, W] in 0…1."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize_and_crop(
    image: Image.Image, *, resize: int, crop: int, interpolation: str = "bicubic"
) -> Image.Image:
    """Resize of the shorter side to `resize` pixels, then the central `crop`×`crop`."""
    width, height = image.size
    scale = resize / min(width, height)
    size = (max(crop, round(width * scale)), max(crop, round(height * scale)))
    if size != image.size:
        image = image.resize(size, RESAMPLING[interpolation])
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def evaluation_resize(image_size: int) -> int:
    """The shorter side before the central crop: 256 for 224, in proportion for other sizes."""
    return round(image_size * 256 / 224)


class EvaluationImages(Dataset[Tensor]):
    """The evaluators' view of a set: resize, central crop, uint8 [3, S, S].

    An image that cannot be read is an error here: a number must not rest on replacements.
    """

    def __init__(self, source: ImageSource, image_size: int) -> None:
        self.source = source
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        image = self.source.load(index)
        resize = evaluation_resize(self.image_size)
        return image_to_tensor(resize_and_crop(image, resize=resize, crop=self.image_size))


def evaluation_batches(
    source: ImageSource,
    *,
    image_size: int,
    indices: Sequence[int],
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    workers: int | None = None,
) -> Iterator[Tensor]:
    """Normalised float batches [≤ batch_size, 3, S, S] of the images named, in order."""
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    dataset = EvaluationImages(source, image_size)
    count = default_workers() if workers is None else workers
    for images in load_batches(dataset, batches, workers=min(count, len(batches))):
        stacked = torch.stack(images).to(device, non_blocking=True)
        yield normalise(stacked.float() / 255, mean, std)

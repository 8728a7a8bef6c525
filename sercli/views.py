"""What the encoder sees of an image: batch partition, crops, colours and group elements.

A global batch of B images has positions 0…B−1. The last n₂ of them are b₂: both views come from
one base, each with its own colours and its own element of D4 × scale. The others are b₁: a crop of
its own for each view. Rank r of W holds the positions p with p mod W = r, so every rank has its
share of b₂, and nothing drawn depends on W:

    order of images    f(seed, epoch)
    crops and colours  f(seed, epoch, index)
    group elements     f(seed, step, position)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sercli import distributed, photometrics, randomness
from sercli.actions import GeometricAction, grid_of
from sercli.data.loading import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_to_tensor,
    normalise,
    resize_and_crop,
)
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import RunFailed, UserError
from sercli.recipe import Views as ViewsConfig

_MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class PairedViews:
    """What an add-on asks of b₂ (DESIGN of SER); an add-on without paired views asks nothing.

    Attributes:
        fraction: Share of the global batch that is b₂.
        share: "global" (the last n₂ of the global batch) or "per-rank" (rounded on each rank).
        base: "crop" (one random-resized crop) or "full" (the whole image, centre-cropped).
        elements: "independent", or "complementary" (the authors': view 2 takes the complements
            of view 1's half turns and mirrors, one quarter turn a view).
        scale: Range of the grid's area.
        aspect: Range of the grid's change of w/h.
        min_per_rank: Images of b₂ that every rank needs (negatives of its own rank: 2).
    """

    fraction: float
    share: str = "global"
    base: str = "crop"
    elements: str = "independent"
    scale: tuple[float, float] = (0.7, 1.3)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    min_per_rank: int = 0


@dataclass(frozen=True)
class Partition:
    """How a global batch splits into b₁ and b₂, and over ranks.

    Attributes:
        positions: This rank's global positions, b₁ first.
        standard_counts: Rows of b₁ on each rank.
        paired_counts: Rows of b₂ on each rank.
        paired_rows: This rank's rows within the global b₂, int64 [n₂ of this rank].
    """

    positions: tuple[int, ...]
    standard_counts: tuple[int, ...]
    paired_counts: tuple[int, ...]
    paired_rows: Tensor

    @property
    def num_standard(self) -> int:
        return self.standard_counts[distributed.rank()]

    @property
    def total_paired(self) -> int:
        return sum(self.paired_counts)


def partition(batch_size: int, paired: PairedViews | None) -> Partition:
    """Split a global batch.

    Raises:
        UserError: Fewer than two images in b₂ (there would be no negatives), or on a rank none.
    """
    world, rank = distributed.world_size(), distributed.rank()
    if batch_size < world:
        raise UserError(
            f"train.batch_size {batch_size} on {world} processes", "each needs an image"
        )
    mine = range(rank, batch_size, world)
    if paired is None:
        counts = distributed.rows_of_rank(batch_size)
        return Partition(tuple(mine), tuple(counts), (0,) * world, torch.zeros(0).long())
    if paired.share == "per-rank":
        each = distributed.rows_of_rank(batch_size)
        pairs = [round(paired.fraction * count) for count in each]
        rows = range(sum(pairs[:rank]), sum(pairs[: rank + 1]))
    else:
        first = batch_size - round(paired.fraction * batch_size)
        pairs = distributed.rows_of_rank(batch_size, first=first)
        each = distributed.rows_of_rank(batch_size)
        rows = range((rank - first) % world, batch_size - first, world)
    if sum(pairs) < 2:
        raise UserError(
            f"addon.fraction {paired.fraction} of train.batch_size {batch_size} "
            f"gives n₂ = {sum(pairs)}",
            "n₂ must be at least 2: an anchor's negatives are other images of b₂",
            f"use addon.fraction={math.ceil(200 / batch_size) / 100:g} or a larger batch",
        )
    if min(pairs) < paired.min_per_rank:
        raise UserError(
            f"n₂ = {sum(pairs)} on {world} processes",
            f"each needs {paired.min_per_rank} images of b₂, as its negatives are its own",
            "use addon.keys=gathered, a larger addon.fraction, or fewer processes",
        )
    standard = tuple(n - p for n, p in zip(each, pairs, strict=True))
    return Partition(tuple(mine), standard, tuple(pairs), torch.tensor(list(rows)).long())


# -- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticket:
    """One image to read: its index, the epoch (which seeds its crops), and whether it is in b₂."""

    index: int
    epoch: int
    paired: bool


@dataclass(frozen=True)
class Sample:
    """One image as read.

    Attributes:
        crops: uint8 [V, 3, S, S]; in b₂ one base, [1, 3, S, S].
        uniforms: [V, photometrics.NUM_UNIFORMS + 1]: for the colours, and the mirroring of b₁.
        boxes: [V, 4] the crops' left, top, width and height as shares of the image.
        index: Of the image.
        unreadable: Messages of images that could not be read and were replaced.
    """

    crops: Tensor
    uniforms: Tensor
    boxes: Tensor
    index: int
    unreadable: tuple[str, ...]


def batches(
    num_images: int, part: Partition, *, batch_size: int, seed: int, steps: range
) -> Iterator[list[Ticket]]:
    """This rank's tickets of each step; the last incomplete batch of an epoch is dropped."""
    per_epoch = num_images // batch_size
    order, of_epoch = np.zeros(0, dtype=np.int64), -1
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != of_epoch:
            order = randomness.numpy_generator(seed, "order", epoch).permutation(num_images)
            of_epoch = epoch
        indices = order[within * batch_size : (within + 1) * batch_size]
        yield [
            Ticket(int(indices[position]), epoch, row >= part.num_standard)
            for row, position in enumerate(part.positions)
        ]


class TrainingImages(Dataset[Sample]):
    """Reads and crops images in loader processes; colours and elements come later, in batches.

    Args:
        source: The images.
        config: Of the views.
        image_size: Side of a view, pixels.
        base: Of b₂: "crop" or "full".
        seed: Of the run.
        num_views: Views an image.
    """

    def __init__(
        self,
        source: ImageSource,
        config: ViewsConfig,
        *,
        image_size: int,
        base: str,
        seed: int,
        num_views: int = 2,
    ) -> None:
        self.source = source
        self.config = config
        self.image_size = image_size
        self.base = base
        self.seed = seed
        self.num_views = num_views
        names = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        self.resampling = names[config.interpolation]

    def __getitem__(self, ticket: Ticket) -> Sample:
        image, index, unreadable = self._load(ticket.index)
        draws = randomness.numpy_generator(self.seed, "views", ticket.epoch, ticket.index)
        uniforms = draws.random((self.num_views, photometrics.NUM_UNIFORMS + 1), dtype=np.float32)
        width, height = image.size
        if ticket.paired and self.base == "full":
            # The same framing as in evaluation, without its margin.
            base = resize_and_crop(image, resize=self.image_size, crop=self.image_size)
            crops, boxes = [base], [_central_square(width, height)]
        else:
            boxes = [
                random_crop(width, height, self.config, draws)
                for _ in range(1 if ticket.paired else self.num_views)
            ]
            size = (self.image_size, self.image_size)
            crops = [
                image.crop((x, y, x + w, y + h)).resize(size, self.resampling)
                for x, y, w, h in boxes
            ]
        scale = np.array([width, height, width, height], dtype=np.float32)
        return Sample(
            crops=torch.stack([image_to_tensor(crop) for crop in crops]),
            uniforms=torch.from_numpy(uniforms),
            boxes=torch.from_numpy(np.array(boxes, dtype=np.float32) / scale),
            index=index,
            unreadable=unreadable,
        )

    def _load(self, index: int) -> tuple[Image.Image, int, tuple[str, ...]]:
        """The image, or the next one that can be read, with what was wrong."""
        unreadable: list[str] = []
        for offset in range(_MAX_REPLACEMENTS):
            candidate = (index + offset) % len(self.source)
            try:
                return self.source.load(candidate), candidate, tuple(unreadable)
            except UnreadableImage as error:
                unreadable.append(str(error))
        raise RunFailed(f"{_MAX_REPLACEMENTS} images in a row cannot be read: {unreadable[0]}")


def random_crop(
    width: int, height: int, config: ViewsConfig, draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random-resized crop (left, top, width, height) in pixels, as torchvision draws it."""
    area = width * height
    log_low, log_high = (math.log(a) for a in config.crop_aspect)
    for _ in range(10):
        target = area * draws.uniform(*config.crop_area)
        aspect = math.exp(draws.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h
    low, high = config.crop_aspect
    ratio = min(max(width / height, low), high)
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


# -- On the device --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """The views of this rank's share of one global batch, normalised.

    Attributes:
        standard: b₁, a tensor [n₁, 3, S, S] for each view.
        paired: b₂, a tensor [n₂, 3, h·patch, w·patch] for each view (none without b₂).
        actions: The group elements of b₂, one action for each view.
        paired_counts: Rows of b₂ on each rank.
        standard_counts: Rows of b₁ on each rank.
        paired_rows: Rows of this rank within the b₂ of one process, int64 [n₂].
        generator_seed: Seeds whatever noise an objective or an add-on draws in this step.
    """

    standard: tuple[Tensor, ...]
    paired: tuple[Tensor, ...]
    actions: tuple[GeometricAction, ...]
    standard_counts: tuple[int, ...]
    paired_counts: tuple[int, ...]
    paired_rows: Tensor
    generator_seed: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of b₁ ∪ b₂ on each rank."""
        pairs = zip(self.standard_counts, self.paired_counts, strict=True)
        return tuple(standard + paired for standard, paired in pairs)


class ViewMaker:
    """Turns samples as read into views on the device.

    Args:
        config: Of the views.
        paired: What the add-on asks of b₂, or None.
        part: Of the global batch.
        image_size: Side of a view, pixels.
        patch_size: Side of a patch, pixels.
        seed: Of the run.
    """

    def __init__(
        self,
        config: ViewsConfig,
        *,
        paired: PairedViews | None,
        part: Partition,
        image_size: int,
        patch_size: int,
        seed: int,
    ) -> None:
        self.photometrics = (config.view1, config.view2)
        self.hflip_p = config.hflip_p
        self.paired = paired
        self.part = part
        self.patch_size = patch_size
        self.seed = seed
        self.grid = grid_of((image_size, image_size), patch_size)

    def actions(self, step: int) -> tuple[GeometricAction, ...]:
        """The group elements of this rank's b₂ in a step."""
        if self.paired is None:
            return ()
        drawn = draw_actions(self.paired, self.part.total_paired, self.grid, self.seed, step)
        return tuple(action.take(self.part.paired_rows) for action in drawn)

    def __call__(self, samples: Sequence[Sample], step: int, device: torch.device) -> Views:
        """Views of one step from this rank's samples (b₁ first)."""
        split = self.part.num_standard
        actions = self.actions(step)
        standard, paired = [], []
        for view, config in enumerate(self.photometrics):
            crops = torch.stack([s.crops[min(view, len(s.crops) - 1)] for s in samples])
            uniforms = torch.stack([s.uniforms[view] for s in samples])
            images = crops.to(device, non_blocking=True).float().div_(255)
            images = photometrics.apply(images, photometrics.draw(uniforms, config))
            images = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
            mirrored = (uniforms[:split, -1] < self.hflip_p).to(device).view(-1, 1, 1, 1)
            standard.append(torch.where(mirrored, images[:split].flip(-1), images[:split]))
            if actions:
                paired.append(actions[view].on_image(images[split:], patch=self.patch_size))
        return Views(
            tuple(standard),
            tuple(paired),
            actions,
            self.part.standard_counts,
            self.part.paired_counts,
            self.part.paired_rows,
            randomness.derive(self.seed, "step", step),
        )


def draw_actions(
    paired: PairedViews, total: int, grid: tuple[int, int], seed: int, step: int
) -> tuple[GeometricAction, GeometricAction]:
    """The elements of the whole b₂ of a step, for two views."""
    draws = randomness.generator(seed, "actions", step)
    first, second = (
        GeometricAction.sample(
            total, grid, generator=draws, scale=paired.scale, aspect=paired.aspect
        )
        for _ in range(2)
    )
    if paired.elements == "independent":
        return first, second
    turns = torch.randint(4, (2,), generator=draws).tolist()
    half = torch.randint(2, (total,), generator=draws)
    return (
        GeometricAction(first.hflip, turns[0] + 2 * half, first.grid),
        GeometricAction(~first.hflip, turns[1] + 2 * (1 - half), second.grid),
    )

"""What the encoder sees of an image: crops, colours and group elements, and a record of them.

Nothing drawn depends on the number of ranks or on what came before:

    order of images    f(seed, epoch)
    crops and colours  f(seed, epoch, index)
    group elements     f(seed, step, position)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sercli import photometrics, randomness
from sercli.actions import GeometricAction, Grid
from sercli.data.loading import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESAMPLING,
    Batch,
    RowReader,
    image_to_tensor,
    normalise,
)
from sercli.data.ring import Column, Row
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import RunFailed
from sercli.photometrics import PhotometricParameters
from sercli.recipe.schema import Views as ViewsConfig
from sercli.view_plan import PairedViews, Partition, ViewPlan, ViewSpec

_MAX_REPLACEMENTS = 20


# -- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticket:
    """One image to read.

    Attributes:
        index: Of the image.
        epoch: Seeds its crops and colours, with the index.
        paired: Whether it is in b₂.
        leader: The image whose crops and colours it shares; None: it has its own.
    """

    index: int
    epoch: int
    paired: bool
    leader: int | None = None


@dataclass(frozen=True)
class Samples:
    """This rank's share of a global batch as read, b₁ first.

    Attributes:
        crops: uint8 [B, 3, S, S] for each crop of the plan. A row of b₂ has the base that the
            views of this crop show.
        uniforms: float32 [B, crops, photometrics.NUM_UNIFORMS + 1]: for the colours, and the
            mirroring of b₁.
        boxes: float32 [B, crops, 4], left, top, width and height as shares of the image.
        turns: int64 [B, crops], quarter turns of b₁.
        indices: Of the images.
        unreadable: Messages of images that could not be read and were replaced.
    """

    crops: Sequence[Tensor]
    uniforms: Tensor
    boxes: Tensor
    turns: Tensor
    indices: tuple[int, ...]
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.uniforms)

    @classmethod
    def of(cls, batch: Batch[Note]) -> Samples:
        """From a loader; the crops are where it has them, the small tensors are copied."""
        columns = batch.columns
        crops = [columns[_crop_name(i)] for i in range(columns["uniforms"].shape[1])]
        return cls(
            crops,
            columns["uniforms"].clone(),
            columns["boxes"].clone(),
            columns["turns"].clone(),
            tuple(note.image for note in batch.notes),
            tuple(message for note in batch.notes for message in note.unreadable),
        )


class Note(NamedTuple):
    """What is said of one image: its index, and messages of those that it replaces."""

    image: int
    unreadable: tuple[str, ...]


def _crop_name(crop: int) -> str:
    return f"crop{crop}"


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
            Ticket(
                int(indices[position]),
                epoch,
                row >= part.num_standard,
                None if part.group == 1 else int(indices[position - position % part.group]),
            )
            for row, position in enumerate(part.positions)
        ]


class TrainingImages(RowReader[Ticket, Note]):
    """Reads and crops images in loader processes; colours and elements come later, in batches.

    Args:
        source: The images.
        config: Of the views.
        plan: Of the views.
        seed: Of the run.
    """

    def __init__(
        self, source: ImageSource, config: ViewsConfig, plan: ViewPlan, *, seed: int
    ) -> None:
        self.source = source
        self.config = config
        self.plan = plan
        self.seed = seed

    def layout(self) -> Mapping[str, Column]:
        crops = self.plan.crops(paired=False)
        return {
            **{
                _crop_name(i): Column((3, spec.size, spec.size), "uint8")
                for i, spec in enumerate(crops)
            },
            "uniforms": Column((len(crops), photometrics.NUM_UNIFORMS + 1), "float32"),
            "boxes": Column((len(crops), 4), "float32"),
            "turns": Column((len(crops),), "int64"),
        }

    def read(self, ticket: Ticket, row: Row) -> Note:
        image, index, unreadable = self._load(ticket.index)
        key = ticket.index if ticket.leader is None else ticket.leader
        draws = randomness.numpy_generator(self.seed, "views", ticket.epoch, key)
        crops = self.plan.crops(paired=False)
        shape = (len(crops), photometrics.NUM_UNIFORMS + 1)
        row["uniforms"][...] = draws.random(shape, dtype=np.float32)
        specs = self.plan.crops(paired=ticket.paired)
        boxes = [self._box(spec, image.size, ticket, draws) for spec in specs]
        pixels = [
            np.asarray(cut(image, box, spec.size, self.config.interpolation)).transpose(2, 0, 1)
            for box, spec in zip(boxes, specs, strict=True)
        ]
        scale = np.array([*image.size, *image.size], dtype=np.float32)
        for place, spec in enumerate(crops):
            shown = spec.base if ticket.paired else spec.crop
            row[_crop_name(place)][...] = pixels[shown]
            row["boxes"][place] = np.array(boxes[shown], dtype=np.float32) / scale
        row["turns"][...] = self._turns(ticket.epoch, key, len(crops))
        return Note(index, unreadable)

    def _box(
        self, spec: ViewSpec, size: tuple[int, int], ticket: Ticket, draws: np.random.Generator
    ) -> tuple[int, int, int, int]:
        paired = self.plan.paired if ticket.paired and spec.kind == "global" else None
        if spec.kind == "plain" or (paired is not None and paired.base == "full"):
            return _central_square(*size)
        aspect = self.config.crop_aspect
        if ticket.leader is None:
            return random_crop(*size, area=spec.area, aspect=aspect, draws=draws)
        return _shared_crop(*size, area=spec.area, aspect=aspect, draws=draws)

    def _turns(self, epoch: int, key: int, count: int) -> NDArray[np.int64]:
        if not self.config.rot90_p:
            return np.zeros(count, dtype=np.int64)
        draws = randomness.numpy_generator(self.seed, "turns", epoch, key)
        turned = draws.random(count) < self.config.rot90_p
        return turned * draws.integers(1, 4, count)

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


def cut(
    image: Image.Image, box: tuple[int, int, int, int], size: int, interpolation: str
) -> Image.Image:
    """The part (left, top, width, height) of an image, in pixels, resized to size × size."""
    x, y, w, h = box
    return image.crop((x, y, x + w, y + h)).resize((size, size), RESAMPLING[interpolation])


def random_crop(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    draws: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random-resized crop (left, top, width, height) in pixels, as torchvision draws it.

    Args:
        width, height: Of the image.
        area: Range of the share of the image's area.
        aspect: Range of width / height, log-uniform.
        draws: Source of randomness.
    """
    log_low, log_high = (math.log(a) for a in aspect)
    for _ in range(10):
        target = width * height * draws.uniform(*area)
        ratio = math.exp(draws.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h
    low, high = aspect
    ratio = min(max(width / height, low), high)
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


_UNIT = 1 << 16


def _shared_crop(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    draws: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A crop drawn on a unit square: images of any sizes get the same shares of their sides."""
    box = random_crop(_UNIT, _UNIT, area=area, aspect=aspect, draws=draws)
    x, y, w, h = (round(b * s / _UNIT) for b, s in zip(box, (width, height) * 2, strict=True))
    x, y = min(x, width - 1), min(y, height - 1)
    return x, y, min(max(1, w), width - x), min(max(1, h), height - y)


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


# -- On the device --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewParameters:
    """What made one view of this rank's images, exactly; on the CPU, rows of b₁ first.

    A view is the crop `box` of the image, resized, with `colours` applied, then mirrored
    left-right where `hflip`, turned counter-clockwise by `rot90` quarters, and (b₂) resized to
    the grid of its action. `replay` does it again.

    Attributes:
        box: float32 [B, 4], left, top, width and height as shares of the image's sides.
        hflip: bool [B].
        rot90: int64 [B].
        colours: Of the B images.
    """

    box: Tensor
    hflip: Tensor
    rot90: Tensor
    colours: PhotometricParameters


@dataclass(frozen=True)
class Views:
    """The views of this rank's share of one global batch, normalised.

    Attributes:
        standard: b₁, a tensor [n₁, 3, S, S] for each view.
        paired: b₂, a tensor [n₂, 3, h·patch, w·patch] for each view (none without b₂).
        actions: The group elements of b₂, one action for each view.
        pairs: Views of b₂ that show one base.
        parameters: What made the views, of b₁ ∪ b₂, for each view.
        positions: Global position of each row of b₁ ∪ b₂, int64 [B].
        paired_counts: Rows of b₂ on each rank.
        standard_counts: Rows of b₁ on each rank.
        paired_rows: Rows of this rank within the b₂ of one process, int64 [n₂].
        generator_seed: Seeds whatever noise an objective or an add-on draws in this step.
    """

    standard: tuple[Tensor, ...]
    paired: tuple[Tensor, ...]
    actions: tuple[GeometricAction, ...]
    pairs: tuple[tuple[int, int], ...]
    parameters: tuple[ViewParameters, ...]
    positions: Tensor
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
        plan: Of the views.
        part: Of the global batch.
        seed: Of the run.
    """

    def __init__(self, config: ViewsConfig, plan: ViewPlan, part: Partition, *, seed: int) -> None:
        self.hflip_p = config.hflip_p
        self.plan = plan
        self.part = part
        self.seed = seed

    def actions(self, step: int) -> tuple[GeometricAction, ...]:
        """The group elements of this rank's b₂ in a step, for each view."""
        paired = self.plan.paired
        if paired is None:
            return ()
        actions: list[GeometricAction] = []
        for pair, (view, _) in enumerate(self.plan.pairs):
            total, grid = self.part.total_paired, self.plan.grid(view)
            drawn = draw_actions(paired, total, grid, self.seed, step, pair=pair)
            actions += [action.take(self.part.paired_rows) for action in drawn]
        return tuple(actions)

    def __call__(self, samples: Samples, step: int, device: torch.device) -> Views:
        """Views of one step from this rank's samples."""
        split = self.part.num_standard
        actions = self.actions(step)
        standard, paired, parameters = [], [], []
        made: dict[int, Tensor] = {}  # views of one crop differ by a turn only
        for view, spec in enumerate(self.plan.specs):
            uniforms = samples.uniforms[:, spec.crop]
            colours = photometrics.draw(uniforms, spec.colours)
            if spec.crop not in made:
                crops = samples.crops[spec.crop].to(device, non_blocking=True)
                images = photometrics.apply(crops.float().div_(255), colours)
                made = {spec.crop: normalise(images, IMAGENET_MEAN, IMAGENET_STD)}
            images = made[spec.crop]
            mirrored = uniforms[:split, -1] < self.hflip_p
            element = self._element(spec, mirrored, samples.turns[:split, spec.crop], view)
            elements = [element]
            standard.append(element.on_image(images[:split], patch=self.plan.patch_size))
            if actions:
                elements.append(actions[view])
                paired.append(actions[view].on_image(images[split:], patch=self.plan.patch_size))
            parameters.append(
                ViewParameters(
                    samples.boxes[:, spec.crop],
                    torch.cat([e.hflip for e in elements]),
                    torch.cat([e.rot90 for e in elements]),
                    colours,
                )
            )
        return Views(
            tuple(standard),
            tuple(paired),
            actions,
            self.plan.pairs,
            tuple(parameters),
            torch.tensor(self.part.positions, dtype=torch.long),
            self.part.standard_counts,
            self.part.paired_counts,
            self.part.paired_rows,
            randomness.derive(self.seed, "step", step),
        )

    def _element(
        self, spec: ViewSpec, mirrored: Tensor, turns: Tensor, view: int
    ) -> GeometricAction:
        """Mirror and turn of the rows of b₁."""
        if spec.kind == "plain":
            return GeometricAction.identity(len(mirrored), self.plan.grid(view))
        if spec.kind == "turned":
            turns = torch.full((len(mirrored),), spec.turns)
        return GeometricAction(mirrored, turns, self.plan.grid(view))


def replay(
    image: Image.Image,
    parameters: ViewParameters,
    row: int,
    *,
    size: int,
    patch: int,
    interpolation: str = "bilinear",
    grid: Grid | None = None,
) -> Tensor:
    """Make a view again from its record.

    Args:
        image: As read, RGB.
        parameters: Of the view.
        row: Of the image.
        size: Side of the view before scaling, pixels.
        patch: Side of a patch, pixels.
        interpolation: Of the crop, `views.interpolation`.
        grid: Of the view's action, for b₂; None: no scaling.

    Returns:
        float32 [3, H, W], normalised.
    """
    sides = (image.width, image.height) * 2
    x, y, w, h = (round(float(b) * s) for b, s in zip(parameters.box[row], sides, strict=True))
    crop = image_to_tensor(cut(image, (x, y, w, h), size, interpolation))
    rows = slice(row, row + 1)
    pixels = photometrics.apply(crop[None].float().div_(255), parameters.colours.take(rows))
    pixels = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    grid = grid or (size // patch, size // patch)
    action = GeometricAction(parameters.hflip[rows], parameters.rot90[rows], grid)
    return action.on_image(pixels, patch=patch)[0]


def draw_actions(
    paired: PairedViews, total: int, grid: Grid, seed: int, step: int, *, pair: int = 0
) -> tuple[GeometricAction, GeometricAction]:
    """The elements of the whole b₂ of a step, for the two views of a pair."""
    draws = randomness.generator(seed, "actions", step, *([pair] if pair else []))
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

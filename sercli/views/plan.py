"""Which views there are of an image, what they are for, and how a global batch splits.

A global batch of B images has positions 0…B−1. The last n₂ of them are b₂: its views come in pairs
of one base each, with colours and an element of D4 × scale of their own. The others are b₁: a crop
of its own for each view. Rank r of W holds the positions p with ⌊p / group⌋ mod W = r (images of a
group share their augmentation; a group is one image unless an add-on asks otherwise), so every
rank has its share of b₂, and nothing drawn depends on W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sercli import distributed
from sercli.actions import Grid, grid_of
from sercli.errors import UserError
from sercli.recipe.schema import Photometrics
from sercli.recipe.schema import Views as ViewsConfig


@dataclass(frozen=True)
class PairedViews:
    """What an add-on asks of b₂; an add-on without paired views asks nothing.

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
class ViewRequest:
    """What an add-on declares of the views it works on.

    Attributes:
        paired: Its b₂, or None: then it works on all images.
        group: Images at consecutive positions that share crops, mirrors and colours.
        turned_views_count: Whether the turned views of 2+4-rotations also enter the invariance
            loss, beside the add-on.
    """

    paired: PairedViews | None = None
    group: int = 1
    turned_views_count: bool = False


@dataclass(frozen=True)
class ViewSpec:
    """One view of an image.

    Attributes:
        kind: "global" or "local" (random-resized crops), "plain" (the central square, nothing
            else) or "turned" (a small crop, turned by `turns` quarters).
        size: Side, pixels.
        area: Of the crop, share of the image's area.
        colours: What happens to its colours; None: nothing.
        crop: Which of the image's crops it shows in b₁.
        base: Which crop it shows in b₂, where the two views of a pair share one.
        turns: Quarter turns counter-clockwise, after everything else.
    """

    kind: Literal["global", "local", "plain", "turned"]
    size: int
    area: tuple[float, float]
    colours: Photometrics | None
    crop: int
    base: int = 0
    turns: int = 0


@dataclass(frozen=True)
class ViewPlan:
    """The views of every image of a run.

    Attributes:
        specs: The views; the first two are global.
        num_invariant: The first so many views enter the invariance loss of the method.
        patch_size: Side of a patch, pixels.
        request: What the add-on asked for.
    """

    specs: tuple[ViewSpec, ...]
    num_invariant: int
    patch_size: int
    request: ViewRequest

    @property
    def paired(self) -> PairedViews | None:
        return self.request.paired

    @property
    def num_views(self) -> int:
        return len(self.specs)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Views that show one base in b₂: (0, 1), and with small crops (2, 3), (4, 5)."""
        if self.paired is None:
            return ()
        return tuple((view, view + 1) for view in range(0, self.num_views, 2))

    def crops(self, *, paired: bool) -> tuple[ViewSpec, ...]:
        """The crops to cut from an image, each described by the first view that shows it."""
        first: dict[int, ViewSpec] = {}
        for spec in self.specs:
            first.setdefault(spec.base if paired else spec.crop, spec)
        return tuple(first[index] for index in sorted(first))

    def split(self, batch_size: int, *, world: int | None = None) -> Partition:
        """Split a global batch as the add-on asks; see `partition`."""
        return partition(batch_size, self.paired, group=self.request.group, world=world)

    def grid(self, view: int) -> Grid:
        """Patches of a view, unscaled."""
        size = self.specs[view].size
        return grid_of((size, size), self.patch_size)


def plan_views(
    config: ViewsConfig,
    *,
    image_size: int,
    patch_size: int,
    request: ViewRequest | None = None,
) -> ViewPlan:
    """Lay out the views of a setting.

    Args:
        config: The recipe's section: the setting, and the crops and colours of each view.
        image_size: Side of a global view, pixels.
        patch_size: Side of a patch, pixels.
        request: What the add-on asks for.

    Raises:
        UserError: The small views do not fit the patch grid.
    """
    request = request or ViewRequest()
    specs = [
        ViewSpec("global", image_size, config.crop_area, colours, crop)
        for crop, colours in enumerate((config.view1, config.view2))
    ]
    num_invariant = 2
    if config.setting == "3":
        specs.append(ViewSpec("plain", image_size, (1.0, 1.0), None, crop=2))
    if config.local is not None:
        area, colours = config.local.area, config.local.colours
        size = _local_size(config, image_size, patch_size)
        if config.setting == "2+4-crops":
            specs += [
                ViewSpec("local", size, area, colours, crop=2 + i, base=1 + i // 2)
                for i in range(4)
            ]
            num_invariant = 6
        else:
            specs += [
                ViewSpec("turned", size, area, colours, crop=2, turns=turns) for turns in range(4)
            ]
            num_invariant = 6 if request.turned_views_count else 2
    return ViewPlan(tuple(specs), num_invariant, patch_size, request)


def _local_size(config: ViewsConfig, image_size: int, patch_size: int) -> int:
    assert config.local is not None
    size = config.local.size
    if size is None:
        size = max(2, round(image_size * 3 / 7 / patch_size)) * patch_size
    if size % patch_size or not 2 * patch_size <= size <= image_size:
        raise UserError(
            f"views.local.size {size} with patches of {patch_size} and images of {image_size}",
            "it must be a multiple of the patch, at least two patches (a grid that can be turned) "
            "and at most the image",
            f"e.g. views.local.size="
            f"{min(max(2, size // patch_size), image_size // patch_size) * patch_size}",
        )
    return size


# -- The global batch -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Partition:
    """How a global batch splits into b₁ and b₂, and over ranks.

    Attributes:
        positions: This rank's global positions, b₁ first.
        standard_counts: Rows of b₁ on each rank.
        paired_counts: Rows of b₂ on each rank.
        paired_rows: This rank's rows within the global b₂, int64 [n₂ of this rank].
        group: Images at consecutive positions that share their augmentation.
    """

    positions: tuple[int, ...]
    standard_counts: tuple[int, ...]
    paired_counts: tuple[int, ...]
    paired_rows: Tensor
    group: int = 1

    @property
    def num_standard(self) -> int:
        return self.standard_counts[distributed.rank()]

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of b₁ ∪ b₂ on each rank."""
        pairs = zip(self.standard_counts, self.paired_counts, strict=True)
        return tuple(standard + paired for standard, paired in pairs)

    @property
    def total_paired(self) -> int:
        return sum(self.paired_counts)


def partition(
    batch_size: int, paired: PairedViews | None, *, group: int = 1, world: int | None = None
) -> Partition:
    """Split a global batch over the processes there are (or over `world`, before they start).

    Raises:
        UserError: Fewer than two images in b₂ (there would be no negatives), on a rank none, or
            groups that are not full.
    """
    world, rank = world or distributed.world_size(), distributed.rank()
    if batch_size % group:
        raise UserError(
            f"train.batch_size {batch_size}",
            f"the add-on works on groups of {group} images that share their augmentation",
            f"use train.batch_size={(batch_size // group + 1) * group}",
        )
    if batch_size // group < world:
        raise UserError(
            f"train.batch_size {batch_size} on {world} processes",
            "each needs an image" if group == 1 else f"each needs {group} images",
            f"use train.batch_size={group * world} or more, or fewer processes",
        )
    if paired is None:
        mine = [p for p in range(batch_size) if p // group % world == rank]
        counts = tuple(
            group * n for n in distributed.rows_of_rank(batch_size // group, world=world)
        )
        return Partition(tuple(mine), counts, (0,) * world, torch.zeros(0).long(), group)
    assert group == 1, "no add-on asks for pairs of views and groups of images"
    each = distributed.rows_of_rank(batch_size, world=world)
    if paired.share == "per-rank":
        pairs = [round(paired.fraction * count) for count in each]
        rows = range(sum(pairs[:rank]), sum(pairs[: rank + 1]))
    else:
        first = batch_size - round(paired.fraction * batch_size)
        pairs = distributed.rows_of_rank(batch_size, first=first, world=world)
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
    positions = tuple(range(rank, batch_size, world))
    return Partition(positions, standard, tuple(pairs), torch.tensor(list(rows)).long())

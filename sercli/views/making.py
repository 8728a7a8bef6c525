"""Views on the device: colours and group elements, and a record of what made them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sercli import randomness
from sercli.actions import GeometricAction, Grid
from sercli.data.crops import cut
from sercli.data.loading import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_to_tensor,
    normalise,
)
from sercli.recipe.schema import Views as ViewsConfig
from sercli.views import colours as photometrics
from sercli.views.colours import PhotometricParameters
from sercli.views.plan import PairedViews, Partition, ViewPlan, ViewSpec
from sercli.views.reading import Samples


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
        plan: Which views these are.
        part: How the global batch splits into b₁ and b₂, and over ranks.
        standard: b₁, a tensor [n₁, 3, S, S] for each view.
        paired: b₂, a tensor [n₂, 3, h·patch, w·patch] for each view (none without b₂).
        actions: The group elements of b₂, one action for each view.
        parameters: What made the views, of b₁ ∪ b₂, for each view.
        generator_seed: Seeds whatever noise an objective or an add-on draws in this step.
    """

    plan: ViewPlan
    part: Partition
    standard: tuple[Tensor, ...]
    paired: tuple[Tensor, ...]
    actions: tuple[GeometricAction, ...]
    parameters: tuple[ViewParameters, ...]
    generator_seed: int

    @property
    def addon_counts(self) -> tuple[int, ...]:
        """Rows on each rank of the images that the add-on works on: b₂ if it asked for it."""
        return self.part.counts if self.plan.paired is None else self.part.paired_counts


class ViewMaker:
    """Turns samples as read into views on the device.

    Args:
        config: The recipe's section: how often b₁ is mirrored.
        plan: Which views there are.
        part: Which rows of the global batch this rank holds, and which of them are b₂.
        seed: What the elements of b₂ are drawn from, with the step.
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
                planes = crops.to(torch.float32, memory_format=torch.contiguous_format)
                images = photometrics.apply(planes.div_(255), colours)
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
            self.plan,
            self.part,
            standard=tuple(standard),
            paired=tuple(paired),
            actions=actions,
            parameters=tuple(parameters),
            generator_seed=randomness.derive(self.seed, "step", step),
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
        image: The image as read from its source, RGB.
        parameters: The record of the view.
        row: Which of its images.
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

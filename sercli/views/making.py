"""Views on the device: colours and group elements, and a record of what made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from PIL import Image
from torch import Tensor

from sercli import randomness
from sercli.actions import GeometricAction, Grid
from sercli.data.crops import cut
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, image_to_tensor
from sercli.recipe.schema import Views as ViewsConfig
from sercli.transfer import send_all
from sercli.views import colours as photometrics
from sercli.views.colours import PhotometricParameters
from sercli.views.passes import EAGER, Passes
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
class ViewRecord:
    """What is drawn for this rank's share of one global batch, before there is a pixel.

    Attributes:
        plan: Which views these are.
        part: How the global batch splits into b₁ and b₂, and over ranks.
        actions: The group elements of b₂, one action for each view.
        parameters: What makes the views, of b₁ ∪ b₂, for each view.
        generator_seed: Seeds whatever noise an objective or an add-on draws in this step.
    """

    plan: ViewPlan
    part: Partition
    actions: tuple[GeometricAction, ...]
    parameters: tuple[ViewParameters, ...]
    generator_seed: int

    @property
    def addon_counts(self) -> tuple[int, ...]:
        """Rows on each rank of the images that the add-on works on: b₂ if it asked for it."""
        return self.part.counts if self.plan.paired is None else self.part.paired_counts


@dataclass(frozen=True)
class Views(ViewRecord):
    """The views of this rank's share of one global batch, normalised.

    Attributes:
        standard: b₁, a tensor [n₁, 3, S, S] for each view.
        paired: b₂, a tensor [n₂, 3, h·patch, w·patch] for each view (none without b₂).
        sent: What else was prepared of this step, on the device, by name (see `ViewMaker`).
    """

    standard: tuple[Tensor, ...]
    paired: tuple[Tensor, ...]
    sent: Mapping[str, Tensor] = field(default_factory=dict)


Prepare = Callable[[ViewRecord], Mapping[str, Tensor]]


class ViewMaker:
    """Turns samples as read into views on the device.

    All that is drawn for a step goes there in one block of page-locked memory, and views of one
    size are made together.

    Args:
        config: The recipe's section: how often b₁ is mirrored.
        plan: Which views there are.
        part: Which rows of the global batch this rank holds, and which of them are b₂.
        seed: What the elements of b₂ are drawn from, with the step.
        mean, std: What views are normalised by, RGB in 0…1.
        prepare: Makes what else of a step is to travel with the views: tensors on the CPU, by
            name. They come out as `Views.sent`.

    Attributes:
        passes: What runs over pixels, eager unless it is replaced.
    """

    def __init__(
        self,
        config: ViewsConfig,
        plan: ViewPlan,
        part: Partition,
        *,
        seed: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        prepare: Prepare = lambda _record: {},
    ) -> None:
        self.hflip_p = config.hflip_p
        self.plan = plan
        self.part = part
        self.seed = seed
        self.mean, self.std = mean, std
        self.prepare = prepare
        self.passes = EAGER

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
        standard = self._elements(samples)
        actions = self.actions(step)
        record = ViewRecord(
            self.plan,
            self.part,
            actions,
            self._parameters(samples, standard, actions),
            randomness.derive(self.seed, "step", step),
        )
        sizes = [
            _OfOneSize.of(record, views, standard, device) for views in _views_by_size(self.plan)
        ]
        parcels: dict[str, Mapping[str, Tensor]] = {"": self.prepare(record)}
        for view, action in enumerate(actions):
            parcels[f"action {view}"] = action.to_send()
        for index, one in enumerate(sizes):
            parcels[f"colours {index}"] = one.work.tensors
            parcels[f"elements {index}"] = one.elements.to_send()
        parcels = send_all(parcels, device)
        for view, action in enumerate(actions):
            action.sent(parcels[f"action {view}"], device)
        made: dict[int, tuple[Tensor, ...]] = {}
        for index, one in enumerate(sizes):
            one.elements.sent(parcels[f"elements {index}"], device)
            sent = parcels[f"colours {index}"]
            made |= one.make(
                samples, record, sent, self.passes, device, mean=self.mean, std=self.std
            )
        views = [made[view] for view in range(self.plan.num_views)]
        return Views(
            **{f.name: getattr(record, f.name) for f in fields(record)},
            standard=tuple(view[0] for view in views),
            paired=tuple(view[1] for view in views) if actions else (),
            sent=parcels[""],
        )

    def _elements(self, samples: Samples) -> list[GeometricAction]:
        """Mirrors and turns of the rows of b₁, for each view."""
        split = self.part.num_standard
        return [
            self._element(
                spec,
                samples.uniforms[:split, spec.crop, -1] < self.hflip_p,
                samples.turns[:split, spec.crop],
                view,
            )
            for view, spec in enumerate(self.plan.specs)
        ]

    def _parameters(
        self,
        samples: Samples,
        standard: Sequence[GeometricAction],
        actions: Sequence[GeometricAction],
    ) -> tuple[ViewParameters, ...]:
        """The record of each view."""
        parameters = []
        for view, spec in enumerate(self.plan.specs):
            elements = [standard[view], *actions[view : view + 1]]
            parameters.append(
                ViewParameters(
                    samples.boxes[:, spec.crop],
                    torch.cat([e.hflip for e in elements]),
                    torch.cat([e.rot90 for e in elements]),
                    photometrics.draw(samples.uniforms[:, spec.crop], spec.colours),
                )
            )
        return tuple(parameters)

    def _element(
        self, spec: ViewSpec, mirrored: Tensor, turns: Tensor, view: int
    ) -> GeometricAction:
        """Mirror and turn of the rows of b₁."""
        if spec.kind == "plain":
            return GeometricAction.identity(len(mirrored), self.plan.grid(view))
        if spec.kind == "turned":
            turns = torch.full((len(mirrored),), spec.turns)
        return GeometricAction(mirrored, turns, self.plan.grid(view))


def _views_by_size(plan: ViewPlan) -> list[list[int]]:
    """Which views have one size, for each size."""
    found: dict[int, list[int]] = {}
    for view, spec in enumerate(plan.specs):
        found.setdefault(spec.size, []).append(view)
    return list(found.values())


@dataclass(frozen=True)
class _OfOneSize:
    """Views that are made together.

    Pixels are coloured once a crop, b₁ of all crops before b₂ of all crops; views of one crop
    differ by a turn only.

    Attributes:
        views: Which these are.
        crops: Their crops, each once.
        work: What is done to the colours.
        elements: Of the rows of b₁ of all these views, one view after the other.
    """

    views: Sequence[int]
    crops: Sequence[int]
    work: photometrics.Work
    elements: GeometricAction

    @classmethod
    def of(
        cls,
        record: ViewRecord,
        views: Sequence[int],
        standard: Sequence[GeometricAction],
        device: torch.device,
    ) -> _OfOneSize:
        split, specs = record.part.num_standard, record.plan.specs
        first: dict[int, int] = {}
        for view in views:
            first.setdefault(specs[view].crop, view)
        colours = [record.parameters[view].colours for view in first.values()]
        rows = [c.take(slice(0, split)) for c in colours]
        rows += [c.take(slice(split, None)) for c in colours]
        side = specs[views[0]].size
        work = photometrics.plan_work(
            PhotometricParameters.join(rows), size=(side, side), device=device
        )
        own = [standard[view] for view in views]
        elements = GeometricAction(
            torch.cat([e.hflip for e in own]), torch.cat([e.rot90 for e in own]), own[0].grid
        )
        return cls(views, tuple(first), work, elements)

    def make(
        self,
        samples: Samples,
        record: ViewRecord,
        sent: Mapping[str, Tensor],
        passes: Passes,
        device: torch.device,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> dict[int, tuple[Tensor, ...]]:
        """b₁, and b₂ where there is one, of each view."""
        split, patch = record.part.num_standard, record.plan.patch_size
        crops = [samples.crops[crop].to(device, non_blocking=True) for crop in self.crops]
        pixels = torch.cat([crop[:split] for crop in crops] + [crop[split:] for crop in crops])
        images = photometrics.carry_out(self.work, pixels, sent, mean=mean, std=std, by=passes)
        cut_at = split * len(crops)
        standard = images[:cut_at]
        place = [self.crops.index(record.plan.specs[view].crop) for view in self.views]
        if len(place) > len(crops):
            standard = torch.cat([standard[split * at : split * (at + 1)] for at in place])
        moved = self.elements.on_image(standard, patch=patch).unflatten(0, (len(place), split))
        made: dict[int, tuple[Tensor, ...]] = {}
        for index, view in enumerate(self.views):
            made[view] = (moved[index],)
            if record.actions:
                bases = images[cut_at:].unflatten(0, (len(crops), len(crops[0]) - split))
                action = record.actions[view]
                made[view] += (action.on_image(bases[place[index]], patch=patch),)
        return made


def replay(
    image: Image.Image,
    parameters: ViewParameters,
    row: int,
    *,
    size: int,
    patch: int,
    interpolation: str = "bilinear",
    grid: Grid | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
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
        mean, std: What it was normalised by.

    Returns:
        float32 [3, H, W], normalised.
    """
    sides = (image.width, image.height) * 2
    x, y, w, h = (round(float(b) * s) for b, s in zip(parameters.box[row], sides, strict=True))
    crop = image_to_tensor(cut(image, (x, y, w, h), size, interpolation))
    rows = slice(row, row + 1)
    pixels = photometrics.apply(crop[None], parameters.colours.take(rows), mean=mean, std=std)
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

"""`ser bench augment`: two views of an image from its crops, against what other projects use."""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from sercli.benchmarks.measure import synchronise
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.table import Column, Table, rows_of
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.families import resolve
from sercli.recipe.schema import Photometrics, Views
from sercli.statistics import Ratio, paired_ratio
from sercli.views import colours as photometrics
from sercli.views.making import ViewMaker
from sercli.views.plan import partition, plan_views
from sercli.views.reading import Samples

OURS = "ser"


@dataclass(frozen=True)
class AugmentRow:
    """One way to make the views.

    Attributes:
        variant: Whose operations, and on what.
        seconds: Of an image, both views; median over rounds. On a CPU of one core's time.
        speed: How many times as long as ours they take in the same round.
        difference: Largest difference of ours to it with the same parameters, values in 0…1; None
            where it draws its own.
    """

    variant: str
    seconds: float
    speed: Ratio
    difference: float | None

    @property
    def images_per_s(self) -> float:
        return 1 / self.seconds


@dataclass(frozen=True)
class Subject:
    """What is augmented.

    Attributes:
        name: Of the recipe whose colours these are.
        config: Its views, of which the two global ones are made.
        samples: Crops of noise as a loader hands them over, with what colours are drawn from.
        size: Side of a crop, pixels.
        patch: Side of a patch.
    """

    name: str
    config: Views
    samples: Samples
    size: int
    patch: int

    @property
    def colours(self) -> list[Photometrics]:
        return [self.config.view1, self.config.view2]

    @property
    def drawn(self) -> list[photometrics.PhotometricParameters]:
        """What is done to each crop."""
        uniforms = self.samples.uniforms.unbind(1)
        return [photometrics.draw(u, c) for u, c in zip(uniforms, self.colours, strict=True)]

    @property
    def mirrored(self) -> list[list[bool]]:
        flips = self.samples.uniforms[:, :, -1] < self.config.hflip_p
        return [list(map(bool, view)) for view in flips.T.tolist()]


def subject(recipe: str, images: int) -> Subject:
    """Noise of the size of a recipe's crops.

    Raises:
        UserError: No such recipe.
    """
    resolved = resolve(recipe, (), {}).recipe
    size, patch = resolved.data.image_size, resolved.model.patch_size
    config = resolved.views.model_copy(update={"setting": "2", "local": None, "rot90_p": 0.0})
    draws = torch.Generator().manual_seed(0)
    shape = (images, 3, size, size)
    samples = Samples(
        crops=[torch.randint(256, shape, generator=draws, dtype=torch.uint8) for _ in range(2)],
        uniforms=torch.rand(images, 2, photometrics.NUM_UNIFORMS + 1, generator=draws),
        boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(images, 2, 1),
        turns=torch.zeros(images, 2, dtype=torch.long),
        indices=tuple(range(images)),
    )
    return Subject(recipe, config, samples, size, patch)


def run(subject: Subject, *, machine: Machine, rounds: int, tell: Tell) -> list[AugmentRow]:
    """Time the ways in turn, each over all images a round.

    kornia is left out where it is not installed. What works on one image at a time stays on the
    CPU, whatever the device of the others.
    """
    ways: dict[str, tuple[Callable[[], object], torch.device]] = {
        OURS: (_ours(subject, machine.device), machine.device),
        "torchvision v2, an image at a time": (_one_by_one(subject, _tensor), torch.device("cpu")),
        "Pillow, an image at a time": (_one_by_one(subject, _picture), torch.device("cpu")),
    }
    if importlib.util.find_spec("kornia") is not None:
        ways["kornia, a batch"] = (_kornia(subject, machine.device), machine.device)
    times = interleaved(
        [_timed(way, device, len(subject.samples)) for way, device in ways.values()],
        rounds=rounds,
        report=tell,
    )
    differences = {"torchvision v2, an image at a time": largest_difference(subject, machine)}
    return [
        AugmentRow(name, statistics.median(own), paired_ratio(own, times[0]), differences.get(name))
        for name, own in zip(ways, times, strict=True)
    ]


def _timed(way: Callable[[], object], device: torch.device, count: int) -> Callable[[], float]:
    # On a CPU the process's own time: what others do meanwhile is not in it.
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def call() -> float:
        synchronise(device)
        start = clock()
        way()
        synchronise(device)
        return (clock() - start) / count

    return call


def tabled(rows: Sequence[AugmentRow], *, subject: Subject, machine: Machine) -> Table:
    """The rows as a table."""
    columns = (
        Column("variant", "operations"),
        Column("seconds", "ms an image", "s", ".2f", per=1e-3),
        Column("images_per_s", "images/s a core", "1/s", ",.0f"),
        Column("speed", "time/ser", form=".2f"),
        Column("difference", "largest difference", form=".1e"),
    )
    notes = [
        "an image: colours, mirror and normalisation of both its views, from uint8 crops; cutting "
        "the crops is left out of all",
        f"time/ser: median over rounds ({rows[0].speed.rounds}), each way once a round; the largest"
        " difference is of ours with the same parameters, values in 0…1",
    ]
    if not any("kornia" in row.variant for row in rows):
        notes.append("kornia is not installed (pip install kornia)")
    title = (
        f"Two views of {subject.size} px of {subject.name}: {len(subject.samples)} images, "
        f"{machine.title}"
    )
    return Table("augment", title, columns, rows_of(columns, rows), notes)


# -- The ways -------------------------------------------------------------------------------------


def _ours(subject: Subject, device: torch.device) -> Callable[[], object]:
    plan = plan_views(subject.config, image_size=subject.size, patch_size=subject.patch)
    part = partition(len(subject.samples), None, world=1)
    make = ViewMaker(subject.config, plan, part, seed=0)
    samples = subject.samples
    if device.type == "cuda":  # a loader's slots are page-locked
        samples = replace(samples, crops=[crop.pin_memory() for crop in samples.crops])
    return lambda: make(samples, 0, device)


def _one_by_one(subject: Subject, kind: Callable[[Tensor], Any]) -> Callable[[], object]:
    """torchvision's functions on tensors or on Pillow's images, with our parameters."""
    from torchvision.transforms.v2 import functional as tv

    pictures = [[kind(one) for one in crops] for crops in subject.samples.crops]

    def make(image: Any, view: int, row: int, drawn: Any) -> Tensor:
        image = image if isinstance(image, Image.Image) else tv.to_dtype(image, scale=True)
        image = changed(image, drawn[view], row)
        if subject.mirrored[view][row]:
            image = tv.horizontal_flip(image)
        if isinstance(image, Image.Image):
            image = tv.to_dtype(tv.pil_to_tensor(image), scale=True)
        done: Tensor = tv.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))
        return done

    def way() -> object:
        drawn = subject.drawn
        return [
            [make(image, view, row, drawn) for row, image in enumerate(images)]
            for view, images in enumerate(pictures)
        ]

    return way


def _tensor(crop: Tensor) -> Tensor:
    return crop


def _picture(crop: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()))


def changed(image: Any, drawn: photometrics.PhotometricParameters, row: int) -> Any:
    """The colours of a tensor in 0…1 or of Pillow's image changed by torchvision's functions."""
    from torchvision.transforms.v2 import functional as tv

    jitter = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    if drawn.jitter[row]:
        factors = drawn.factors[row].tolist()
        for which in drawn.order[row].tolist():
            image = jitter[which](image, factors[which])
    if drawn.grey[row]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    sigma = float(drawn.blur_sigma[row])
    pillow = isinstance(image, Image.Image)
    if sigma > 0:
        if pillow:  # as moco-v3 does
            image = image.filter(ImageFilter.GaussianBlur(radius=sigma))
        else:
            side = 2 * math.ceil(3 * sigma) + 1
            image = tv.gaussian_blur(image, [side, side], [sigma, sigma])
    if drawn.solarise[row]:
        image = tv.solarize(image, 128 if pillow else 0.5)
    return image


def largest_difference(subject: Subject, machine: Machine) -> float:
    """Of our colours to torchvision's, with the same parameters."""
    largest = 0.0
    for crops, drawn in zip(subject.samples.crops, subject.drawn, strict=True):
        images = crops.float().div_(255)
        ours = photometrics.apply(images.to(machine.device), drawn).cpu()
        for row, image in enumerate(images):
            theirs = changed(image, drawn, row)
            largest = max(largest, float((ours[row] - theirs).abs().max()))
    return largest


def _kornia(subject: Subject, device: torch.device) -> Callable[[], object]:
    """kornia's augmentations of a batch, which draw their own parameters for each image."""
    k = importlib.import_module("kornia.augmentation")
    views = []
    for c in subject.colours:
        side = 2 * math.ceil(3 * c.blur_sigma[1]) + 1
        steps = [
            k.ColorJitter(*c.jitter, p=c.jitter_p),
            k.RandomGrayscale(p=c.grey_p),
            k.RandomGaussianBlur((side, side), tuple(c.blur_sigma), p=c.blur_p),
            k.RandomSolarize(0.0, 0.0, p=c.solarise_p),
            k.RandomHorizontalFlip(p=subject.config.hflip_p),
            k.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        ]
        views.append(nn.Sequential(*steps).to(device))

    def way() -> object:
        with torch.no_grad():
            return [
                view(crops.to(device, non_blocking=True).float().div_(255))
                for view, crops in zip(views, subject.samples.crops, strict=True)
            ]

    return way

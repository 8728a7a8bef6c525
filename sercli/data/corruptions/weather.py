"""Snow, frost, fog and spatter of ImageNet-C. Each makes levels [S, S, 3] of its task."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sercli.data.corruptions.pixels import (
    PUBLISHED_SIDE,
    Levels,
    Task,
    box_blur,
    canny_edges,
    clipped_zoom,
    correlate_3x3,
    distance_to,
    equalised,
    gaussian_blur,
    motion_blur,
    plasma,
    power_noise,
)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def snow(task: Task) -> Levels:
    """Flakes are noise above a threshold, enlarged and blown; the picture is whitened."""
    # mean and deviation of the noise, its zoom, threshold, the trail's radius and sigma, and how
    # much of the picture is left as it is
    mean, deviation, zoom, threshold, radius, sigma, kept = task.pick(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )
    flakes = draw_flakes(task, mean=mean, deviation=deviation, zoom=zoom, threshold=threshold)
    blown = motion_blur(
        flakes,
        radius=max(1, round(radius * task.scale)),
        sigma=sigma * task.scale,
        degrees=task.random.uniform(-135, -45),
    )
    return snowed_in(task.levels, blown, kept=kept)


def draw_flakes(
    task: Task, *, mean: float, deviation: float, zoom: float, threshold: float
) -> Levels:
    """[S, S]: noise, enlarged, and black below a threshold (in 0…1)."""
    noise = task.random.normal(mean, deviation, (task.side, task.side)).astype(np.float32)
    flakes = clipped_zoom(noise, max(1.0, zoom * task.scale))
    flakes[flakes < threshold] = 0
    layer: Levels = np.floor(np.clip(flakes, 0, 1) * 255)
    return layer


def snowed_in(levels: Levels, blown: Levels, *, kept: float) -> Levels:
    """The picture, all but a share of it whitened, under a layer of snow and its half turn."""
    grey = (levels * _LUMA).sum(axis=2, keepdims=True, dtype=np.float32)
    white = np.maximum(levels, grey * 1.5 + 127.5)
    fallen: Levels = kept * levels + (1 - kept) * white + (blown + np.rot90(blown, 2))[..., None]
    return fallen


def frost(task: Task) -> Levels:
    """Crystals over the picture. The published set overlays crops of five photographs.

    Those are no part of this package: crystals are drawn instead, with tones, contrast and
    fineness in the range of the photographs'.
    """
    picture, ice = task.pick((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
    levels = task.levels
    return picture * levels + ice * _crystals(task.side, task.random)


def _crystals(side: int, random: np.random.Generator) -> Levels:
    """[side, side, 3]: bluish ice with bright, branching ridges."""
    tone, contrast = random.random(), random.uniform(15, 36)
    dark, light = np.array([80, 131, 150]), np.array([198, 202, 211])
    mean = dark + tone * (light - dark)
    # Ridges of smooth noise are lines that branch; finer ones grow on the coarse ones.
    coarse = np.exp(-5 * np.abs(power_noise(side, 1.8, random)))
    fine = np.exp(-3 * np.abs(power_noise(side, 1.2, random)))
    ice = coarse + fine * (0.4 + coarse) + 0.25 * power_noise(side, 0.9, random)
    ice = (ice - ice.mean()) / ice.std()
    crystals: Levels = (mean + contrast * ice[..., None]).astype(np.float32)
    return np.clip(crystals, 0, 255)


def fog(task: Task) -> Levels:
    """A cloudy field added to the picture, and the sum dimmed to the picture's maximum."""
    amount, decay = task.pick((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    levels = task.levels
    side = 1 << (task.side - 1).bit_length()
    cloud = plasma(side, decay, task.random)[: task.side, : task.side]
    most = float(levels.max())
    hazy: Levels = (levels + 255 * amount * cloud[..., None]) * np.float32(
        most / (most + 255 * amount)
    )
    return hazy


def spatter(task: Task) -> Levels:
    """Drops of water (severity 1…3) or spots of mud (4 and 5) where smooth noise is high.

    They are drawn at 224 pixels and resized: on a small picture they would be smaller than pixels.
    """
    # mean and deviation of the noise, its sigma, the threshold, and the strength of the water or
    # the sigma of the mud's edge
    mean, deviation, sigma, threshold, last = task.pick(
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )
    levels = task.levels
    noise = task.random.normal(mean, deviation, (PUBLISHED_SIDE, PUBLISHED_SIDE))
    liquid = gaussian_blur(noise.astype(np.float32), sigma)
    if task.severity <= 3:
        drops = _drops(liquid, threshold)
        most = float(drops.max())
        water = _resized(drops * (last / most) if most else drops, task.side)
        return levels + water[..., None] * np.array([175, 238, 238], np.float32)
    mud = gaussian_blur((liquid > threshold).astype(np.float32), last)
    mud[mud < 0.8] = 0
    spots = _resized(mud, task.side)
    return levels + spots[..., None] * (np.array([63, 42, 20], np.float32) - levels)


def _resized(layer: Levels, side: int) -> Levels:
    if len(layer) == side:
        return layer
    small = Image.fromarray(layer).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32)


def _drops(liquid: Levels, threshold: float) -> Levels:
    """Brightness of water, in no unit: a relief by the distance to the drops' edges, lit aslant."""
    depth = np.where(liquid >= threshold, liquid * 255, 0).astype(np.uint8)
    rims = canny_edges(depth, 50, 150)
    relief = equalised(box_blur(distance_to(rims, 20)).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float64)
    lit = np.clip(correlate_3x3(relief.astype(np.float32), light), 0, 255)
    return depth.astype(np.float32) * np.rint(box_blur(lit))

"""Sequences in the manner of ImageNet-P: a picture that changes a little from frame to frame.

They serve the embedded world. Steps are those of the authors' program (github.com/hendrycks/
robustness, `make_imagenet_p.py`) at the first difficulty, in proportion to the side of the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.corruptions.catalogue import brightened
from sercli.data.corruptions.pixels import Levels, Task, motion_blur
from sercli.data.corruptions.weather import draw_flakes, snowed_in

_STEPS = 31


def perturb(
    image: Image.Image, perturbation: str, random: np.random.Generator, *, side: int
) -> NDArray[np.uint8]:
    """Frames of one sequence.

    Args:
        image: RGB and square, larger than `side` by what moves into view: 256/224 of it.
        perturbation: One of ImageNet-P's ten.
        random: Where all draws of the sequence come from; equal states give equal frames.
        side: Height and width of a frame, in pixels.

    Returns:
        uint8 [T, side, side, 3]; T is 31, or 41 for "translate".
    """
    frames = _PERTURBATIONS[perturbation](image, Task(_warped(image, np.eye(3), side), 1, random))
    return np.stack([np.clip(levels, 0, 255).astype(np.uint8) for levels in frames])


def _gaussian_noise(_image: Image.Image, task: Task) -> Iterator[Levels]:
    yield task.levels
    for _ in range(_STEPS - 1):
        noise = task.random.standard_normal((task.side, task.side, 3), np.float32)
        yield task.levels + np.float32(0.03 * 255) * noise


def _shot_noise(_image: Image.Image, task: Task) -> Iterator[Levels]:
    photons = 300
    yield task.levels
    for _ in range(_STEPS - 1):
        counts = task.random.poisson(task.levels * (photons / 255))
        yield (counts * (255 / photons)).astype(np.float32)


def _motion_blur(_image: Image.Image, task: Task) -> Iterator[Levels]:
    for step in range(_STEPS):
        yield _blown(task.levels, task, radius=10, sigma=3, degrees=4 * (step - 30))


def _zoom_blur(image: Image.Image, task: Task) -> Iterator[Levels]:
    total = task.levels
    yield total
    for step in range(1, _STEPS):
        zoomed = _warped(image, np.diag([1, 1, 1 + 0.004 * step]), task.side)
        total = total + np.asarray(zoomed, np.float32)
        yield total / np.float32(step + 1)


def _snow(_image: Image.Image, task: Task) -> Iterator[Levels]:
    flakes = draw_flakes(task, mean=0.05, deviation=0.3, zoom=3, threshold=0.5)
    for step in range(_STEPS):
        blown = _blown(flakes, task, radius=14, sigma=4, degrees=4 * step - 150)
        yield snowed_in(task.levels, blown, kept=0.85)


def _brightness(_image: Image.Image, task: Task) -> Iterator[Levels]:
    for step in range(_STEPS):
        yield brightened(task.levels, 0.02 * (step - 15))


def _translate(image: Image.Image, task: Task) -> Iterator[Levels]:
    for step in range(41):
        move = np.eye(3)
        move[0, 2] = (20 - step) * task.scale
        yield np.asarray(_warped(image, move, task.side), np.float32)


def _rotate(image: Image.Image, task: Task) -> Iterator[Levels]:
    for step in range(_STEPS):
        yield np.asarray(_warped(image, _turn(step - 15, 0, 1), task.side), np.float32)


def _tilt(image: Image.Image, task: Task) -> Iterator[Levels]:
    """A plane turned about both axes before a camera as far off as its diagonal is long."""
    far = np.hypot(*image.size)
    for step in range(_STEPS):
        plane = (_turn(step - 15, 1, 2) @ _turn(step - 15, 2, 0))[:, :2]
        seen = np.column_stack([np.diag([far, far, 1]) @ plane, [0, 0, far]])
        yield np.asarray(_warped(image, np.linalg.inv(seen), task.side), np.float32)


def _scale(image: Image.Image, task: Task) -> Iterator[Levels]:
    for step in range(_STEPS):
        size = (40 + 2.5 * step) / 100
        yield np.asarray(_warped(image, np.diag([1, 1, size]), task.side), np.float32)


def _blown(levels: Levels, task: Task, *, radius: int, sigma: float, degrees: float) -> Levels:
    return motion_blur(
        levels,
        radius=max(1, round(radius * task.scale)),
        sigma=sigma * task.scale,
        degrees=degrees,
    )


def _turn(degrees: float, first: int, second: int) -> NDArray[np.float64]:
    """[3, 3], a turn in the plane of two axes."""
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn


def _warped(image: Image.Image, back: NDArray[np.float64], side: int) -> Image.Image:
    """`side` pixels around the middle of a picture; `back` leads from the result into it.

    `back` [3, 3] acts on (x, y, 1), pixels from the middle. What lies outside is black.
    """
    to_middle, from_middle = np.eye(3), np.eye(3)
    to_middle[:2, 2] = -side / 2
    from_middle[:2, 2] = np.array(image.size) / 2
    whole = from_middle @ back @ to_middle
    numbers = (whole / whole[2, 2]).ravel()[:8].tolist()
    return image.transform(
        (side, side), Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BILINEAR
    )


_PERTURBATIONS: dict[str, Callable[[Image.Image, Task], Iterator[Levels]]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "brightness": _brightness,
    "translate": _translate,
    "rotate": _rotate,
    "tilt": _tilt,
    "scale": _scale,
}

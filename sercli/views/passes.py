"""What runs over the pixels of views: blends, hue, blur, and the end of it.

Pure functions of tensors that hold whatever is drawn: no value of the host is built in but which
terms there are, so that a compiled function serves every step. All work in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision
_LEAST_CHROMA = 1e-12


def blend(images: Tensor, numbers: Tensor, *, grey: bool, mean: bool) -> None:
    """clamp(f·x + g(x), 0, 1), g weighs the channels at the pixel, and their means over it.

    Args:
        images: [B, 3, H, W] in 0…1, changed in place.
        numbers: [7, B], f, weights of red, green and blue, and of their means.
        grey: Whether any image has weights of channels.
        mean: Whether any image has weights of means.
    """
    factor = numbers[0].view(-1, 1, 1, 1)
    other: Tensor | None = None
    if grey:
        weights = numbers[1:4].view(3, -1, 1, 1)
        other = images[:, 0] * weights[0]
        other.addcmul_(images[:, 1], weights[1]).addcmul_(images[:, 2], weights[2])
    if mean:
        means = (images.mean((2, 3)) * numbers[4:7].T).sum(1).view(-1, 1, 1)
        other = means if other is None else other.add_(means)
    images.mul_(factor)
    if other is not None:
        images.add_(other.unsqueeze(1))
    images.clamp_(0, 1)


def turn_hue(images: Tensor, shift: Tensor) -> None:
    """Turn the hue of HSV by `shift` turns, with the largest and the smallest channel kept.

    With sextant h of 0…6 and chroma C = max − min, the channels are min + C·clamp(p, 0, 1) for
    p = |h − 3| − 1 (red), 2 − |h − 2| (green), 2 − |h − 4| (blue). The sextant is found by two
    exchanges, of green and blue, then of red and the larger of them: it is |K + (middle − min)/C|
    with K = 0, −6 (first exchanged), −2 (second) or 4 (both).

    Args:
        images: [B, 3, H, W] in 0…1, changed in place.
        shift: [B, 1, 1].
    """
    red, green, blue = images.unbind(1)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    largest, middle = torch.maximum(red, high), torch.minimum(red, high)
    smallest = torch.minimum(red, low)
    chroma = largest.sub_(smallest)
    # (6s − 1)(2t − 1) − 1 is 0, −6, −2, 4 for exchanges (s, t) = (0, 0), (1, 0), (0, 1), (1, 1).
    first = torch.lt(green, blue, out=torch.empty_like(red)).mul_(6).sub_(1)
    second = torch.lt(red, high, out=high).mul_(2).sub_(1)
    sextant = middle.sub_(low).div_(chroma.clamp_min(_LEAST_CHROMA))
    sextant.add_(first.mul_(second).sub_(1)).abs_()
    sextant.add_(6 * shift)
    sextant.sub_(torch.floor(sextant * (1 / 6)), alpha=6)
    for channel, (place, sign, top) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        profile = torch.sub(sextant, place, out=images[:, channel]).abs_()
        profile.mul_(sign).add_(top).clamp_(0, 1).mul_(chroma).add_(smallest)


def finish(images: Tensor, limit: Tensor | None, scale: Tensor, shift: Tensor) -> None:
    """Solarise, then normalise: min(x, limit − x) · scale + shift.

    Args:
        images: [B, 3, H, W] in 0…1, changed in place.
        limit: [B, 1, 1, 1], 1 where values from 0.5 are inverted, else 2; None: nowhere.
        scale, shift: [3, 1, 1].
    """
    if limit is not None:
        torch.minimum(images, limit - images, out=images)
    images.mul_(scale).add_(shift)


@dataclass(frozen=True)
class Passes:
    """The functions above, as they are or compiled."""

    blend: Callable[..., None] = blend
    turn_hue: Callable[[Tensor, Tensor], None] = turn_hue
    finish: Callable[[Tensor, Tensor | None, Tensor, Tensor], None] = finish


EAGER = Passes()


def blur(images: Tensor, sigma: Tensor, radius: int, *, out: Tensor | None = None) -> Tensor:
    """Gaussian blur, reflected at the border, a sigma for each image.

    Each kernel ends at its own 3σ, so that an image does not depend on its batch. On a CPU shifted
    images are summed; a device, to which each of these sums would be a pass over its memory, takes
    two products with banded matrices.

    Args:
        images: [B, 3, H, W].
        sigma: [B], pixels, positive.
        radius: ⌈3σ⌉ of the largest.
        out: Where the result goes; may be the images.
    """
    radius = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)
    places = torch.arange(radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / sigma[:, None]).square())
    kernel = kernel * (places <= (3 * sigma[:, None]).ceil())
    kernel = kernel / (2 * kernel.sum(1, keepdim=True) - kernel[:, :1])
    by = blur_by_shifts if images.device.type == "cpu" else blur_by_products
    # Rounding may leave the range, which solarisation would make a negative value of.
    return by(images, kernel, out=out).clamp_(0, 1)


def blur_by_shifts(images: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Convolution with half a symmetric kernel [B, radius + 1], along rows, then columns."""
    radius = kernel.shape[1] - 1
    weights = kernel.view(*kernel.shape, 1, 1, 1).unbind(1)
    pair = torch.empty_like(images)
    across = torch.empty_like(images)
    for source, result, dim in ((images, across, 3), (across, out, 2)):
        padding = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = F.pad(source, padding, mode="reflect")
        side = images.shape[dim]
        out = torch.mul(padded.narrow(dim, radius, side), weights[0], out=result)
        for distance in range(1, radius + 1):
            before = padded.narrow(dim, radius - distance, side)
            torch.add(before, padded.narrow(dim, radius + distance, side), out=pair)
            out.addcmul_(pair, weights[distance])
    assert out is not None
    return out


def blur_by_products(images: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The same by matrices that have the reflection in them."""
    height, width = images.shape[-2:]
    rows = _banded(kernel, height)
    columns = rows if height == width else _banded(kernel, width)
    return torch.matmul(torch.matmul(rows[:, None], images), columns[:, None].mT, out=out)


def _banded(kernel: Tensor, side: int) -> Tensor:
    """[B, side, side], which blurs along a side."""
    radius = kernel.shape[1] - 1
    at = torch.arange(side, device=kernel.device)
    there, here = at[:, None], at[None]
    far = radius + 1
    distances = (
        (there - here).abs(),
        (there + here).masked_fill(here == 0, far),  # reflected at the first pixel, which is not
        (2 * (side - 1) - there - here).masked_fill(here == side - 1, far),  # at the last
    )
    padded = F.pad(kernel, (0, 1))
    matrix = kernel.new_zeros(len(kernel), side, side)
    for distance in distances:
        matrix += padded[:, distance.clamp_max(far)]
    return matrix

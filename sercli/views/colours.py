"""Colour augmentation of a batch on its device, with parameters of its own for each image.

The operations are torchvision's (jitter in random order, grey, Gaussian blur, solarise), computed
for the whole batch at once; tests hold them against torchvision's, image by image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.recipe.schema import Photometrics

NUM_UNIFORMS = 10  # uniform numbers that one view of one image needs
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision
SOLARISE_THRESHOLD = 0.5


@dataclass(frozen=True)
class PhotometricParameters:
    """What was done to the colours of each of B images; on the CPU.

    Attributes:
        jitter: bool [B], whether jitter was applied.
        factors: [B, 4], brightness, contrast and saturation factors, hue shift in turns.
        order: int64 [B, 4], the order of the four (0 brightness … 3 hue).
        grey: bool [B].
        blur_sigma: [B], pixels; 0 where not blurred.
        solarise: bool [B], inversion of values from 0.5.
        spans: [B, 5], widths of the ranges that the factors were drawn from, and the largest
            sigma: what makes the numbers of different strengths comparable.
    """

    jitter: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    blur_sigma: Tensor
    solarise: Tensor
    spans: Tensor

    def take(self, rows: Tensor | slice) -> PhotometricParameters:
        """The parameters of some of the images."""
        return PhotometricParameters(
            self.jitter[rows],
            self.factors[rows],
            self.order[rows],
            self.grey[rows],
            self.blur_sigma[rows],
            self.solarise[rows],
            self.spans[rows],
        )

    @property
    def applied_factors(self) -> Tensor:
        """[B, 4]: `factors` where jitter was applied, else what changes nothing, (1, 1, 1, 0)."""
        return torch.where(self.jitter[:, None], self.factors, torch.tensor([1.0, 1.0, 1.0, 0.0]))


_NOTHING = Photometrics(jitter_p=0.0, grey_p=0.0, blur_p=0.0, solarise_p=0.0)


def draw(uniforms: Tensor, config: Photometrics | None) -> PhotometricParameters:
    """Turn uniform numbers [B, NUM_UNIFORMS] in [0, 1) into parameters (None: of no change)."""
    config = config or _NOTHING
    u = uniforms.unbind(1)
    factors, spans = [], []
    for value, strength in zip(u[1:4], config.jitter[:3], strict=True):
        low = max(0.0, 1 - strength)
        factors.append(low + value * (1 + strength - low))
        spans.append(1 + strength - low)
    factors.append((2 * u[4] - 1) * config.jitter[3])
    low_sigma, high_sigma = config.blur_sigma
    spans += [2 * config.jitter[3], high_sigma]
    sigma = low_sigma + u[8] * (high_sigma - low_sigma)
    return PhotometricParameters(
        jitter=u[0] < config.jitter_p,
        factors=torch.stack(factors, dim=1),
        order=_ORDERS[(u[5] * len(_ORDERS)).long().clamp_max(len(_ORDERS) - 1)],
        grey=u[6] < config.grey_p,
        blur_sigma=torch.where(u[7] < config.blur_p, sigma, torch.zeros_like(sigma)),
        solarise=u[9] < config.solarise_p,
        spans=torch.tensor(spans).expand(len(uniforms), -1),
    )


def apply(images: Tensor, parameters: PhotometricParameters) -> Tensor:
    """Change the colours of images.

    Args:
        images: float [B, 3, H, W] in 0…1.
        parameters: Of the B images.

    Returns:
        A new tensor [B, 3, H, W] in 0…1.
    """
    images = images.clone()
    factors = parameters.factors.to(images.device, images.dtype)
    operations = (_brightness, _contrast, _saturation, _hue)
    for turn in range(4):
        for which, operation in enumerate(operations):
            rows = _rows(parameters.jitter & (parameters.order[:, turn] == which), images)
            if len(rows):
                amount = factors[rows, which].view(-1, 1, 1, 1)
                images.index_copy_(0, rows, operation(images.index_select(0, rows), amount))
    rows = _rows(parameters.grey, images)
    if len(rows):
        chosen = _grey(images.index_select(0, rows)).expand(-1, 3, -1, -1)
        images.index_copy_(0, rows, chosen)
    rows = _rows(parameters.blur_sigma > 0, images)
    if len(rows):
        sigma = parameters.blur_sigma.to(images.device, images.dtype).index_select(0, rows)
        largest = float(parameters.blur_sigma.max())
        images.index_copy_(0, rows, _blur(images.index_select(0, rows), sigma, largest))
    rows = _rows(parameters.solarise, images)
    if len(rows):
        chosen = images.index_select(0, rows)
        images.index_copy_(0, rows, torch.where(chosen >= SOLARISE_THRESHOLD, 1 - chosen, chosen))
    return images


def _rows(mask: Tensor, images: Tensor) -> Tensor:
    # The mask is on the CPU, where it was drawn: finding the rows needs no wait for the device.
    return mask.nonzero().flatten().to(images.device, non_blocking=True)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images).expand_as(images), images, factor).clamp_(0, 1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` turns, with V and the chroma C = max − min kept.

    With sextant h in [0, 6), the channels are V − C·clip(min(k, 4 − k), 0, 1) for
    k = (n + h) mod 6 and n = 5 (red), 3 (green), 1 (blue).
    """
    value, arg = images.max(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.where(
        arg == 0,
        (green - blue) / safe,
        torch.where(arg == 1, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    offsets = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = torch.remainder(offsets + sextant + 6 * shift, 6)
    return (value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)).clamp_(0, 1)


def _blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Separable Gaussian blur, reflected at the border, a sigma for each image.

    Each kernel ends at its own 3σ, so that an image does not depend on its batch.
    """
    radius = min(math.ceil(3 * largest), min(images.shape[-2:]) - 1)
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / sigma[:, None]).square())
    kernel = kernel * (places.abs() <= (3 * sigma[:, None]).ceil())
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels = images.shape[:2]
    weights = kernel.repeat_interleave(channels, dim=0)[:, None]
    flat = images.reshape(1, count * channels, *images.shape[-2:])
    for dims, pad in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        shaped = weights.view(count * channels, 1, *dims)
        flat = F.conv2d(F.pad(flat, pad, mode="reflect"), shaped, groups=count * channels)
    return flat.view_as(images)

"""What equivariance scores look like: token maps of a few images, one transformation each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli.actions import GeometricAction, grid_of, transport
from sercli.data import ImageSource
from sercli.encoders.loading import LoadedEncoder
from sercli.engine.runtime import Runtime
from sercli.evals.equivariance.evaluate import checked_layers, sample, square_batches
from sercli.evals.equivariance.sums import TRANSFORMATIONS

_PICTURED = ("rot90", "hflip", "rot180", "scale0.75")


@dataclass(frozen=True)
class TokenPicture:
    """An image, a transformation of it, and their tokens.

    Attributes:
        name: Name of the transformation g, `rot90` for instance.
        image: x, [H, W, 3] in 0…1.
        view: g x, [H', W', 3] in 0…1.
        observed: Tokens f(x), [h, w, D].
        seen: Tokens f(g x), [h', w', D].
        moved: Tokens ρ_g⁻¹ f(g x), [h, w, D].
    """

    name: str
    image: NDArray[np.float32]
    view: NDArray[np.float32]
    observed: NDArray[np.float32]
    seen: NDArray[np.float32]
    moved: NDArray[np.float32]


def picture(
    loaded: LoadedEncoder,
    source: ImageSource,
    *,
    layer: int,
    runtime: Runtime,
    image_size: tuple[int, int] | None = None,
) -> list[TokenPicture]:
    """What the scores look like: the token maps of a few images, one transformation each.

    Args:
        loaded: The encoder; it is moved to the runtime's device.
        source: Images; the first of `sample` are shown.
        layer: Block whose tokens are shown, 0 to depth.
        runtime: Where, and in which precision, the encoder runs; the arrays are on the CPU.
        image_size: (H, W) in pixels; None: the size it was trained on.

    Raises:
        UserError: No such layer, or a size that does not fit.
    """
    encoder = loaded.encoder.to(runtime.device)
    checked_layers([layer], encoder.depth)
    size = image_size or (loaded.image_size, loaded.image_size)
    patch = encoder.patch_size
    grid = grid_of(size, patch)
    shown = [g for name in _PICTURED for g in TRANSFORMATIONS if g.name == name]
    indices = sample(source, len(shown))
    rows = []
    batches = square_batches(loaded, source, indices, size, 1, runtime.device, 0)
    for g, images in zip(shown, batches, strict=False):
        view = g.on_image(images, patch)
        with torch.no_grad(), runtime.autocast():
            both = encoder.encode([images, view], (layer,))
        observed, seen = (features.grids[layer].float() for features in both)
        action = g.action(1, grid)
        moved = transport(seen, source=action, target=GeometricAction.identity(1, grid))
        rows.append(
            TokenPicture(
                g.name,
                _pixels(images, loaded),
                _pixels(view, loaded),
                *(tokens[0].permute(1, 2, 0).cpu().numpy() for tokens in (observed, seen, moved)),
            )
        )
    return rows


def _pixels(images: Tensor, loaded: LoadedEncoder) -> NDArray[np.float32]:
    """[H, W, 3] in 0…1, of the first of normalised images."""
    mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (loaded.mean, loaded.std))
    pixels: NDArray[np.float32] = (
        (images[0] * std + mean).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    )
    return pixels

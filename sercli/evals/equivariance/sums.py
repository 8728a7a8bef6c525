"""What equivariance scores are made of: sums over the images, of token maps and of moved maps.

For a layer l and a transformation g, F = f_l(x) and A = ρ_g⁻¹ f_l(g x), patch tokens only; F̃ and Ã
are the maps without each image's spatial mean. Products are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sercli.actions import GeometricAction, Grid, grid_of, transport
from sercli.encoders.vit import Encoder, Features
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.randomness import generator
from sercli.transfer import to_device

Array = NDArray[np.float64]

_SMALLEST_SIDE = 3  # patches; rounding leaves a smaller grid as it is under some scale
# Variance below this share of the mean square is float32's rounding of a constant.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Transformation:
    """A g: mirror left-right if `hflip`, turn counter-clockwise `rot90` times, then scale.

    Attributes:
        name: As in metric names.
        scale: Factor of both sides of the grid, rounded to whole patches.
    """

    name: str
    hflip: bool = False
    rot90: int = 0
    scale: float = 1.0

    def action(self, batch: int, grid: Grid) -> GeometricAction:
        """g for `batch` images of `grid` patches."""
        height, width = (round(side * self.scale) for side in grid)
        turned = (width, height) if self.rot90 % 2 else (height, width)
        return GeometricAction(
            torch.full((batch,), self.hflip), torch.full((batch,), self.rot90), turned
        )

    def on_image(self, images: Tensor, patch: int) -> Tensor:
        """g x: a permutation of pixels, or a bicubic resize with antialiasing."""
        height, width = images.shape[-2:]
        action = self.action(len(images), (height // patch, width // patch))
        if self.scale == 1:
            return action.on_image(images, patch)
        size = (action.grid[0] * patch, action.grid[1] * patch)
        return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)


TRANSFORMATIONS = (
    Transformation("rot90", rot90=1),
    Transformation("rot180", rot90=2),
    Transformation("rot270", rot90=3),
    Transformation("hflip", hflip=True),
    Transformation("scale0.75", scale=0.75),
    Transformation("scale1.25", scale=1.25),
)


@dataclass(frozen=True)
class Sums:
    """What the scores are made of: L layers, n images, G transformations; float64.

    Attributes:
        observed: [L, n], ‖F̃‖².
        moved: [L, n, G], ‖Ã‖².
        product: [L, n, G], ⟨F̃,Ã⟩.
        unmoved: [L, n, G], ⟨F̃,f_l(g x)⟩ at equal positions; NaN where the grids differ.
        other_image: [L, n, G], ⟨F̃ of the image before,Ã⟩; NaN for the first.
        shuffled: [L, n, G], ⟨F̃ with its tokens shuffled,Ã⟩.
        cosine: [L, n, G], mean uncentred cosine of the tokens of F and A.
        energy: [L, 1+G], share of the data set's variance that is spatial: of F, and of each A.
    """

    observed: Array
    moved: Array
    product: Array
    unmoved: Array
    other_image: Array
    shuffled: Array
    cosine: Array
    energy: Array

    @property
    def numerator(self) -> Array:
        """[L, n, G], 2⟨F̃,Ã⟩."""
        return 2 * self.product

    @property
    def denominator(self) -> Array:
        """[L, n, G], ‖F̃‖² + ‖Ã‖²."""
        return self.observed[..., None] + self.moved


class _Variance:
    """Spatial share of the variance of M maps, over batches, without cancellation.

    Σ‖F−μ‖² = Σ‖F̃‖² + N·Σ‖m−μ‖² with m the spatial mean of an image and N its tokens; the second
    sum is merged batch by batch (Chan, Golub & LeVeque, 1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self.within: Tensor | float = 0.0
        self.between: Tensor | float = 0.0
        self.mean: Tensor | float = 0.0

    def add(self, means: Tensor, within: Tensor, tokens: int) -> None:
        """Add images: spatial means [B, M, D] and ‖F̃‖² [B, M] of maps of `tokens` tokens."""
        batch, before = len(means), self.count
        mean = means.mean(0)
        step = mean - self.mean
        self.count += batch
        spread = (means - mean).square().sum((0, 2))
        spread = spread + step.square().sum(1) * (before * batch / self.count)
        self.between = self.between + tokens * spread
        self.within = self.within + within.sum(0)
        self.mean = self.mean + step * (batch / self.count)
        self.tokens = tokens

    def energy(self) -> Array:
        """[M], in 0…1; 0 for a constant."""
        within, between, mean = (
            torch.as_tensor(x).cpu().numpy() for x in (self.within, self.between, self.mean)
        )
        total = within + between
        squares = total + self.count * self.tokens * np.square(mean).sum(-1)
        varies = total > _ROUNDING * squares
        return np.where(varies, within / np.where(varies, total, 1), 0.0)


class _Tally:
    """Collects the sums of one encoder, a batch at a time."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = layers
        self._parts: list[dict[str, Tensor]] = []
        self._variances = {layer: _Variance() for layer in layers}
        self._before: dict[int, Tensor] = {}

    def add(
        self, views: Sequence[Features], actions: Sequence[GeometricAction], orders: Tensor
    ) -> None:
        """Add images.

        Args:
            views: Features of x, then of each g x.
            actions: Each g.
            orders: [B, N], a permutation of the tokens for each image.
        """
        rows = [self._compare(layer, views, actions, orders) for layer in self._layers]
        self._parts.append({key: torch.stack([row[key] for row in rows]) for key in rows[0]})

    def _compare(
        self,
        layer: int,
        views: Sequence[Features],
        actions: Sequence[GeometricAction],
        orders: Tensor,
    ) -> dict[str, Tensor]:
        observed, *seen = (view.grids[layer].float() for view in views)
        home = GeometricAction.identity(len(observed), (observed.shape[2], observed.shape[3]))
        moved = [
            transport(tokens, source=action, target=home)
            for tokens, action in zip(seen, actions, strict=True)
        ]
        maps = torch.stack([observed, *moved], dim=1).double().flatten(3)  # [B, 1+G, D, N]
        lengths = maps.square().sum(2).sqrt().clamp_min(1e-8)
        dots = (maps[:, 1:] * maps[:, :1]).sum(2)
        cosine = (dots / (lengths[:, 1:] * lengths[:, :1])).mean(-1)
        means = maps.mean(-1)
        maps -= means[..., None]
        norms = maps.square().sum((2, 3))
        self._variances[layer].add(means, norms, maps.shape[-1])

        centred = maps[:, 0]
        before = torch.cat([self._before.get(layer, centred[:1] * torch.nan), centred[:-1]])
        self._before[layer] = centred[-1:]
        shuffled = centred.gather(2, orders[:, None].expand_as(centred))
        partners = torch.stack([centred, before, shuffled], dim=1)
        products = torch.einsum("bgdn,bpdn->bgp", maps[:, 1:], partners)
        return {
            "observed": norms[:, 0],
            "moved": norms[:, 1:],
            "product": products[..., 0],
            "unmoved": torch.stack([_unmoved(centred, tokens, home.grid) for tokens in seen], 1),
            "other_image": products[..., 1],
            "shuffled": products[..., 2],
            "cosine": cosine,
        }

    def sums(self) -> Sums:
        joined = {
            key: torch.cat([part[key] for part in self._parts], dim=1).cpu().numpy()
            for key in self._parts[0]
        }
        energy = np.stack([self._variances[layer].energy() for layer in self._layers])
        return Sums(energy=energy, **joined)


def _unmoved(centred: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
    """[B], ⟨F̃,f(g x)⟩ at equal positions (F̃ has no mean, so f(g x) needs no centring)."""
    if tuple(tokens.shape[2:]) != grid:
        return centred.new_full((len(centred),), torch.nan)
    return (centred * tokens.double().flatten(2)).sum((1, 2))


def accumulate(
    encoders: Sequence[Encoder],
    batches: Iterable[Tensor],
    layers: Sequence[int],
    *,
    runtime: Runtime,
    seed: int = 0,
) -> list[Sums]:
    """Encode x and every g x once with each encoder and sum up, in one pass over the images.

    Args:
        encoders: In evaluation mode, on one device, of one patch size.
        batches: Normalised images [B, 3, H, W], all of one size.
        layers: Blocks, 0 (the embedding) to depth.
        runtime: The precision of the encoders.
        seed: Of the order of the shuffled tokens.

    Returns:
        The sums of each encoder. They do not depend on how the images are split into batches.

    Raises:
        UserError: A side of the image is shorter than 3 patches or no multiple of the patch.
    """
    tallies = [_Tally(layers) for _ in encoders]
    patch = encoders[0].patch_size
    count = 0
    for images in batches:
        grid = grid_of((images.shape[2], images.shape[3]), patch)
        _require_scalable(grid, patch)
        actions = [g.action(len(images), grid) for g in TRANSFORMATIONS]
        views = [images, *(g.on_image(images, patch) for g in TRANSFORMATIONS)]
        drawn = [
            torch.randperm(grid[0] * grid[1], generator=generator(seed, "shuffle", count + i))
            for i in range(len(images))
        ]
        orders = to_device(torch.stack(drawn), images.device)
        count += len(images)
        for encoder, tally in zip(encoders, tallies, strict=True):
            with torch.no_grad():
                with runtime.autocast():
                    features = encoder.encode(views, layers)
                tally.add(features, actions, orders)
    return [tally.sums() for tally in tallies]


def _require_scalable(grid: Grid, patch: int) -> None:
    if min(grid) < _SMALLEST_SIDE:
        raise UserError(
            f"images of {grid[0]}×{grid[1]} patches",
            f"scaling to 0.75 and 1.25 needs {_SMALLEST_SIDE} patches a side",
            f"use --image-size {_SMALLEST_SIDE * patch} or more",
        )

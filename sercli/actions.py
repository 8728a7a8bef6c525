"""Group elements and their action ρ_g on images and on token grids.

The group is D4 (mirror and quarter turns) times anisotropic scaling. An element of D4 is written
R^k F^f: mirror left-right if f, then turn counter-clockwise k times. Because F R = R⁻¹ F,

    (R^a F^p)(R^b F^q) = R^(a + (-1)^p b) F^(p xor q)        and        (R^k F)⁻¹ = R^k F.

On a grid, D4 permutes cells exactly; scaling resamples them, which no later resampling undoes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.errors import UserError
from sercli.precision import widened

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class GeometricAction:
    """An element of D4 × scaling for each image of a batch.

    The element mirrors left-right where `hflip`, then turns counter-clockwise `rot90` times (as
    `torch.rot90` over dims (-2, -1)), then resizes to `grid` patches.

    Attributes:
        hflip: Which images are mirrored, bool [B].
        rot90: int64 [B], quarter turns; any integer, kept modulo 4.
        grid: (h, w), the patches of the result, the same for the whole batch.

    Raises:
        ValueError: Shapes differ, or a side of `grid` is below 1.
    """

    hflip: Tensor
    rot90: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.hflip.dim() != 1 or self.hflip.shape != self.rot90.shape:
            raise ValueError(
                f"hflip {tuple(self.hflip.shape)} and rot90 {tuple(self.rot90.shape)}: "
                "both must be of shape [B]"
            )
        height, width = self.grid
        if height < 1 or width < 1:
            raise ValueError(f"grid {self.grid}: both sides must be at least 1 patch")
        object.__setattr__(self, "hflip", self.hflip.bool())
        object.__setattr__(self, "rot90", self.rot90.long() % 4)
        object.__setattr__(self, "grid", (int(height), int(width)))

    def __len__(self) -> int:
        return len(self.hflip)

    def take(self, rows: Tensor | slice) -> GeometricAction:
        """The elements of some images: `rows` indexes the batch."""
        return GeometricAction(self.hflip[rows], self.rot90[rows], self.grid)

    @classmethod
    def identity(cls, batch: int, grid: Grid) -> GeometricAction:
        """The neutral element for `batch` images of `grid` patches."""
        zeros = torch.zeros(batch, dtype=torch.long)
        return cls(zeros.bool(), zeros, grid)

    @classmethod
    def sample(
        cls,
        batch: int,
        grid: Grid,
        *,
        generator: torch.Generator | None = None,
        scale: tuple[float, float] = (0.7, 1.3),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> GeometricAction:
        """Draw a uniform element of D4 for each image, and one grid for the batch.

        Args:
            batch: Number of images, B.
            grid: (h, w) of the unscaled image.
            generator: Source of randomness (on the CPU).
            scale: Range of the grid's area relative to `grid`, uniform.
            aspect: Range of the change of w/h, log-uniform.

        Returns:
            An action whose grid is `grid` scaled, rounded, at least 1×1.
        """
        turns = torch.randint(4, (batch,), generator=generator)
        mirrors = torch.randint(2, (batch,), generator=generator).bool()
        u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        area = scale[0] + u * (scale[1] - scale[0])
        log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(log_low + v * (log_high - log_low))
        height = max(1, round(grid[0] * math.sqrt(area / ratio)))
        width = max(1, round(grid[1] * math.sqrt(area * ratio)))
        return cls(mirrors, turns, (height, width))

    def compose(self, first: GeometricAction) -> GeometricAction:
        """The element that does `first`, then `self`; its grid is `self.grid`."""
        sign = torch.where(self.hflip, -1, 1)
        return GeometricAction(self.hflip ^ first.hflip, self.rot90 + sign * first.rot90, self.grid)

    def inverse(self, grid: Grid) -> GeometricAction:
        """The element that leads back to a source of `grid` patches."""
        return GeometricAction(self.hflip, torch.where(self.hflip, self.rot90, -self.rot90), grid)

    def on_image(self, images: Tensor, patch: int = 16) -> Tensor:
        """Act on images.

        Args:
            images: float [B, C, H, W].
            patch: Side of a patch, in pixels.

        Returns:
            [B, C, h·patch, w·patch]; bicubic (align_corners=False, no antialias, no clamp) where
            the size changes, an exact permutation of pixels where it does not; of the images'
            dtype, resampled in float32 at least.
        """
        height, width = self.grid
        return _act(self, images, (height * patch, width * patch))


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Patches of an image of `size` (H, W) pixels.

    Raises:
        UserError: A side is no multiple of the patch.
    """
    if size[0] % patch or size[1] % patch or not size[0] or not size[1]:
        low, high = size[0] // patch * patch, (size[0] // patch + 1) * patch
        raise UserError(
            f"an image of {size[0]}×{size[1]} pixels with patches of {patch}",
            "both sides must be multiples of the patch",
            f"use {low} or {high}" if low else f"use {high}",
        )
    return size[0] // patch, size[1] // patch


def transport(tokens: Tensor, *, source: GeometricAction, target: GeometricAction) -> Tensor:
    """Move a token map from one view's frame to another's: ρ_target ∘ ρ_source⁻¹.

    Args:
        tokens: [B, D, h, w] on `source.grid`.
        source: The element that made the view the tokens come from.
        target: The element of the view they go to.

    Returns:
        [B, D, *target.grid]: an exact permutation when no resize is needed, one bicubic resize
        (align_corners=False, no antialias) otherwise; of the tokens' dtype, resampled in float32
        at least.

    Raises:
        ValueError: The tokens do not lie on `source.grid`, or the batches differ.
    """
    if tuple(tokens.shape[-2:]) != source.grid:
        raise ValueError(f"tokens on a {tuple(tokens.shape[-2:])} grid, source.grid {source.grid}")
    return _act(target.compose(source.inverse(source.grid)), tokens, target.grid)


def _act(action: GeometricAction, maps: Tensor, size: Grid) -> Tensor:
    """Apply each image's element of D4 and resize to `size` pixels (or cells)."""
    if len(action) != len(maps):
        raise ValueError(f"{len(action)} elements for {len(maps)} images")
    if not len(maps):  # a rank without a share stays in the graph: others wait for its backward
        return maps.new_zeros(0, maps.shape[1], *size) + 0 * maps.sum()
    code = (action.rot90 + 4 * action.hflip).cpu()
    present = torch.unique(code).tolist()
    if len(present) == 1:
        return _element(maps, present[0], size)
    out = maps.new_empty(*maps.shape[:2], *size)
    for value in present:
        rows = torch.nonzero(code == value).flatten().to(maps.device)
        out = out.index_copy(0, rows, _element(maps.index_select(0, rows), value, size))
    return out


def _element(maps: Tensor, code: int, size: Grid) -> Tensor:
    mirror: Callable[[Tensor], Tensor] = (lambda x: x.flip(-1)) if code >= 4 else (lambda x: x)
    turned = torch.rot90(mirror(maps), code % 4, dims=(-2, -1))
    if tuple(turned.shape[-2:]) == tuple(size):
        return turned.contiguous()
    resized = F.interpolate(
        widened(turned), size=size, mode="bicubic", align_corners=False, antialias=False
    )
    return resized.to(maps.dtype)

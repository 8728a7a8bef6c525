"""Group elements and their action ρ_g on images and on token grids.

The group is D4 (mirror and quarter turns) times anisotropic scaling. An element of D4 is written
R^k F^f: mirror left-right if f, then turn counter-clockwise k times. Because F R = R⁻¹ F,

    (R^a F^p)(R^b F^q) = R^(a + (-1)^p b) F^(p xor q)        and        (R^k F)⁻¹ = R^k F.

On a grid, D4 permutes cells exactly; scaling resamples them, which no later resampling undoes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.errors import UserError
from sercli.precision import widened
from sercli.transfer import send

Grid = tuple[int, int]
SENT = ("code", "order", "back")  # names of what an action has to send to a device


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
    _sent: dict[torch.device, Mapping[str, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

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

    @functools.cached_property
    def code(self) -> Tensor:
        """int64 [B] on the CPU, k + 4f for R^k F^f."""
        with torch.inference_mode(mode=False):
            return (self.rot90 + 4 * self.hflip).cpu()

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether no image is mirrored or turned."""
        return not self.code.any()

    @functools.cached_property
    def num_odd(self) -> int:
        """How many images are turned by an odd number of quarters."""
        return int((self.code % 2).sum())

    def to_send(self) -> dict[str, Tensor]:
        """What a device needs to act: tensors on the CPU, to go there with others; see `sent`.

        Returns:
            "code", as above; "order", int64 [B], the images with even quarter turns first; "back",
            its inverse.
        """
        order = torch.argsort(self.code % 2, stable=True)
        return {"code": self.code, "order": order, "back": torch.argsort(order)}

    def sent(self, there: Mapping[str, Tensor], device: torch.device) -> GeometricAction:
        """This action, with what it has `to_send` being on a device already."""
        self._sent[device] = there
        return self

    def on(self, device: torch.device) -> Mapping[str, Tensor]:
        """What it has `to_send`, on a device; copied now if nobody has sent it before."""
        if device not in self._sent:
            # Kept, and tensors of inference mode could not be differentiated by later.
            with torch.inference_mode(mode=False):
                self._sent[device] = send(self.to_send(), device)
        return self._sent[device]

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


def moving(source: GeometricAction, target: GeometricAction) -> GeometricAction:
    """What moves a view made by `source` to the frame of one made by `target`."""
    return target.compose(source.inverse(source.grid))


def transport(
    tokens: Tensor,
    *,
    source: GeometricAction,
    target: GeometricAction,
    sent: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Move a token map from one view's frame to another's: ρ_target ∘ ρ_source⁻¹.

    Args:
        tokens: [B, D, h, w] on `source.grid`.
        source: The element that made the view the tokens come from.
        target: The element of the view they go to.
        sent: What `moving` of these has `to_send`, if the tokens' device has it already.

    Returns:
        [B, D, *target.grid]: an exact permutation when no resize is needed, one bicubic resize
        (align_corners=False, no antialias) otherwise; of the tokens' dtype, resampled in float32
        at least.

    Raises:
        ValueError: The tokens do not lie on `source.grid`, or the batches differ.
    """
    if tuple(tokens.shape[-2:]) != source.grid:
        raise ValueError(f"tokens on a {tuple(tokens.shape[-2:])} grid, source.grid {source.grid}")
    move = moving(source, target)
    if sent is not None:
        move.sent(sent, tokens.device)
    return _act(move, tokens, target.grid)


# -- Permutations ---------------------------------------------------------------------------------


def _act(action: GeometricAction, maps: Tensor, size: Grid) -> Tensor:
    """Apply each image's element of D4 and resize to `size` pixels (or cells)."""
    if len(action) != len(maps):
        raise ValueError(f"{len(action)} elements for {len(maps)} images")
    if not len(maps):  # a rank without a share stays in the graph: others wait for its backward
        return maps.new_zeros(0, maps.shape[1], *size) + 0 * maps.sum()
    height, width = maps.shape[-2:]
    if action.is_identity:
        return _resized(maps, size)
    sent = action.on(maps.device)
    odd = action.num_odd
    if height == width or odd in (0, len(action)):
        moved = _permuted(maps, sent["code"], (width, height) if odd else (height, width))
        return _resized(moved, size)
    # Even and odd quarter turns have different shapes in between.
    sorted_maps = _Reordered.apply(maps, sent["order"], sent["back"])
    codes = sent["code"].index_select(0, sent["order"])
    shapes, counts = ((height, width), (width, height)), (len(action) - odd, odd)
    parts = [
        _resized(_permuted(some, code, shape), size)
        for some, code, shape in zip(
            sorted_maps.split(counts), codes.split(counts), shapes, strict=True
        )
    ]
    joined: Tensor = _Reordered.apply(torch.cat(parts), sent["back"], sent["order"])
    return joined


def _resized(maps: Tensor, size: Grid) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.contiguous()
    resized = F.interpolate(
        widened(maps), size=size, mode="bicubic", align_corners=False, antialias=False
    )
    return resized.to(maps.dtype)


def _permuted(maps: Tensor, code: Tensor, shape: Grid) -> Tensor:
    """Each map with its cells permuted, [B, C, *shape]; elements by `_table`'s row."""
    moved: Tensor = _Permuted.apply(maps.flatten(2), code, tuple(maps.shape[-2:]))
    return moved.view(*moved.shape[:2], *shape)


class _Permuted(torch.autograd.Function):
    """Cells gathered through a table; gradient is gathered through the inverse table."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, code: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(code)
        ctx.grid = grid
        there, _ = _table(grid, cells.device)
        return _gather(cells, there, code)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (code,) = ctx.saved_tensors
        _, back = _table(ctx.grid, gradient.device)
        return _gather(gradient, back, code), None, None


def _gather(cells: Tensor, table: Tensor, code: Tensor) -> Tensor:
    places = table.index_select(0, code)[:, None]
    return cells.gather(2, places.expand(-1, cells.shape[1], -1))


class _Reordered(torch.autograd.Function):
    """Rows in an order; `back` is the inverse order, in which gradient comes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        chosen: Tensor = rows.index_select(0, order)
        return chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        order, back = ctx.saved_tensors
        return _Reordered.apply(gradient, back, order), None, None


@functools.lru_cache(maxsize=256)
def _table(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """The eight permutations of the cells of a grid, and their inverses, int64 [8, h·w].

    Row k + 4f is of R^k F^f: where each cell of the result comes from. It is made on the device,
    as copies of tables of ever new grids would have the host wait.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        cells = torch.arange(grid[0] * grid[1], device=device)
        kept = cells.view(grid)
        across, down, both = kept.flip(-1), kept.flip(-2), kept.flip(-1, -2)
        # A quarter turn is a transposed mirror: few kernels, as most steps have a new grid.
        even = torch.stack([kept, both, across, down]).flatten(1)
        odd = torch.stack([across, down, kept, both]).mT.flatten(1)
        there = torch.stack([even, odd], dim=1).flatten(0, 1)
        back = torch.empty_like(there).scatter_(1, there, cells.expand(8, -1))
        return there, back

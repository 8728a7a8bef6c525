"""Colour augmentation of a batch on its device, with parameters of its own for each image.

The operations are torchvision's (jitter in random order, grey, Gaussian blur, solarise), computed
for many images at once by `passes`; tests hold them against torchvision's, image by image. What is
decided by an image's parameters is decided here, on the CPU, so that nothing waits for the device:

    float → ≤ 3 blends → hue → ≤ 3 blends → grey, a blend → blur of those that drew it → finish

An image's jitter has hue at one of four places of its order, with blends (brightness, contrast,
saturation) before and after it. Sorted by that place, the images of each step are neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli.recipe.schema import Photometrics
from sercli.transfer import constant, send
from sercli.views import passes
from sercli.views.passes import EAGER, LUMA, Passes

NUM_UNIFORMS = 10  # uniform numbers that one view of one image needs
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))
# Images go through in chunks of at most so many bytes in float32: on a CPU one of 224 pixels, which
# stays in the cache; on a device what its memory has room for several times over.
_CHUNK_BYTES = {"cpu": 2**20}
_DEVICE_CHUNK_BYTES = 512 * 2**20
_NEVER = 2.0  # inverting at the top of a range that values do not reach changes nothing
_NO_HUE = 4  # place of hue in the order of an image that is not jittered: behind all others


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

    @classmethod
    def join(cls, parts: Sequence[PhotometricParameters]) -> PhotometricParameters:
        """The parameters of the images of all parts, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

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


# -- What is done, decided on the CPU -------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Some of the images, sorted by the place of hue in their order, and what is done to them.

    Attributes:
        rows: Which images these are, before sorting; their places after it.
        is_sorted: Whether sorting left them where they were.
        steps: (slot, first row, last row + 1, whether any is a contrast, a saturation or grey), of
            each blend that changes any image; the hue is turned before slot 3.
        jittered: The first so many images have their hue turned.
        blurred: Places of those that are blurred, in the work's list of them.
        radius: Of the widest blur, pixels.
        solarised: Whether any is solarised.
    """

    rows: slice
    is_sorted: bool
    steps: tuple[tuple[int, int, int, bool, bool], ...]
    jittered: int
    blurred: slice
    radius: int
    solarised: bool


@dataclass(frozen=True)
class Work:
    """What is done to the colours of B images: what the host knows, and numbers for the device.

    Attributes:
        chunks: Of neighbouring images.
        tensors: "blends" [7, 7, B], for each slot the factor, the weights of the channels for grey
            and those of their means; "shift" [B], of hue; "limit" [B], what solarisation subtracts
            from; "order" and "back" int64 [B], sorting within chunks and its inverse; "blurred"
            int64 [b], places within their chunks, and "sigma" [b]. All sorted but "back".
    """

    chunks: tuple[Chunk, ...]
    tensors: dict[str, Tensor]


def plan_work(
    parameters: PhotometricParameters, *, size: tuple[int, int], device: torch.device
) -> Work:
    """Decide what is done to B images of `size` (H, W) pixels on a device."""
    count = len(parameters.jitter)
    largest = _CHUNK_BYTES.get(device.type, _DEVICE_CHUNK_BYTES)
    each = max(1, largest // (12 * size[0] * size[1]))
    jitter, order = parameters.jitter.numpy(), parameters.order.numpy()
    place = np.where(jitter, np.argmax(order == 3, axis=1), _NO_HUE)
    chunk_of = np.arange(count) // each
    sorting = np.lexsort((place, chunk_of))
    back = np.argsort(sorting) - chunk_of * each
    place, sigma = place[sorting], parameters.blur_sigma.numpy()[sorting]
    solarise = parameters.solarise.numpy()[sorting]
    blends = _blends(parameters, place, sorting)
    blurred = np.flatnonzero(sigma > 0)
    radii = np.ceil(3 * sigma).astype(np.int64)
    chunks = [
        _chunk(slice(start, min(start + each, count)), sorting, place, blends, blurred)
        for start in range(0, count, each)
    ]
    chunks = [
        replace(c, radius=int(radii[c.rows].max()), solarised=bool(solarise[c.rows].any()))
        for c in chunks
    ]
    tensors = {
        "blends": torch.from_numpy(blends),
        "shift": parameters.factors[:, 3][sorting],
        "limit": torch.from_numpy(np.where(solarise, np.float32(1), np.float32(_NEVER))),
        "order": torch.from_numpy(sorting - chunk_of * each),
        "back": torch.from_numpy(back),
        "blurred": torch.from_numpy(blurred % each),
        "sigma": torch.from_numpy(sigma[blurred]),
    }
    return Work(tuple(chunks), tensors)


def _blends(
    parameters: PhotometricParameters, place: NDArray[np.int64], sorting: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Numbers of the seven blends of each image, [slots, 7, B]; where nothing is done, factor 1.

    All of them are clamp(f·x + (1−f)·m): m is 0, the mean of grey or grey.
    """
    factors, order = parameters.factors.numpy()[sorting], parameters.order.numpy()[sorting]
    grey = parameters.grey.numpy()[sorting]
    rows = np.arange(len(place))
    numbers = np.zeros((7, 7, len(place)), dtype=np.float32)
    numbers[:, 0] = 1
    luma = np.array(LUMA, dtype=np.float32)[:, None]
    for slot in range(6):
        # Before the hue an image's first three turns, after it those that follow its place.
        turn = np.full_like(place, slot) if slot < 3 else place + slot - 2
        done = turn < place if slot < 3 else turn < _NO_HUE
        which = np.where(done, order[rows, np.minimum(turn, 3)], -1)
        factor = np.where(done, factors[rows, which], np.float32(1))
        numbers[slot, 0] = factor
        numbers[slot, 1:4] = np.where(which == 2, 1 - factor, 0) * luma
        numbers[slot, 4:7] = np.where(which == 1, 1 - factor, 0) * luma
    numbers[6, 0] = ~grey
    numbers[6, 1:4] = grey * luma
    return numbers


def _chunk(
    rows: slice,
    sorting: NDArray[np.int64],
    place: NDArray[np.int64],
    blends: NDArray[np.float32],
    blurred: NDArray[np.int64],
) -> Chunk:
    count = rows.stop - rows.start
    # first[p]: the first image whose hue has place p or a later one
    first = np.searchsorted(place[rows], np.arange(_NO_HUE + 1)).tolist()
    jittered = first[_NO_HUE]
    spans = [(first[slot + 1], jittered) for slot in range(3)]
    spans += [(0, first[3 - slot]) for slot in range(3)]
    spans.append((0, count))
    steps = []
    for slot, (start, stop) in enumerate(spans):
        numbers = blends[slot, :, rows.start + start : rows.start + stop]
        if (numbers[0] != 1).any():
            steps.append((slot, start, stop, bool(numbers[1].any()), bool(numbers[4].any())))
    begin, end = np.searchsorted(blurred, (rows.start, rows.stop)).tolist()
    return Chunk(
        rows,
        is_sorted=bool((np.diff(sorting[rows]) == 1).all()),
        steps=tuple(steps),
        jittered=jittered,
        blurred=slice(begin, end),
        radius=0,
        solarised=False,
    )


# -- Doing it, on the device ----------------------------------------------------------------------


def apply(
    images: Tensor,
    parameters: PhotometricParameters,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Change the colours of images, and normalise them.

    Args:
        images: [B, 3, H, W], float in 0…1, or uint8.
        parameters: Of the B images.
        mean, std: By channel, of (x − mean) / std after everything else.

    Returns:
        A new tensor [B, 3, H, W], of the images' dtype or float32.
    """
    size = (images.shape[-2], images.shape[-1])
    work = plan_work(parameters, size=size, device=images.device)
    return carry_out(work, images, send(work.tensors, images.device), mean=mean, std=std)


@torch.no_grad()
def carry_out(
    work: Work,
    images: Tensor,
    sent: Mapping[str, Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    by: Passes = EAGER,
) -> Tensor:
    """Do what was decided to images; see `apply`.

    Args:
        work: Of these images and their device.
        images: As for `apply`.
        sent: The work's tensors on the images' device.
        mean, std: As for `apply`.
        by: What runs over pixels.
    """
    dtype = images.dtype if images.is_floating_point() else torch.float32
    sent = {n: t.to(dtype) if t.is_floating_point() else t for n, t in sent.items()}
    device = images.device
    scale = constant([1 / s for s in std], device, dtype).view(3, 1, 1)
    shift = constant([-m / s for m, s in zip(mean, std, strict=True)], device, dtype).view(3, 1, 1)
    out = torch.empty(images.shape, dtype=dtype, device=device)
    for chunk in work.chunks:
        rows = chunk.rows
        source = images[rows]
        if chunk.is_sorted:
            done = out[rows].copy_(source)
        else:
            chosen = source.index_select(0, sent["order"][rows])
            done = chosen.to(dtype, memory_format=torch.contiguous_format)
        if not images.is_floating_point():
            done.div_(255)
        _colour(done, chunk, sent, by)
        limit = sent["limit"][rows].view(-1, 1, 1, 1) if chunk.solarised else None
        by.finish(done, limit, scale, shift)
        if not chunk.is_sorted:
            torch.index_select(done, 0, sent["back"][rows], out=out[rows])
    return out


def _colour(images: Tensor, chunk: Chunk, sent: Mapping[str, Tensor], by: Passes) -> None:
    """Jitter, grey and blur of a chunk, in place."""
    first, turned = chunk.rows.start, False
    for slot, start, stop, grey, mean in (*chunk.steps, (7, 0, 0, False, False)):
        if slot >= 3 and chunk.jittered and not turned:
            shift = sent["shift"][first : first + chunk.jittered]
            by.turn_hue(images[: chunk.jittered], shift.view(-1, 1, 1))
            turned = True
        if stop > start:
            numbers = sent["blends"][slot, :, first + start : first + stop]
            by.blend(images[start:stop], numbers, grey=grey, mean=mean)
    if chunk.blurred.stop > chunk.blurred.start:
        rows, sigma = sent["blurred"][chunk.blurred], sent["sigma"][chunk.blurred]
        if len(rows) == len(images):
            passes.blur(images, sigma, chunk.radius, out=images)
        else:
            some = images.index_select(0, rows)
            images.index_copy_(0, rows, passes.blur(some, sigma, chunk.radius))

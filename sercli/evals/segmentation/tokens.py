"""Patch tokens of windows, with the classes that belong to them: read, encoded, kept or not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli import distributed
from sercli.data.loading import RowReader, load_rows, normalise
from sercli.data.masks.source import MaskSource
from sercli.data.ring import Column, Row
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed
from sercli.evals.common import Progress
from sercli.evals.segmentation.frames import POINTS, Frame

KEPT_BYTES = 4 << 30  # of tokens in memory, of all ranks; more are encoded anew in every step

Key = tuple[int, int]  # an image and one of its windows


class Windows(RowReader[Key, NDArray[np.uint8] | None]):
    """Reads a window's pixels and targets; the note of an image's last window is its whole mask.

    Args:
        source: Images and masks.
        frames: How each image is cut.
        points: Targets along a side of a window.
        whole: Whether whole masks are wanted.
    """

    def __init__(
        self, source: MaskSource, frames: Mapping[int, Frame], points: int, *, whole: bool
    ) -> None:
        self.source, self.frames, self.points, self.whole = source, frames, points, whole
        self.side = next(iter(frames.values())).side

    def layout(self) -> Mapping[str, Column]:
        return {
            "pixels": Column((3, self.side, self.side), "uint8", for_device=True),
            "targets": Column((self.points, self.points), "uint8", for_device=True),
        }

    def read(self, key: Key, row: Row) -> NDArray[np.uint8] | None:
        index, window = key
        image, mask = self.source.load(index), self.source.mask(index)
        frame = self.frames[index]
        row["pixels"][...] = frame.cut(image, window)
        row["targets"][...] = frame.targets(mask, window, self.points)
        return mask if self.whole and window == len(frame.starts) - 1 else None


@dataclass(frozen=True)
class Encoded:
    """Some windows.

    Attributes:
        tokens: float32 [B, T, L, D], of L layers, after the final norm.
        targets: uint8 [B, P, P], classes at P x P points, or `IGNORED`.
    """

    tokens: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TokenReader:
    """Encodes windows batch by batch.

    Attributes:
        loaded: The encoder, on the runtime's device.
        layers: Blocks whose tokens are taken.
        runtime: Device and precision.
        at_once: Windows that the encoder takes at a time: memory, not the number, depends on it.
        workers: Loader processes.
        check: Called after each batch; may raise to end the reading.
    """

    loaded: LoadedEncoder
    layers: Sequence[int]
    runtime: Runtime
    at_once: int
    workers: int
    check: Callable[[], None]

    @property
    def grid(self) -> int:
        """Tokens along a side of a window."""
        return self.loaded.image_size // self.loaded.encoder.patch_size

    @property
    def points(self) -> int:
        """Targets along a side of a window."""
        return POINTS * self.grid

    def batches(
        self,
        source: MaskSource,
        frames: Mapping[int, Frame],
        batches: Iterable[Sequence[Key]],
        *,
        rows: int,
    ) -> Iterator[Encoded]:
        """Global batches, on the device, the same on all ranks: position p is read by p mod W.

        Args:
            source: Images and masks.
            frames: How each image is cut.
            batches: The windows of each.
            rows: How many the largest has.
        """
        first, second = itertools.tee(batches)
        rank, world = distributed.rank(), distributed.world_size()
        loaded = load_rows(
            Windows(source, frames, self.points, whole=False),
            (batch[rank::world] for batch in first),
            rows=-(-rows // world),
            workers=self.workers,
            device=self.runtime.device,
        )
        for mine, batch in zip(loaded, second, strict=True):
            own = mine.columns["targets"].to(self.runtime.device)
            yield Encoded(
                distributed.gather_in_order(self.encode(mine.columns["pixels"]), len(batch)),
                distributed.gather_in_order(own, len(batch)),
            )

    def table(
        self,
        source: MaskSource,
        frames: Mapping[int, Frame],
        keys: Sequence[Key],
        *,
        what: str,
        progress: Progress | None,
    ) -> Encoded:
        """Windows in memory, on the CPU.

        Raises:
            RunFailed: The encoder gives tokens that are not finite.
        """
        size = self.grid**2, len(self.layers), self.loaded.encoder.dim
        tokens = torch.empty(len(keys), *size)
        targets = torch.empty(len(keys), self.points, self.points, dtype=torch.uint8)
        step = self.at_once * distributed.world_size()
        batches = (keys[start : start + step] for start in range(0, len(keys), step))
        done = 0
        for some in self.batches(source, frames, batches, rows=min(step, len(keys))):
            rows = slice(done, done + len(some.tokens))
            tokens[rows], targets[rows] = some.tokens, some.targets
            done += len(some.tokens)
            self.check()
            if progress is not None:
                progress(what, done, len(keys))
        if not tokens.isfinite().all():
            raise RunFailed("the encoder gives tokens that are not finite")
        return Encoded(tokens, targets)

    def bytes_of(self, windows: int) -> int:
        """What a table of so many takes."""
        return 4 * windows * self.grid**2 * len(self.layers) * self.loaded.encoder.dim

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens of uint8 [B, 3, S, S]: float32 [B, T, L, D] on the device."""
        encoder, device = self.loaded.encoder, self.runtime.device
        norm = final_norm(encoder)
        pieces = [
            torch.zeros(0, self.grid**2, len(self.layers), encoder.dim, device=device),
        ]
        for start in range(0, len(pixels), self.at_once):
            some = pixels[start : start + self.at_once].to(device).float() / 255
            with self.runtime.autocast():
                features = encoder(
                    normalise(some, self.loaded.mean, self.loaded.std), tuple(self.layers)
                )
                layers = [
                    norm(features.grids[layer].flatten(2).transpose(1, 2)).float()
                    for layer in self.layers
                ]
            pieces.append(torch.stack(layers, dim=2))
        return torch.cat(pieces)


class Supply:
    """Training windows: kept in memory where there is room, else encoded as they are asked for.

    Args:
        reader: Encodes.
        source: Images and masks of train.
        frames: How each image is cut.
        keys: The windows.
        known: Positions that the scale is of; they are encoded first where not all are kept.
        what: Called so in `progress`.
        progress: Called with what is done, how much of it, and all of it.
    """

    def __init__(
        self,
        reader: TokenReader,
        source: MaskSource,
        frames: Mapping[int, Frame],
        keys: Sequence[Key],
        *,
        known: NDArray[np.int64],
        what: str,
        progress: Progress | None,
    ) -> None:
        self.reader, self.source, self.frames, self.keys = reader, source, frames, keys
        self.kept: Encoded | None = None
        if reader.bytes_of(len(keys)) * reader.runtime.ranks_here <= KEPT_BYTES:
            self.kept = reader.table(source, frames, keys, what=what, progress=progress)
            self.known = self.kept.tokens[torch.from_numpy(known)]
        else:
            some = [keys[position] for position in known]
            read = reader.table(source, frames, some, what=what, progress=progress)
            self.known = read.tokens

    def batches(self, positions: Iterable[NDArray[np.int64]], *, rows: int) -> Iterator[Encoded]:
        """The windows at some positions of `keys`, batch by batch."""
        if self.kept is None:
            batches = ([self.keys[position] for position in some] for some in positions)
            yield from self.reader.batches(self.source, self.frames, batches, rows=rows)
            return
        for some in positions:
            picked = torch.from_numpy(some)
            yield Encoded(self.kept.tokens[picked], self.kept.targets[picked])

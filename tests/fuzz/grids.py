"""The kept grids of a detector's images: an array that is mapped, without a hash beside it."""

from __future__ import annotations

import io
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

from sercli.errors import UserError
from sercli.evals.detection.backbone import GridCache
from sercli.evals.detection.images import Canvas
from tests.support import mutations
from tests.support.fuzzing import put

COUNT = 3


@cache
def _frozen() -> Any:
    """What a layout follows from, of a `FrozenEncoder`."""
    return SimpleNamespace(dim=4, mixed=False, canvas=Canvas.of(32, patch_size=16))


def _packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@cache
def corpus() -> list[bytes]:
    frozen = _frozen()
    shape = (COUNT, frozen.dim, frozen.canvas.grid, frozen.canvas.grid)
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    archive = io.BytesIO()
    np.savez(archive, whole)
    start = _packed(whole)[:10]
    return [
        _packed(whole),
        _packed(whole[:2]),
        _packed(np.asfortranarray(whole)),
        archive.getvalue(),
        b"PK\x03\x04",
        start + b"(" * 118,
        b"",
    ]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Most of the time the header, as the numbers behind it are held by a hash alone."""
    if random.random() < 0.3:
        return mutations.changed(data, others, random)
    return mutations.shaken(data[:128], random) + data[128:]


def target(data: bytes) -> None:
    path = put("grids.npy", data)
    frozen = _frozen()
    if not GridCache.is_whole(path, COUNT, frozen):
        raise UserError("grids", "they are made again")
    GridCache(path, np.arange(COUNT))

"""A table of features that is kept in a file, for the next probe of the same encoder and images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli import distributed
from sercli.data import ImageSource
from sercli.encoders.files import header_of, read_safetensors, signed
from sercli.errors import UserError
from sercli.runs.files import write_atomic

_LARGEST_CACHE = 8 << 30  # bytes; larger tables stay in memory only
_PROBED_IMAGES = 8


def fingerprint(source: ImageSource, indices: NDArray[np.int64]) -> str:
    """What tells image sets apart: ids, labels, and the pixels of a few images; 16 hex digits."""
    digest = hashlib.sha256()
    for name in source.classes:
        digest.update(f"{name}\n".encode())
    for index in indices.tolist():
        digest.update(f"{source.identifier(index)} {source.labels[index]}\n".encode())
    places = np.linspace(0, len(indices) - 1, min(_PROBED_IMAGES, len(indices)))
    for index in indices[places.astype(int)].tolist():
        digest.update(source.load(index).tobytes())
    return digest.hexdigest()[:16]


def cached(
    path: Path | None, key: str, make: Callable[[], Tensor], *, shape: tuple[int, int, int]
) -> Tensor:
    """The table in the file at `path` if it was stored under this key, else a new one, kept there.

    Rank 0 decides and writes. A file that cannot be read, or is not what was written, is made
    again.

    Args:
        path: Where it is kept; None: nowhere.
        key: What it is of.
        make: Makes it.
        shape: [N, P, D] that it has.
    """
    if path is None:
        return make()
    stored = _stored_table(path, key, shape) if distributed.rank() == 0 else None
    if distributed.broadcast_object(stored is not None):
        if stored is None:
            _, tensors = read_safetensors(path)
            stored = tensors["features"]
        return stored
    table = make()
    if distributed.rank() == 0 and table.nbytes <= _LARGEST_CACHE:
        tensors = {"features": table}
        data = safetensors.torch.save(tensors, metadata=signed(tensors, {"key": key}))
        write_atomic(path, lambda file: file.write(data))
    distributed.barrier()
    return table


def _stored_table(path: Path, key: str, shape: tuple[int, int, int]) -> Tensor | None:
    if not path.exists() or header_of(path).get("key") != key:  # of other features: not read whole
        return None
    try:
        _, tensors = read_safetensors(path)
    except UserError:
        return None
    table = tensors.get("features")
    fits = table is not None and table.dtype == torch.float32 and tuple(table.shape) == shape
    return table if fits else None

"""Rows of fixed shape in memory that processes share: loader processes write, training reads.

A ring has slots, a slot the rows of one batch. It is one anonymous file: one descriptor whatever
the batch is, and not bounded by /dev/shm, which containers give 64 MB.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing.reduction
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sercli.errors import RunFailed

Row = Mapping[str, NDArray[Any]]  # a row of every column, to be written
_ALIGNMENT = 64  # bytes; of a column's start


@dataclass(frozen=True)
class Column:
    """One array of a batch.

    Attributes:
        shape: What one row holds, without the batch.
        dtype: NumPy's name of the type, e.g. "uint8".
        for_device: Whether batches of it go to the device that they are loaded for.
    """

    shape: tuple[int, ...]
    dtype: str
    for_device: bool = False

    def nbytes(self, rows: int) -> int:
        return rows * math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Ring:
    """`slots` times the columns of `rows` rows each; travels to processes started in any way.

    Raises:
        RunFailed: There is no room for it.
    """

    def __init__(self, layout: Mapping[str, Column], *, rows: int, slots: int) -> None:
        self.layout, self.rows, self.slots = dict(layout), rows, slots
        self._starts: dict[str, int] = {}
        size = 0
        for name, column in self.layout.items():
            self._starts[name] = size
            size += -(-column.nbytes(rows) // _ALIGNMENT) * _ALIGNMENT
        self._slot_bytes = size
        self.nbytes = max(1, size * slots)
        self._file = _anonymous_file(self.nbytes)
        self._memory = self._map()

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_file", "_memory")}
        return {**state, "_file": multiprocessing.reduction.DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = state["_file"].detach()
        self._memory = self._map()

    def __del__(self) -> None:
        if isinstance(getattr(self, "_file", None), int):
            os.close(self._file)

    def _map(self) -> NDArray[np.uint8]:
        # The array keeps the mapping alive for as long as anything looks into it.
        return np.frombuffer(mmap.mmap(self._file, self.nbytes), dtype=np.uint8)

    def slot(self, number: int) -> dict[str, NDArray[Any]]:
        """The columns of a slot: name → [rows, *shape], in place."""
        found = {}
        for name, column in self.layout.items():
            start = number * self._slot_bytes + self._starts[name]
            flat = self._memory[start : start + column.nbytes(self.rows)].view(column.dtype)
            found[name] = flat.reshape(self.rows, *column.shape)
        return found

    def page_lock(self) -> None:
        """Pin the memory where it is, so that CUDA copies from it without a wait.

        Raises:
            RunFailed: CUDA refuses.
        """
        error = torch.cuda.cudart().cudaHostRegister(self._memory.ctypes.data, self.nbytes, 0)
        if int(error):
            raise RunFailed(
                f"the {self.nbytes / 2**20:,.0f} MB through which images reach the GPU could not "
                f"be page-locked ({error}); use a smaller batch or fewer loader processes"
            )

    def page_unlock(self) -> None:
        """Undo `page_lock`."""
        torch.cuda.cudart().cudaHostUnregister(self._memory.ctypes.data)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ser-loader")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor

"""Time and peak extra memory of a function, in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

_T = TypeVar("_T")


class Measured:
    """A function in a fresh process, whose peak of memory is nobody else's; a context manager.

    Args:
        prepare: A module-level function that makes the inputs and returns what is measured: a
            function of plain values that returns a number.
        arguments: What `prepare` is called with, before the device; they are pickled.
        device: "cpu" or "cuda", the last argument of `prepare`.
        threads: CPU threads of the fresh process.
        first: What the first call is given, which warms up and tells the memory.

    Attributes:
        value: What the first call returned.
        peak_bytes: Largest extra memory during it (None where it cannot be measured).

    Raises:
        MemoryError: The process ended.
    """

    def __init__(
        self,
        prepare: Callable[..., Callable[..., float]],
        *arguments: Any,
        device: str,
        threads: int,
        first: tuple[Any, ...] = (),
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        job = (prepare, arguments, device, threads, first)
        self._process = context.Process(target=_child, args=(other, *job), daemon=True)
        self._process.start()
        other.close()
        self.value: float
        self.peak_bytes: int | None
        self.value, self.peak_bytes = self._answer()

    def __call__(self, *given: Any) -> float:
        """Seconds of a call."""
        self._pipe.send(given)
        seconds: float = self._answer()
        return seconds

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            ended = self._process.exitcode
            raise MemoryError(f"the measured process ended with status {ended}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


def _child(
    pipe: Any,
    prepare: Callable[..., Callable[..., float]],
    arguments: tuple[Any, ...],
    device: str,
    threads: int,
    first: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    call = prepare(*arguments, device)
    before = reset_peak(device)
    value = call(*first)
    pipe.send((value, peak_above(before, device)))
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        pipe.send(seconds_of(lambda: call(*given), device)[0])  # noqa: B023


def seconds_of(call: Callable[[], _T], device: str | torch.device) -> tuple[float, _T]:
    """How long a call takes on a device, and what it gives.

    On one CPU thread it is that thread's own time, which does not run while others have its core:
    on a machine for itself the same, on a shared one what can be compared.
    """
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    synchronise(device)
    start = clock()
    given = call()
    synchronise(device)
    return clock() - start, given


def synchronise(device: str | torch.device) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: str | torch.device) -> int | None:
    """Bytes in use now, with the peak counter set back; None where the system has none."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # freed memory that malloc keeps is no use
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def peak_above(before: int | None, device: str | torch.device) -> int | None:
    """Most bytes in use since `reset_peak`, beyond what it gave."""
    if before is None:
        return None
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")

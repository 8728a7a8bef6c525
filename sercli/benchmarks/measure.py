"""Time and peak extra memory of a function, in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """What a call cost.

    Attributes:
        seconds: The fastest of the timed calls.
        peak_bytes: Largest extra memory during a call (None where it cannot be measured).
        value: What the function returned, a plain number.
    """

    seconds: float
    peak_bytes: int | None
    value: float


def measure(
    prepare: Callable[..., Callable[[], float]],
    *arguments: Any,
    device: str,
    threads: int,
    repeats: int,
) -> Measured:
    """Run `prepare(*arguments, device)()` in a fresh process: its peak is nobody else's.

    Args:
        prepare: A module-level function that makes the inputs and returns what is measured.
        arguments: What `prepare` is called with, before the device; they are pickled.
        device: "cpu" or "cuda", the last argument of `prepare`.
        threads: CPU threads of the fresh process.
        repeats: Timed calls, after one to warm up.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    job = (prepare, arguments, device, threads, repeats)
    process = context.Process(target=_child, args=(sender, *job), daemon=True)
    process.start()
    sender.close()
    try:
        measured: Measured = receiver.recv()
    except EOFError:
        process.join()
        raise MemoryError(f"the measured process ended with status {process.exitcode}") from None
    process.join()
    return measured


def _child(
    sender: Any,
    prepare: Callable[..., Callable[[], float]],
    arguments: tuple[Any, ...],
    device: str,
    threads: int,
    repeats: int,
) -> None:
    torch.set_num_threads(threads)
    call = prepare(*arguments, device)
    before = _reset_peak(device)
    value = call()
    peak = _peak(device, before)
    times = []
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    sender.send(Measured(min(times), peak, value))


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int | None:
    """Bytes in use now, with the peak counter set back; None where the system has none."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: str, before: int | None) -> int | None:
    if before is None:
        return None
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")) - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")

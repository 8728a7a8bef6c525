"""Run a program on PyTorch's real CUDA dispatch without a GPU, and count what it does.

    python nullgpu.py [--report FILE] [--devices N] -m sercli pretrain --device cuda …

A preloaded stand-in for the CUDA runtime (nullgpu.cpp) hands out host memory, copies it, and counts
kernels and library calls without running them. So device and dtype checks, autocast, allocator,
streams and events are PyTorch's own; every *value* on the "device" is meaningless, and so is every
time. What it shows: an operation that a GPU would refuse; places where a step waits for the device;
copies from memory that is not pinned; kernels a step; peak memory.

FILE gets JSON: the counters, kernels by name, and `waits`, a count by file:line of the innermost
frame outside torch. Two runs that differ only in their number of steps give the figures of a step:
their difference, divided.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COUNTERS = (
    "launches",
    "libcalls",
    "sync_stream",
    "sync_device",
    "sync_event",
    "h2d_pageable",
    "h2d_pinned",
    "d2h",
    "d2d",
    "memset",
    "bytes_h2d",
    "bytes_d2h",
    "live",
    "peak",
    "allocs",
    "frees",
)  # as in nullgpu.cpp
SOURCES = ("nullgpu.cpp", "stubs.inc", "libcuda.cpp", "build.sh")


def build() -> Path:
    """The folder with the stand-in for this interpreter's torch; compiled where missing (4 s).

    Raises:
        subprocess.CalledProcessError: No g++, or no CUDA headers beside this torch.
    """
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    name = f"nullgpu-{os.getuid()}-{digest.hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    if folder.exists():
        return folder
    made = tempfile.mkdtemp(prefix=f"{name}-")
    try:
        script = str(HERE / "build.sh")
        subprocess.run(
            ["bash", script, sys.executable, made], check=True, stdout=subprocess.DEVNULL
        )
        Path(made).rename(folder)
    except OSError:  # another process was first, or else it is an error
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def environment(devices: int = 1) -> dict[str, str]:
    """What a process needs to see `devices` null GPUs."""
    folder = build()
    older = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / "nullgpu.so"),
        "LD_LIBRARY_PATH": f"{folder}:{older}" if older else str(folder),
        "NULLGPU_DEVICES": str(devices),
        "TORCH_DISABLE_NATIVE_JIT": "1",  # torch's own Triton operations would compile at run time
    }


def active() -> bool:
    """Whether this process runs on it."""
    return "nullgpu.so" in os.environ.get("LD_PRELOAD", "")


def prepare_torch() -> None:
    """Switch off what needs a driver (cuDNN, cuSOLVER) or values; before the first operation."""
    import torch
    from torch.nn.parallel import distributed as ddp

    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    with suppress(ImportError):  # attention over several lengths chooses its back end by itself
        from torch.nn.attention import varlen

        if hasattr(varlen, "_should_use_cudnn"):
            varlen._should_use_cudnn = lambda *_: False
    for name in ("svdvals", "eigvalsh"):  # by cuSOLVER: on the host instead
        setattr(torch.linalg, name, _on_host(getattr(torch.linalg, name)))
    # Ranks compare the shapes of their parameters over the device, which computes nothing.
    ddp._verify_param_shape_across_processes = lambda *_: None


def _on_host(function: Any) -> Any:
    import torch

    def call(matrix: Any, *args: Any, **kwargs: Any) -> Any:
        return function(torch.zeros(matrix.shape), *args, **kwargs).to(matrix.device)

    return call


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["LD_PRELOAD"].split(":")[0])


def counters() -> dict[str, int]:
    """Since the start or the last `reset`."""
    values = (ctypes.c_long * len(COUNTERS))()
    _library().nullgpu_stats(values)
    return dict(zip(COUNTERS, values, strict=True))


def reset() -> None:
    """Count from 0 again."""
    _library().nullgpu_reset()


def kernels() -> Counter[str]:
    """Launches by kernel, library calls and copies by kind."""
    with tempfile.NamedTemporaryFile() as file:
        _library().nullgpu_dump(file.name.encode())
        lines = Path(file.name).read_text().splitlines()
    return Counter({name: int(count) for count, name in (line.split("\t", 1) for line in lines)})


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts, by place, where PyTorch itself says that it waits for the device."""
    import torch

    found: Counter[str] = Counter()

    def show(message: Any, category: Any, filename: str, lineno: int, *_rest: Any) -> None:
        del category, filename, lineno
        if "synchronizing CUDA" in str(message):
            found[_place()] += 1

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def operators() -> Any:
    """A dispatch mode that counts: `with operators() as seen: step()`, then its two counters.

    `seen.kernels`: launches, library calls and fills by operator; a convolution counts 2, its
    backward 3, as with cuDNN (off here, it would launch for every image). `seen.gigabytes`: all
    inputs and outputs of operators that launch, an upper bound of traffic.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    most = {"convolution": 2, "cudnn_convolution": 2, "convolution_backward": 3}

    class Operators(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.kernels: Counter[str] = Counter()
            self.gigabytes: Counter[str] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            before = counters()
            out = func(*args, **(kwargs or {}))
            after = counters()
            name = func._schema.name.split("::")[1]
            count = sum(after[k] - before[k] for k in ("launches", "libcalls", "memset"))
            count = min(count, most.get(name, count))
            if count:
                self.kernels[name] += count
                leaves = tree_leaves((args, kwargs, out))
                tensors = {id(x): x for x in leaves if isinstance(x, torch.Tensor) and x.is_cuda}
                bytes_ = sum(x.numel() * x.element_size() for x in tensors.values())
                self.gigabytes[name] += bytes_ / 1e9
            return out

    return Operators()


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        own = Path(frame.filename).name in ("nullgpu.py", "warnings.py")
        if "/torch/" not in frame.filename and not own:
            return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
    return "(backward)"


def main() -> None:
    """Run a module on null GPUs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("-m", dest="module", required=True, help="MODULE and its arguments")
    end = sys.argv.index("-m") + 2 if "-m" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:end])
    if not active():
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(given.devices))
    prepare_torch()
    sys.argv = [given.module, *sys.argv[end:]]
    sys.path.insert(0, "")  # as `python -m` does
    status: object = 1
    with waits() if given.report else nullcontext() as found:
        try:
            runpy.run_module(given.module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            if found is not None and given.report:
                counted = {
                    "waits": dict(found.most_common()),
                    "kernels": dict(kernels().most_common()),
                }
                report = {**counters(), "status": status, **counted}
                given.report.write_text(json.dumps(report, indent=1))
    sys.exit(status)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

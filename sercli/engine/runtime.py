"""The device, the precision and the processes of a command."""

from __future__ import annotations

import platform
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from sercli import __version__, distributed, signals, stages
from sercli.engine import watch
from sercli.engine.bounds import bounds_here, collective_seconds
from sercli.engine.meeting import meet
from sercli.engine.processes import Started, ranks_here, started
from sercli.errors import SerError, UserError
from sercli.visible import counted, say

_T = TypeVar("_T")


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed.

    Attributes:
        device: This process's device.
        autocast_dtype: torch.bfloat16 for mixed precision, None for float32.
        ranks_here: Processes on this machine.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    ranks_here: int = 1

    @property
    def precision(self) -> str:
        """What results say of it: "fp32" or "bf16"."""
        return "fp32" if self.autocast_dtype is None else "bf16"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision for a forward pass, where the run uses it."""
        if self.autocast_dtype is None:
            yield
        else:
            with torch.autocast(self.device.type, dtype=self.autocast_dtype):
                yield


def choose_device(name: str | None) -> torch.device:
    """The device by name ("cpu", "cuda", "cuda:1"), or CUDA where there is one.

    Raises:
        UserError: Not a device of this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise UserError(f"--device {name}", "it must be cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {name}", "this machine has no usable CUDA device", "use cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}", f"this machine has {torch.cuda.device_count()} of them")
    return device


def runtime_for(device: torch.device, precision: str = "auto") -> Runtime:
    """Precision by name: "fp32", "bf16", or "auto" (bf16 on CUDA, fp32 on a CPU)."""
    mixed = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return Runtime(device, torch.bfloat16 if mixed else None, ranks_here())


@contextmanager
def process_group(device_name: str | None, *, stage: str = "evaluate") -> Iterator[torch.device]:
    """Join the processes that torchrun or srun started (if any) and leave them at the end.

    Args:
        device_name: As given, for `choose_device`.
        stage: What they begin with, for `watch`.

    Yields:
        This process's device: each process of a machine has a CUDA device of its own.

    Raises:
        UserError: What launchers set is contradictory, or there are more processes than devices.
        RunFailed: Some do not come, or do not go on.
    """
    one = started()
    if one is None:
        yield choose_device(device_name)
        return
    device, bounds = _device_of(one, device_name), bounds_here()
    if one.derived is not None and one.rank == 0:
        say(f"{one.world_size} tasks meet at {one.host}:{one.port} ({one.derived})", err=True)
    stages.enter("start")
    store = meet(one, watch.myself(one.rank), bounds["start"])
    with watch.watching(one, bounds):
        with signals.fatal():  # all have come, but it is no wait of Python's
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=one.rank,
                world_size=one.world_size,
                timeout=timedelta(seconds=collective_seconds(bounds)),
            )
        with watch.in_group():
            if device.type == "cuda":
                _require_own_devices(device)
            stages.enter(stage)
            yield device


def _device_of(one: Started, device_name: str | None) -> torch.device:
    """The device of one of several processes."""
    device = choose_device(device_name)
    if device_name is not None and ":" in device_name:
        raise UserError(
            f"--device {device_name} with {one.world_size} processes",
            "each takes a device of its own",
            "use --device cuda",
        )
    if device.type == "cuda":
        device = torch.device("cuda", _device_index(one.local_rank))
        torch.cuda.set_device(device)
    return device


def _device_index(local_rank: int) -> int:
    """The device of a process among those that it sees: that of its number, where it sees so many.

    SLURM's `--gpus-per-task=1` shows each task its own alone, as number 0. Whether two processes
    have come to one device is found out by `_require_own_devices`.
    """
    return local_rank % torch.cuda.device_count()


def _require_own_devices(device: torch.device) -> None:
    """Refuse two processes on one device: nccl would, after a while and in many words.

    Every rank finds the same and all of them leave; the first says why.

    Raises:
        UserError: On rank 0; SystemExit on the others.
    """
    # By gloo, as nccl is what must not be started yet.
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    mine = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine, group=group)
    dist.destroy_process_group(group)
    if len(set(everyone)) == len(everyone):
        return
    if dist.get_rank():
        raise SystemExit(UserError.exit_status)
    host = next(one[0] for one, users in Counter(everyone).items() if users > 1)
    there = [one for one in everyone if one[0] == host]
    raise _too_few_devices(len(there), len(set(there)), f" on {host}")


def _too_few_devices(processes: int, devices: int, where: str = "") -> UserError:
    return UserError(
        f"{processes} processes{where} for {counted(devices, 'CUDA device')}",
        "each needs one of its own",
        f"start {devices} there, show each another device (srun --gpus-per-task=1), "
        "or use --device cpu",
    )


def require_devices(device_name: str | None, processes: int) -> None:
    """Refuse more processes than this machine has devices, before any of them is started.

    Raises:
        UserError: There are too few CUDA devices.
    """
    if processes > 1 and choose_device(device_name).type == "cuda":
        count = torch.cuda.device_count()
        if processes > count:
            raise _too_few_devices(processes, count)


def decided_by_first(decide: Callable[[], _T]) -> _T:
    """What rank 0 finds, on every rank; if it fails, the others leave with its exit status."""
    if not distributed.active():
        return decide()
    if distributed.rank():
        found, status = distributed.broadcast_object(None)
        if status:
            raise SystemExit(status)
        return cast(_T, found)
    try:
        with signals.at_once():
            found = decide()
    except BaseException as error:  # also a bug, or what a plug-in raises: the others must not wait
        ended = signals.as_stop(error, "") or error
        status = ended.exit_status if isinstance(ended, SerError) else 1
        distributed.broadcast_object((None, status))
        raise
    distributed.broadcast_object((found, 0))
    return found


def describe() -> dict[str, Any]:
    """Versions, machine and git commit: what run.json records."""
    import timm
    import torchvision

    return {
        "versions": {
            "ser": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
        },
        "git_commit": _git_commit(),
        "world_size": distributed.world_size(),
        "threads": torch.get_num_threads(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that ser runs from; None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()

"""The device, the precision and the processes of a command."""

from __future__ import annotations

import os
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

from sercli import __version__, distributed, signals
from sercli.engine.processes import launched_by
from sercli.errors import SerError, UserError

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
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    return Runtime(device, torch.bfloat16 if mixed else None, ranks_here)


@contextmanager
def process_group(device_name: str | None) -> Iterator[torch.device]:
    """Join the processes that torchrun or srun started (if any) and leave them at the end.

    Yields:
        This process's device: each process of a machine has a CUDA device of its own.

    Raises:
        UserError: SLURM started several tasks without MASTER_ADDR and MASTER_PORT, or there are
            more processes than devices.
    """
    launcher = launched_by()
    if launcher is None:
        yield choose_device(device_name)
        return
    if launcher == "slurm":
        if not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise UserError(
                "srun started several tasks without MASTER_ADDR and MASTER_PORT",
                "the tasks have to find each other",
                "export MASTER_ADDR=$(scontrol show hostnames | head -n 1) MASTER_PORT=29500",
            )
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    device = choose_device(device_name)
    if device_name is not None and ":" in device_name:
        raise UserError(
            f"--device {device_name} with {os.environ['WORLD_SIZE']} processes",
            "each takes a device of its own",
            "use --device cuda",
        )
    own = device
    if device.type == "cuda":
        own = torch.device("cuda", _device_index(int(os.environ.get("LOCAL_RANK", "0"))))
        torch.cuda.set_device(own)
    with signals.fatal():  # as long as others are waited for
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30)
        )
    try:
        if device.type == "cuda":
            _require_own_devices(own)
        yield own
    finally:
        dist.destroy_process_group()


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
        f"{processes} processes{where} for {devices} CUDA device{'s' if devices > 1 else ''}",
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

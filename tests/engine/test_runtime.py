"""Which processes there are, and which device is whose; CUDA devices are made up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sercli.engine import runtime
from sercli.errors import UserError
from tests.support.processes import free_port, run_ranks

TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in os.environ:
        if name.startswith("SLURM_") or name in TORCHRUN:
            monkeypatch.delenv(name)


def show_devices(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "local_rank", "index"), [(4, 3, 3), (1, 0, 0), (1, 3, 0)])
def test_a_process_takes_the_device_of_its_number_or_the_only_one(
    monkeypatch, count, local_rank, index
):
    show_devices(monkeypatch, count)
    assert runtime._device_index(local_rank) == index


def test_more_processes_than_devices_are_refused_before_they_start(monkeypatch):
    show_devices(monkeypatch, 2)
    runtime.require_devices(None, 2)
    runtime.require_devices("cpu", 3)
    with pytest.raises(UserError, match="3 processes for 2 CUDA devices; each needs one of its"):
        runtime.require_devices("cuda", 3)
    show_devices(monkeypatch, 0)
    runtime.require_devices(None, 3)  # on the CPU


def test_a_numbered_device_is_refused_for_several_processes(monkeypatch):
    show_devices(monkeypatch, 2)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="--device cuda:1 with 2 processes; each takes a device"),
        runtime.process_group("cuda:1"),
    ):
        pass


# Each process sees `visible` devices, whose names are in DEVICES; gloo stands for nccl.
PROCESS = """
import os, sys, types
import torch, torch.distributed as dist
from sercli.engine import runtime
from sercli.errors import UserError
devices = os.environ["DEVICES"].split(",")
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: len(devices)
torch.cuda.set_device = lambda device: print(device)
torch.cuda.get_device_properties = lambda d: types.SimpleNamespace(uuid=devices[d.index])
start = dist.init_process_group
dist.init_process_group = lambda backend, **given: start("gloo", **given)
try:
    with runtime.process_group("cuda") as device:
        assert dist.get_world_size() == 2
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.run
@pytest.mark.parametrize(
    ("visible", "indices", "works"),
    [
        (("a", "b"), (0, 0), True),  # SLURM's --gpus-per-task=1
        (("a", "a"), (0, 0), False),
    ],
)
def test_each_process_takes_a_device_of_its_own(tmp_path, visible, indices, works):
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    steps = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env={
                **{k: v for k, v in os.environ.items() if k not in TORCHRUN},
                **common, **steps, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                "DEVICES": visible[rank], "OMP_NUM_THREADS": "1",
            },
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    assert [out.split() for out, _ in said] == [[f"cuda:{index}"] for index in indices]
    assert all((process.returncode == 0) == works for process in processes), said
    if not works:  # one line, by the first
        assert "2 processes on" in said[0][1]
        assert "for 1 CUDA device; each needs one of its own" in said[0][1]
        assert "each needs" not in said[1][1]


def deciding(rank, folder, port):
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=2, init_method=f"tcp://localhost:{port}"
    )
    try:
        for number, error in enumerate((UserError("no such thing"), ValueError("a plug-in's"))):

            def decide(error=error):
                raise error

            with pytest.raises((SystemExit, type(error))) as caught:
                runtime.decided_by_first(decide)
            left = getattr(caught.value, "code", type(caught.value).__name__)
            Path(folder, f"{rank}-{number}").write_text(str(left))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.run
def test_whatever_rank_0_fails_with_the_others_leave(tmp_path):
    run_ranks(deciding, str(tmp_path), free_port())
    left = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert left == {"0-0": "UserError", "1-0": "2", "0-1": "ValueError", "1-1": "1"}

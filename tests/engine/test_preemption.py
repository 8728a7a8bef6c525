"""What a signal does to `ser pretrain`, in this process (`-m run` sends them to one of its own)."""

import os
import signal

import pytest
import torch

from sercli import stages
from sercli.data.shapes.world import ShapesSource
from sercli.engine.preemption import Stopping
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process
from tests.support.training import SER


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_its_status(
    tmp_path, monkeypatch, capsys, number, status
):
    path, load, read = tmp_path / "run", ShapesSource.load, []

    def signalled(source, index):
        read.append(index)
        if len(read) == 30:  # in the third batch
            os.kill(os.getpid(), number)
        return load(source, index)

    monkeypatch.setattr(ShapesSource, "load", signalled)
    before = signal.getsignal(number)
    settings = (*SER, "train.monitor_epochs=0")
    arguments = ["pretrain", "--out", path, *(w for s in settings for w in ("--set", s))]
    found, errors = run_in_process(arguments, monkeypatch, capsys)
    assert found == status
    assert f"ser pretrain --resume {path}" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    run = RunDir.open(path)
    state = run.read_run()
    word = {75: "preempted", 130: "interrupted"}[status]
    assert (state["status"], state["exit_status"]) == (word, status)
    stopped = len(list(run.read_metrics()))
    assert run.checkpoint_steps()[-1] == stopped < 24
    assert run.checkpoint_verifies(stopped)
    assert signal.getsignal(number) == before


def test_a_rank_that_scores_alone_shows_that_it_goes_on():
    """COCO's intervals may take longer than the bound after which others take it for hung."""
    before = stages.here.moves
    Stopping(None, torch.device("cpu")).check_alone()
    assert stages.here.moves > before

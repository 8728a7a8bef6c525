"""No more loader processes than cores, but two in any case."""

import os

import pytest

from sercli.data import cores
from sercli.data.loading import default_workers
from sercli.engine import trainer
from tests.support.command_line import run_in_process
from tests.support.refusals import refused
from tests.support.training import SER, start, train


@pytest.fixture(params=[1, 4])
def available(request, monkeypatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(request.param)))
    return request.param


def test_what_is_allowed(available):
    most = {1: 2, 4: 4}[available]
    for workers in (None, 0, most):
        cores.require_loaders(workers, "--workers")
    cores.require_loaders(default_workers(), "--workers")
    told = {1: "1 core,", 4: "4 cores,"}[available]
    refused(lambda: cores.require_loaders(most + 1, "--workers"), f"--workers {most + 1}", told)


@pytest.mark.parametrize(
    "command",
    [
        *(["pretrain", "--set", "data.workers=100000"], ["knn", "timm:x", "--workers", "100000"]),
        *(["linear-eval", "x", "--workers=9999"], ["coco-detect", "x", "--workers=9999"]),
    ],
)
def test_commands_refuse_more_before_anything_starts(monkeypatch, capsys, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    status, told = run_in_process(command, monkeypatch, capsys)
    assert (status, told.count("\n")) == (2, 1)
    assert "loader processes a rank have something to do" in told
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_there_are_fewer_cores(tmp_path, monkeypatch, capsys):
    few = (*SER, "train.max_steps=1", "data.workers=3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(3)))
    run = start(tmp_path / "run", few)
    started: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(trainer, "load_rows", _noting(started))
    capsys.readouterr()
    with pytest.raises(_Enough):
        train(run)
    assert started == [2]
    assert "data.workers 3: this process may use fewer cores" in "".join(capsys.readouterr())


class _Enough(Exception):
    """Training needs to go no further."""


def _noting(started: list[int]):
    def load_rows(*_given, workers, **_named):
        started.append(workers)
        raise _Enough

    return load_rows

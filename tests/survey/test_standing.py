"""How runs stand, from files that are written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from sercli.errors import UserError
from sercli.runs.finding import find_runs
from sercli.runs.lease import leased
from sercli.runs.owner import Owner
from sercli.runs.reading import rows, rows_from_end
from sercli.runs.run_dir import RunDir
from sercli.survey.standing import standing_of, standings
from tests.support.run_grid import make_run


def at(path: Path, **more: object) -> RunDir:
    return RunDir(make_run(path, images=50, rows=20, predictions=False, **more))


def lease(run: RunDir, owner: Owner, *, age: float = 0.0) -> None:
    run.lease.write_text(json.dumps({**asdict(owner), "beat": 3}).ljust(1024))
    os.utime(run.lease, (time.time() - age, time.time() - age))


def elsewhere() -> Owner:
    return Owner("node7", "another boot", 4711, 99, "slurm 12")


def ended() -> Owner:
    here = Owner.here()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(here.host, here.boot, process.pid, 1)


def test_a_run_is_running_while_its_lease_is_held(tmp_path: Path) -> None:
    run = at(tmp_path / "run", status="running")
    assert standing_of(run).state == "dead"
    with leased(run):
        held = standing_of(run)
        assert (held.state, held.written) == ("running", True)
        assert held.holder is not None
        assert held.holder.owner.pid == os.getpid()
    assert standing_of(run).state == "dead"


def test_a_killed_process_leaves_a_dead_run(tmp_path: Path) -> None:
    run = at(tmp_path / "run", status="running")
    lease(run, ended())
    assert (standing_of(run).state, standing_of(run).written) == ("dead", False)


@pytest.mark.parametrize(
    ("age", "state", "written"), [(5.0, "running", True), (90.0, "unseen", True)]
)
def test_another_machines_process_is_believed_for_a_minute(
    tmp_path: Path, age: float, state: str, written: bool
) -> None:
    run = at(tmp_path / "run", status="running")
    lease(run, elsewhere(), age=age)
    found = standing_of(run)
    assert (found.state, found.written) == (state, written)
    assert found.holder is not None
    assert found.holder.silent == pytest.approx(age, abs=2)


@pytest.mark.parametrize("status", ["preempted", "interrupted", "failed", "done"])
def test_what_has_ended_says_how(tmp_path: Path, status: str) -> None:
    assert standing_of(at(tmp_path / "run", status=status)).state == status


def test_a_directory_that_collects_results_says_so(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "x", recipe=None, run={"status": "done", "evaluates": "timm:a"})
    assert standing_of(run).state == "results"


def test_steps_and_time_left_follow_from_recipe_and_rows(tmp_path: Path) -> None:
    run = at(tmp_path / "run", status="running", data={"kind": "shapes", "images": 40960})
    text = run.recipe.read_text()
    settings = dict(line.split(": ") for line in text.splitlines() if line.count(": ") == 1)
    batch, epochs = int(settings["  batch_size"]), float(settings["  epochs"])
    progress = standing_of(run).progress
    total = round(epochs * (40960 // batch))
    assert (progress.step, progress.total) == (200, total)
    assert progress.images_per_s == 400.0
    assert progress.seconds_left == pytest.approx((total - 200) * batch / 400.0)
    assert progress.loss == 5 / 200
    assert progress.knn == 42.0  # of row 200


def test_a_log_that_is_cut_or_foreign_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = at(tmp_path / "run", status="running")
    with open(run.metrics, "ab") as file:
        file.write(b'{"step": "x"}\n{"step": true}\n{"step": 1e999}\n\xff\xfe\n{"step": 210, "lo')
    assert standing_of(run).progress.step == 200
    run.metrics.write_bytes(b"")
    assert standing_of(run).progress.step is None
    run.metrics.write_text('{"step": 3, "epoch": 1e-300, "images_per_s": 1e308, "loss": 2}\n')
    assert standing_of(run).progress.loss == 2


def test_rows_from_the_end_are_all_rows_backwards(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "pad": "x" * (step % 700)}) for step in range(2000)]
    path.write_text("\n".join(lines))
    assert list(rows_from_end(path)) == list(reversed(list(rows(path))))
    assert [row["step"] for row in rows_from_end(path, holding='"step": 77,')] == [77]


def test_the_size_is_that_of_its_files(tmp_path: Path) -> None:
    run = at(tmp_path / "run")
    (tmp_path / "big").write_bytes(bytes(10_000))
    (run.path / "link").symlink_to(tmp_path / "big")
    os.link(run.metrics, run.path / "again")
    files = [file for file in run.path.rglob("*") if file.is_file() and not file.is_symlink()]
    expected = sum({file.stat().st_ino: file.stat().st_size for file in files}.values())
    assert standing_of(run).size == expected


def test_one_that_cannot_be_read_is_an_error_if_named_and_else_passed_over(tmp_path: Path) -> None:
    bad = at(tmp_path / "bad")
    at(tmp_path / "good")
    for content in (
        b"{",
        b'{"schema": 9, "status": "done"}',
        b'{"schema": 1, "status": 5}',
        b"\xff",
    ):
        bad.run.write_bytes(content)
        read, skipped = standings(find_runs([tmp_path]))
        assert [one.facts.directory.path.name for one in read] == ["good"]
        assert [one.path.name for one in skipped] == ["bad"]
        assert "bad/run.json" in skipped[0].why
        with pytest.raises(UserError, match=r"bad/run\.json"):
            standings(find_runs([bad.path]))

"""How a run stands is the same in tables and pages as in `ser runs list`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from sercli.report import compare_runs
from sercli.report.page.building import write_report
from sercli.runs.lease import leased
from sercli.runs.owner import Owner
from sercli.runs.run_dir import RunDir
from sercli.survey.standing import standing_of
from tests.support.run_grid import make_run


def ended() -> Owner:
    here = Owner.here()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(here.host, here.boot, process.pid, 1)


def elsewhere() -> Owner:
    return Owner("node7", "another boot", 4711, 99, "slurm 12")


def lease(run: RunDir, owner: Owner, *, age: float = 0.0) -> None:
    run.lease.write_text(json.dumps({**asdict(owner), "beat": 3}).ljust(1024))
    os.utime(run.lease, (time.time() - age, time.time() - age))


def shown(run: RunDir) -> tuple[str, str]:
    """The label of a run's row, and its status in CSV."""
    table = compare_runs([run.path])
    (row,) = csv.DictReader(io.StringIO(table.render("csv")))
    return table.rows[0].label, row["status"]


@pytest.mark.parametrize(
    ("owner", "age", "state"),
    [
        (None, 0.0, "dead"),
        (ended, 0.0, "dead"),
        (elsewhere, 5.0, "running"),
        (elsewhere, 90.0, "unseen"),
        (Owner.here, 0.0, "running"),
    ],
)
def test_a_table_says_what_ser_runs_says(
    tmp_path: Path, owner: Callable[[], Owner] | None, age: float, state: str
) -> None:
    run = RunDir(make_run(tmp_path / "run", images=40, rows=2, status="running"))
    if owner is not None:
        lease(run, owner(), age=age)
    assert standing_of(run).state == state
    label, status = shown(run)
    assert label.endswith(f" [{state}]")
    assert status == state
    told = json.loads(compare_runs([run.path]).render("json"))
    assert {one["status"] for one in told["provenance"]["runs"]} == {state}


def test_a_run_that_is_evaluated_has_ended(tmp_path: Path) -> None:
    run = RunDir(make_run(tmp_path / "run", images=40, rows=2))
    before = shown(run)
    with leased(run):
        assert shown(run) == before
    assert before[1] == "done"


def test_a_page_says_that_a_run_is_dead(tmp_path: Path) -> None:
    run = RunDir(make_run(tmp_path / "run", images=40, rows=2, status="running"))
    lease(run, ended())
    page = tmp_path / "page.html"
    write_report([run.path], page)
    text = page.read_text()
    assert "1 run: 1 dead, as no process runs it." in text
    assert "[dead]" in text
    assert "running" not in text.partition("<body")[2].lower()

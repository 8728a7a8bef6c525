"""`ser reproduce` as typed: refusals, what it shows, a small grid to its end and interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sercli.grids.children import Children
from sercli.grids.jobs import Places, plan_jobs
from sercli.grids.reading import find_grid, read_grid
from sercli.runs.run_dir import RunDir
from tests.grids.conftest import measured, trained
from tests.support.command_line import run_in_process, ser

GRID = """
set:
  data: {image_size: 16, num_train: 96, num_val: 32, workers: 0}
  model: {patch_size: 4, width: 16, depth: 4, num_heads: 2}
  method: {hidden_width: 16, output_width: 8}
  train: {batch_size: 12, max_steps: 4, warmup_epochs: 0.1, monitor_epochs: 0}
runs:
  none: shapes/moco-none
  ser: {recipe: shapes/moco-ser, set: {addon.projector_width: 8, addon.layer: 1}}
evaluations:
  knn: knn --workers 0
  probe: linear-eval --cached-features --epochs 2 --workers 0
claims:
  gain:
    text: SER gains
    comparisons: [{metric: knn/top1, of: ser, above: none}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no grid; a grid of runs is needed; add --world shapes --quick"),
        (["--quick"], "--quick without --world"),
        (["GRID", "--quick"], "--quick without --world"),
        (["--world", "shapes", "--data", "x"], "--world and --data x"),
        (["GRID", "--world", "shapes"], "one grid is done at a time"),
        (["shapes-quik"], "did you mean shapes-quick?"),
        (["GRID", "--only", "sr"], "did you mean ser"),
        (["GRID", "--table", "main"], "this grid marks runs for no table"),
        (["GRID", "--bench", "x.json"], "--bench without --dry-run"),
        (["GRID", "--dry-run", "--write", "x"], "--dry-run with --write; each is instead of"),
        (["GRID", "--write", "x", "--report-only"], "--write with --report-only"),
        (["--data", "nowhere"], "nowhere"),
        (["GRID", "--out", "GRID"], "is a file; a directory is needed there"),
        (["GRID", "--write", "GRID/x"], "is a file; a directory is needed there"),
        (["GRID", "--report-only"], "runs has no run of this grid; there must be one"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], message: str, grid: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", *(word.replace("GRID", str(grid)) for word in arguments)]
    status, said = run_in_process(words, monkeypatch, capsys)
    assert (status, message in said) == (2, True), said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shapes/moco-ser", "shapes/moco-sr", "ser-seed0: no recipe 'shapes/moco-sr'"),
        ("max_steps", "max_step", "none-seed0: unknown recipe key train.max_step"),
        ("knn --workers", "kn --workers", "did you mean knn"),
        ("--epochs 2", "--epoch 2", "No such option: --epoch"),
        ("--epochs 2", "--epochs two", "Invalid value for '--epochs'"),
        ("knn --workers 0", "export x", "export in the grid; an evaluator"),
        ("knn --workers 0", "knn --help", "asks for help"),
    ],
)
def test_a_grid_that_could_not_be_done_is_refused_before_its_first_job(
    old: str, new: str, message: str, grid: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    grid.write_text(GRID.replace(old, new))
    words = ["reproduce", grid, "--out", tmp_path / "out"]
    status, said = run_in_process(words, monkeypatch, capsys)
    assert (status, message in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_what_there_is_to_do_is_shown_with_commands_and_costs(
    grid: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    file = tmp_path / "bench.json"
    rows = [{"step": "shapes/moco-ser", "flops": 1e6, "seconds": 3600.0}]
    file.write_text(json.dumps({"device": "H", "tables": [{"benchmark": "step", "rows": rows}]}))
    words = ["reproduce", grid, "--out", tmp_path / "out", "--dry-run", "--bench", file]
    monkeypatch.setattr(sys, "argv", ["ser", *map(str, words)])
    from sercli.cli import app

    app([*map(str, words)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "4/6 ser-seed0, " in shown
    assert f"  ser knn {tmp_path}/out/runs/ser-seed0 --workers 0" in shown
    flops = [float(one) for one in re.findall(r"^\d/6 \w+-seed0, (\S+) FLOP", shown, re.M)]
    (total,) = re.findall(r"^pretrain +2 +(\S+) +(\S+)$", shown, re.M)
    assert float(total[0]) == pytest.approx(sum(flops), rel=0.01)
    assert float(total[1].replace(",", "")) == pytest.approx(sum(flops) / 1e6, rel=0.01)
    assert "hours: of one H" in shown
    assert not (tmp_path / "out").exists()


def numbers(out: Path) -> dict[str, Any]:
    """Every metric of every run, and what came out."""
    found: dict[str, Any] = {"outcome": json.loads((out / "outcome.json").read_text())}
    for path in sorted((out / "runs").iterdir()):
        for result in RunDir(path).read_results():
            found[f"{path.name}/{result.name}"] = result.metrics
        steps = [(row["step"], row["loss"]) for row in RunDir(path).read_metrics()]
        found[path.name] = steps
    return found


@pytest.mark.run
def test_a_grid_is_done_skipped_and_gone_on_with(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's out"
    first = ser("reproduce", str(grid), "--out", str(out))
    lines = first.stdout.splitlines()
    assert lines[0] == "6 jobs"
    assert lines[1].startswith("1/6 none-seed0: pretrain shapes/moco-none, ")
    assert lines[6].startswith("6/6 ser-seed0/probe, ")
    assert any(line.startswith("SER gains: open (corrected p = ") for line in lines)
    before = numbers(out)
    assert len(before) == 7
    # One result less, and a training that was killed at its end.
    (out / "runs/none-seed0/results/knn.json").unlink()
    RunDir(out / "runs/ser-seed0").update_run(status="running")
    again = ser("reproduce", str(grid), "--out", str(out)).stdout.splitlines()
    assert again[0].startswith("6 jobs, 4 of them done before")
    assert again[1].startswith("5/6 none-seed0/knn, ")
    assert "6/6 ser-seed0: pretrain shapes/moco-ser, gone on with" in again[2]
    assert numbers(out) == before


@pytest.mark.run
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_child_and_nothing_is_lost(
    grid: Path, tmp_path: Path, how: signal.Signals
) -> None:
    grid.write_text(GRID.replace("max_steps: 4", "max_steps: 100000").replace("96", "9600"))
    out = tmp_path / "out"
    process = started(grid, out)
    run = RunDir(out / "runs/none-seed0")
    wait_until(lambda: any(True for _ in run.read_metrics()) if run.metrics.exists() else False)
    holder = json.loads(run.lease.read_bytes().rstrip(b"\0 "))["pid"]
    process.send_signal(how)
    said, _ = process.communicate(timeout=120)
    expected = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert process.returncode == expected
    # The child saw the end of its parent by itself, where nobody could tell it.
    wait_until(lambda: not run.lease.exists())
    assert not Path(f"/proc/{holder}").exists() or how == signal.SIGKILL
    status = {signal.SIGINT: "interrupted"}.get(how, "preempted")
    assert run.read_run()["status"] == status
    assert run.read_run()["saved_step"] > 0
    if how != signal.SIGKILL:
        assert "ser: stopped; 0 of 6 jobs are done: repeat the command to go on" in said


def test_runs_of_an_earlier_edition_of_the_grid_are_not_in_its_tables(
    grid: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    places = Places(tmp_path / "out")
    for job in plan_jobs(read_grid(grid), places).jobs:
        if job.is_training:
            measured(trained(job), "knn", {"top1": 40.0 if job.run == "none" else 50.0})
    pages: list[tuple[str, ...]] = []
    monkeypatch.setattr(Children, "run", lambda _self, words, _log: pages.append(tuple(words)))
    words = ["reproduce", grid, "--out", places.out, "--report-only"]
    assert run_in_process(words, monkeypatch, capsys) == (0, "")
    assert "difference +10.00" in (places.out / "outcome.md").read_text()
    grid.write_text(GRID.replace("addon.layer: 1", "addon.layer: 2"))
    status, said = run_in_process(words, monkeypatch, capsys)
    assert status == 0
    assert "not in tables, page and outcome: " in said
    assert "addon.layer was 1, is 2" in said
    outcome = (places.out / "outcome.md").read_text()
    assert "ser and none not compared (ser: 1 seed of another recipe)" in outcome
    assert [str(places.run("ser", 0)) in page for page in pages] == [True, False]
    assert "ser-seed0" not in (places.out / "tables/results.csv").read_text()


@pytest.mark.slow
def test_what_the_miniature_prepares_can_be_made(tmp_path: Path) -> None:
    plan = plan_jobs(read_grid(find_grid("shapes")), Places(tmp_path))
    job = next(job for job in plan.jobs if not job.run)
    done = ser(*job.words)
    assert done.returncode == 0, done.stderr
    (evaluation,) = (
        one.evaluation for one in plan.jobs if one.evaluation and job.name in one.needs[1:]
        and one.name.startswith("none-")
    )  # fmt: skip
    named = {result.removeprefix("robustness--") for result in evaluation.results}
    there = {path.name for path in job.directory.iterdir()} - {"train", "imagenet-v2", "sketch"}
    there |= {f"imagenet-v2-{path.name}" for path in (job.directory / "imagenet-v2").iterdir()}
    assert named == there | {"imagenet-sketch"}


def pages(folder: Path) -> dict[str, bytes]:
    """What is written at the end and says nothing of clocks, byte by byte."""
    files = [*(folder / "out/tables").iterdir(), folder / "out/outcome.md"]
    return {file.name: file.read_bytes() for file in files if not file.name.startswith("cost")}


# A job, or none: at any moment; and who is told.
MOMENTS = (
    *(("pretrain", "parent"), ("pretrain", "group"), ("pretrain", "child"), ("knn", "child")),
    *(("linear-eval", "parent"), ("linear-eval", "group"), ("linear-eval", "child")),
    *(("", "parent"), ("report", "group"), ("report", "parent")),
)


@pytest.mark.slow
def test_interrupted_at_ten_random_moments_it_ends_with_the_same_tables(
    grid: Path, tmp_path: Path
) -> None:
    whole, often = tmp_path / "whole", tmp_path / "often"
    for folder in (whole, often):
        folder.mkdir()  # paths stand in tables: both are made as `out`
    process = started(grid, Path("out"), whole)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    draw = random.Random(0)
    for job, whom in MOMENTS:
        process = started(grid, Path("out"), often)
        child = None
        while process.poll() is None and job and child is None:
            child = child_with(job, process.pid)
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 4))
        how = draw.choice([signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
        with contextlib.suppress(ProcessLookupError):
            if whom == "group":
                os.killpg(process.pid, how)
            else:
                os.kill(child if whom == "child" and child else process.pid, how)
        said, _ = process.communicate(timeout=120)
        assert "Traceback" not in said
    process = started(grid, Path("out"), often)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert numbers(often / "out") == numbers(whole / "out")
    assert pages(often) == pages(whole)


def child_with(job: str, parent: int) -> int | None:
    """The process of a job that a `ser reproduce` has started."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if job in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                return int(child)
    return None


def started(grid: Path, out: Path, where: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sercli", "reproduce", str(grid), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)

"""`ser runs` as typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sercli.cli import app
from sercli.runs.lease import leased
from sercli.runs.run_dir import RunDir
from tests.support.hostile import HOSTILE
from tests.support.run_grid import make_run


def ser_runs(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["runs", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, images=40, rows=20, predictions=False)
    return tmp_path / "runs"


def test_a_list_fits_80_columns_and_says_what_runs(folder: Path) -> None:
    with leased(RunDir(folder / "b")):
        lines = ser_runs("list", folder).stdout.splitlines()
    assert lines[0].startswith(f"2 runs in {folder}: 1 running, 1 done")
    assert [line.split()[:2] for line in lines[2:]] == [["a", "done"], ["b", "running"]]
    assert max(map(len, lines[1:])) <= 80


def test_json_has_all_of_it_and_what_was_passed_over(folder: Path) -> None:
    (folder / "a" / "run.json").write_text("{")
    done = ser_runs("list", folder, "--format", "json")
    tree = json.loads(done.stdout)
    assert [Path(run["path"]).name for run in tree["runs"]] == ["b"]
    assert tree["skipped"] == [str(folder / "a")]
    assert tree["runs"][0]["results"] == [
        *("equiv-score", "knn", "linear-eval--ser", "robustness--imagenet-c")
    ]
    assert f"passed over: {folder / 'a/run.json'} is not valid JSON" in done.stderr


def test_a_page_has_results_differences_and_files(folder: Path) -> None:
    recipe = folder / "a" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  lr: ", "  lr: 1"))
    text = ser_runs("show", folder / "a").stdout
    result = json.loads((folder / "a/results/knn.json").read_text())["metrics"]
    assert f"{result['top1']:.2f}" in text
    assert f"[{result['top1/low']:.2f}, {result['top1/high']:.2f}]" in text
    assert "recipe shapes/moco-none, but for" in text
    assert "train.lr" in text
    assert "metrics.jsonl" in text


def test_prune_says_and_does_nothing_without_yes(folder: Path) -> None:
    cache = folder / "a" / "cache" / "features-train.safetensors"
    cache.parent.mkdir()
    cache.write_bytes(bytes(2048))
    said = ser_runs("prune", folder).stdout
    assert "2.0 KiB  cache" in said
    assert "nothing was removed (--yes does it)" in said
    assert cache.exists()
    assert "removed: 2.0 KiB are free again" in ser_runs("prune", folder, "--yes").stdout
    assert not cache.exists()
    assert "nothing can go" in ser_runs("prune", folder).stdout


def test_watch_once_is_the_list(folder: Path) -> None:
    assert ser_runs("watch", folder, "--once").stdout == ser_runs("list", folder).stdout


def test_names_steer_no_terminal(tmp_path: Path) -> None:
    for name in (name for name in HOSTILE if "/" not in name):
        make_run(tmp_path / name, images=40, rows=3, predictions=False, recipe_name=name)
    for command in (["list"], ["prune"], ["watch", "--once"]):
        out = ser_runs(*command, tmp_path).stdout
        assert all(line.isprintable() for line in out.splitlines()), command
    out = ser_runs("show", tmp_path / HOSTILE[4]).stdout
    assert all(line.isprintable() for line in out.splitlines())


def test_without_a_folder_runs_is_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert ser_runs("list").stdout.startswith("2 runs in runs")
    monkeypatch.chdir(folder / "a")
    done = CliRunner().invoke(app, ["runs", "list"])
    assert "there is no folder runs here" in str(done.exception)


@pytest.mark.run
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 75)])
def test_watch_ends_well_on_ctrl_c(folder: Path, number: int, status: int) -> None:
    command = [sys.executable, "-m", "sercli", "runs", "watch", str(folder), "--every", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"a  done, step 200/" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == status

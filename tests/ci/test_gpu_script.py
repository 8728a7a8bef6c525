"""`.ci/gpu`, the script for an hour on a GPU: what it says of stages, and what it keeps."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / ".ci" / "gpu"


@pytest.fixture
def gpu():
    loader = SourceFileLoader("ci_gpu", str(SCRIPT))
    spec = importlib.util.spec_from_loader("ci_gpu", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_limits_are_those_of_the_whole(gpu):
    assert sum(stage.limit for stage in gpu.STAGES.values()) <= gpu.IN_ALL
    assert all(stage.run.__doc__ for stage in gpu.STAGES.values())


def write_notes(out, stage, *rows):
    lines = [
        json.dumps({"what": what, "value": value, "ok": ok, **m}) for what, value, ok, m in rows
    ]
    (out / f"{stage}.jsonl").write_text("\n".join(lines) + "\n")


def test_the_table_counts_tests_and_shows_what_is_wrong(gpu, tmp_path):
    many = {"one_of_many": True}
    write_notes(
        tmp_path,
        "tests",
        ("test_a", "passed", True, many),
        ("test_b", "a | b", False, many),
        ("test_c", "skipped", None, many),
    )
    write_notes(tmp_path, "steps", ("none, images/s", 1234.567, None, {}))
    text = gpu.table({"tests": gpu.Ended("ended", 7), "steps": gpu.Ended("cut off", 60)}, tmp_path)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines()[2:]]
    assert ["| ", "of 3", "1 passed, 1 skipped, 1 failed", "|"] in [
        [r[0] + " ", *r[1:]] for r in rows
    ]
    assert "| | test_b | a \\| b | **wrong** |" in text
    assert "test_a" not in text
    assert "| | none, images/s | 1235 |  |" in text
    assert "cut off, 60 s | **wrong** |" in text


SLOW = """
import json, sys, time
out, stage = sys.argv[sys.argv.index("--out") + 1], sys.argv[sys.argv.index("--stage") + 1]
with open(f"{out}/{stage}.jsonl", "a") as file:
    print(json.dumps({"what": "begun", "value": 1, "ok": True}), file=file, flush=True)
time.sleep(60 if stage == "tests" else 0)
sys.exit(stage == "steps")
"""


def test_a_stage_that_is_cut_off_loses_nothing_and_the_next_one_runs(gpu, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(SLOW)
    monkeypatch.setattr(gpu, "__file__", str(fake))
    for name in ("tests", "group", "steps"):
        monkeypatch.setitem(gpu.STAGES, name, gpu.STAGES[name]._replace(limit=6))
    assert not gpu.all_stages(
        ["tests", "group", "steps"], tmp_path, None, heading="A GPU", patience=1
    )
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("A GPU\n\n| stage")
    assert text.count("begun") == 3
    said = [
        line.split("| ")[3].split(",")[0] for line in text.splitlines()[2:] if "| begun" not in line
    ]
    assert said[-3:] == ["cut off", "ended", "status 1"]
    assert gpu.all_stages(["group"], tmp_path, None, heading="A GPU", patience=1)


def test_the_intervals_of_cpu_runs_are_kept(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "INTERVALS", tmp_path / "kept.json")
    facts = {"device": "cpu", "recipe_name": "shapes/moco-ser", "seed": 0, "versions": {}}
    runs = []
    for name, least in (("one", 0), ("other", 0.5)):
        runs.append(tmp_path / name)
        (runs[-1] / "results").mkdir(parents=True)
        (runs[-1] / "run.json").write_text(json.dumps(facts))
        metrics: dict[str, dict[str, float]] = {}
        for number, (file, metric) in enumerate(gpu.COMPARED, 1):
            low, high = number - 1 + least, number + 1 + least
            metrics.setdefault(file, {})[metric] = number
            metrics[file] |= {f"{metric}/low": low, f"{metric}/high": high}
        for file, found in metrics.items():
            path = runs[-1] / "results" / f"{file}.json"
            path.write_text(json.dumps({"metrics": found}))
    gpu.record(runs)
    kept = json.loads((tmp_path / "kept.json").read_text())["intervals"]
    assert kept["knn top1"] == [0, 2.5]
    assert kept["equiv-score es/block03/hflip"] == [2, 4.5]
    (runs[1] / "run.json").write_text(json.dumps({**facts, "device": "NULL H100"}))
    with pytest.raises(SystemExit, match="is shapes/moco-ser on NULL H100"):
        gpu.record(runs)


def test_wheels_are_installed_beside_the_packages(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    wheels, name = tmp_path / "wheels", "sercli_test_wheel"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(
            f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
        )
        wheel.writestr(
            f"{name}-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}-1.dist-info/RECORD", "")
    gpu.with_wheels(wheels, tmp_path / "packages")
    assert importlib.util.find_spec(name) is not None


def test_what_is_missing_is_said_before_anything_begins(gpu, capsys, monkeypatch):
    absent = {"pydantic_core", "pycocotools"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else name)
    with pytest.raises(SystemExit) as end:
        gpu.say_what_is_missing()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "pycocotools is missing: no detection in the stage tests" in said
    assert "missing: pydantic_core (give their --wheels)" in said


@pytest.mark.run
def test_it_does_not_begin_without_a_device(tmp_path):
    process = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "out"],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 2
    assert "torch sees no CUDA device" in process.stderr

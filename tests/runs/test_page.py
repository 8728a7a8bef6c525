"""sercli/runs/README.md against what a run writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sercli.cli import app
from sercli.runs.result import protocol_id
from sercli.runs.run_dir import RunDir
from tests.support.pages import below, blocks, codes, table
from tests.support.training import SER

PAGE = Path(__file__).parents[2] / "sercli" / "runs" / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps with a measurement of every kind, and what kNN makes of it."""
    path = tmp_path_factory.mktemp("page") / "run"
    settings = (*SER, "train.max_steps=4", "train.monitor_epochs=0.25", "train.tensorboard=false")
    settings += ("train.keep_epochs=0.25",)
    given = [argument for setting in settings for argument in ("--set", setting)]
    for arguments in (["pretrain", "--out", path, *given], ["knn", path, "--workers", "0"]):
        done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return RunDir(path)


def test_the_files_of_a_run_are_on_the_page(run):
    tree = [line.split()[0] for line in blocks(PAGE, "")[0].splitlines() if line[:1] != " "]
    told = {name.partition("/")[0] for name in tree}
    assert {file.name for file in run.path.iterdir()} <= told
    named = {value for value in vars(RunDir).values() if isinstance(value, property)}
    files = {prop.fget(RunDir(Path("run"))).name for prop in named}
    assert files <= told


def test_the_keys_of_run_json_are_on_the_page(run):
    rows = table(PAGE, "## run.json")
    told = {key for keys, _ in rows for key in codes(keys)}
    record = run.read_run()
    assert set(record) == told - {"evaluates", "changed", "weights"}
    inside = {codes(keys)[0]: set(codes(meaning)) for keys, meaning in rows}
    assert inside["status"] >= {record["status"]}
    inside["data"].remove("sample")  # of files, and the embedded world has none
    for section in ("data", "parameters", "flops", "timings"):
        assert set(record[section]) == inside[section]


def test_the_keys_of_metrics_jsonl_are_on_the_page(run):
    told = set(codes(below(PAGE, "## metrics.jsonl"))) - {"train.monitor_epochs"}
    told -= {"peak_memory_gib"}  # on CUDA alone
    assert {key for row in run.read_metrics() for key in row} == told


def test_the_result_of_the_page_is_as_one_that_was_written(run):
    shown = json.loads(blocks(PAGE, "json")[0])
    written = json.loads(run.result("knn").read_text())
    assert list(shown) == list(written)
    for key in ("protocol", "model"):
        assert list(shown[key]) == list(written[key])
    assert written["protocol_id"] == protocol_id(written["protocol"])
    for key in ("data", "metrics"):
        assert set(shown[key]) - {"…"} <= set(written[key])

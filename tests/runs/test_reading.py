"""JSON and files of ours, looked at before they are believed."""

import json
import os

import numpy as np
import pytest

from sercli.runs import result
from sercli.runs.arrays import LARGEST, read_arrays
from sercli.runs.files import read_json, write_json
from sercli.runs.reading import parse_json, rows, shown
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from tests.fuzz import result_json, run_json
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, ["64 levels"]),
        ("[" * 65 + "]" * 65, ["64 levels"]),
        ('{"a": NaN}', ["NaN"]),
        ("[-Infinity]", ["Infinity"]),
        ("[1e999]", ["float64"]),
        ("[1" + "0" * 310 + "]", ["float64"]),
        ("[" + "7" * 5000 + "]", ["5000 digits"]),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', ["'c' stands twice"]),
        ('["\\ud800"]', ["surrogates"]),
        ('{"\\udfff": 1}', ["surrogates"]),
        ("\ufeff{}", ["BOM"]),
    ],
)
def test_json_that_is_not_plain_is_one_line(tmp_path, text, words):
    refused(lambda: parse_json(text, "it"), "it ", *words)
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    refused(lambda: read_json(tmp_path / "x.json"), "x.json", *words)


def test_json_that_is_plain_is_read():
    value = {"a": [1, -0.5, 1e308, None, True, "é\U0001f600"], "b": {}}
    assert parse_json(json.dumps(value), "it") == value
    assert parse_json("[" * 64 + "]" * 64, "it")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: read_json(tmp_path / "pipe"), "regular file")
    refused(lambda: read_json(tmp_path), "is a directory")
    refused(lambda: read_json(tmp_path / ("n" * 300)), "cannot read")
    (tmp_path / "large").write_bytes(b" " * (17 << 20))
    refused(lambda: read_json(tmp_path / "large"), "larger than 16 MiB")


def test_a_value_is_shown_short():
    assert shown("x" * 1000).count("x") < 60
    assert len(shown([[1] * 1000] * 1000)) < 100
    assert shown(3) == "3"


def changed(value, path, new):
    value = json.loads(json.dumps(value))
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = new
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metrics", "top1"), "20"),
        (("metrics", "top1"), [1]),
        (("metrics", "top1"), True),
        (("metrics",), None),
        (("metrics",), [1, 2]),
        (("data",), None),
        (("data", "n"), -1),
        (("data", "n"), 1.5),
        (("data", "partial"), "no"),
        (("data", "warnings"), "text"),
        (("model",), []),
        (("model", "key"), 3),
        (("protocol",), None),
        (("protocol", "name"), [1]),
        (("protocol", "name"), "../../x"),
        (("protocol", "variant"), "a/b"),
        (("protocol", "settings"), 3),
        (("created",), "../x"),
        (("predictions_sha256",), "5"),
    ],
)
def test_a_result_of_a_wrong_kind_is_one_line(tmp_path, path, value):
    stored = changed(json.loads(result_json.corpus()[0]), path, value)
    file = tmp_path / "knn.json"
    file.write_text(json.dumps(stored))
    refused(lambda: Result.from_file(file), "knn.json", path[0])


def test_a_result_is_held_to_its_content_if_it_says_so(tmp_path):
    file = tmp_path / "knn.json"
    stored = json.loads(result_json.corpus()[0])
    keys = ("protocol", "model", "data", "metrics", "created")
    written = Result(**{key: stored[key] for key in keys}).to_json()
    file.write_text(json.dumps(written, indent=3))
    assert Result.from_file(file).metrics == stored["metrics"]
    edited = changed(written, ("metrics", "top1"), 99.0)
    file.write_text(json.dumps(edited))
    refused(lambda: Result.from_file(file), "content_sha256")
    del edited["content_sha256"]
    file.write_text(json.dumps(edited))
    assert Result.from_file(file).metrics["top1"] == 99.0


AWKWARD = {
    "b": 1e-07,
    "a": 0.1 + 0.2,
    "a/low": -1e22,
    "a b": 5e-324,
    "none": None,
    "whole": 3,
    "é": 1.5,
    'q": {': 2.0,
    "}": 0.0,
    "\\": 1e16,
    "a!": 1e-5,
}


@pytest.mark.parametrize("metrics", [AWKWARD, {"top1": 1e-07, "a": 0.3, "none": None}, {}])
@pytest.mark.parametrize("layout", [{"indent": 2}, {"indent": 1}, {}, {"separators": (",", ":")}])
def test_numbers_of_any_kind_are_what_was_written_in_any_layout(tmp_path, metrics, layout):
    file = tmp_path / "knn.json"
    stored = json.loads(result_json.corpus()[0])
    rest = {key: stored[key] for key in ("protocol", "model", "data", "created")}
    written = Result(**rest, metrics=metrics).to_json()
    file.write_text(json.dumps(written, **layout))
    assert Result.from_file(file).metrics == metrics
    for name, value in metrics.items():
        file.write_text(json.dumps(changed(written, ("metrics", name), 0.25), **layout))
        assert value != 0.25
        refused(lambda: Result.from_file(file), "content_sha256")


def test_a_result_as_ser_writes_it_is_hashed_as_it_stands(tmp_path, monkeypatch):
    file = tmp_path / "knn.json"
    stored = json.loads(result_json.corpus()[0])
    keys = ("protocol", "model", "data", "metrics", "created")
    write_json(file, Result(**{key: stored[key] for key in keys}).to_json())
    monkeypatch.setattr(result, "content_sha256", None)
    assert Result.from_file(file).metrics == stored["metrics"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), None),
        (("status",), ""),
        (("exit_status",), "3"),
        (("exit_status",), 1000),
        (("error",), [1]),
        (("titles",), "SER"),
        (("titles", "addon"), 3),
        (("timings",), []),
        (("timings", "train_seconds"), "3"),
        (("flops", "step"), {}),
        (("evaluates",), 5),
        (("seed",), "0"),
    ],
)
def test_a_run_json_of_a_wrong_kind_is_one_line(tmp_path, path, value):
    (tmp_path / "run.json").write_text(json.dumps(changed(run_json.RUN, path, value)))
    refused(RunDir(tmp_path).read_run, "run.json", path[0])


def test_what_a_newer_version_adds_passes(tmp_path):
    more = {**run_json.RUN, "new": {"a": [1]}, "timings": {**run_json.RUN["timings"], "warm": "x"}}
    (tmp_path / "run.json").write_text(json.dumps(more))
    assert RunDir(tmp_path).read_run() == more


def test_rows_are_read_and_all_else_passed_over(tmp_path):
    lines = [
        b'{"step": 1, "loss": 2.5, "note": "x"}',
        b"[1, 2]",
        b"5",
        b'{"step": "x"}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 1, "lo',
        b'{"step": 2, "loss": NaN}',
        b'{"step": 2, "loss": [1]}',
        bytes(range(128, 256)),
        b'{"step": 3, "loss": ' + b"9" * 2_000_000 + b"}",
        b'{"step": 4, "loss": null}',
    ]
    run = RunDir(tmp_path)
    run.metrics.write_bytes(b"\n".join(lines))
    assert [row["step"] for row in run.read_metrics()] == [1, 4]
    assert run.logged("loss") == [2.5]
    assert len(list(rows(run.metrics))) == 5


def test_arrays_beyond_their_declared_size_are_not_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(LARGEST // 8 + 100))
    assert path.stat().st_size < LARGEST // 500
    refused(lambda: read_arrays(path, ["a"], sha256=None), "x.npz", "at most")
    np.savez(path, a=np.array([None, {}]))
    refused(lambda: read_arrays(path, ["a"], sha256=None), "object")
    np.savez(path, a=np.arange(3), b=np.array(["x", "yy"]))
    assert read_arrays(path, ["a", "c"], sha256=None) is None
    read = read_arrays(path, ["a", "b"], sha256=None)
    assert [array.tolist() for array in read.values()] == [[0, 1, 2], ["x", "yy"]]

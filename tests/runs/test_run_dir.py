"""The run directory: nothing is ever half written, and results cannot be edited unseen."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading

import pytest

from sercli.errors import RunFailed, UserError
from sercli.runs import run_dir
from sercli.runs.files import file_sha256, write_atomic, write_json
from sercli.runs.places import next_free
from sercli.runs.result import Result, protocol_id
from sercli.runs.run_dir import RunDir


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run", recipe="seed: 1\n", run={"status": "running"})


def result(**changes):
    values = dict(
        protocol={"name": "knn", "variant": None, "settings": {"k": [10, 20], "t": 0.07}},
        model={"source": "runs/x", "key": "student", "matched": 152, "expected": 152},
        data={"path": "shapes", "n": 3, "partial": False},
        metrics={"top1": 12.5, "es": None},
    )  # fmt: skip
    return Result(**{**values, **changes})


# -- writing --------------------------------------------------------------------------------------


def test_a_file_is_written_whole_with_ordinary_permissions(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.bin"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    write_atomic(path, lambda file: file.write(b"newer"))
    assert path.read_bytes() == b"newer"


@pytest.mark.parametrize(
    "failure", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.json"
    path.write_text("old")

    def write(file):
        file.write(b"half of it")
        raise failure

    expected = UserError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_fails_the_run(tmp_path, number):
    path = tmp_path / "file"
    path.write_text("old")

    def write(_):
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunFailed, match="free space") as caught:
        write_atomic(path, write)
    assert str(path) in one_line(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        write_json(tmp_path / "file" / "x.json", {})
    assert "x.json" in one_line(caught.value)
    with pytest.raises(UserError) as caught:
        RunDir.create(tmp_path / "file" / "run", recipe=None, run={})
    assert "run" in one_line(caught.value)

    def read_only(*_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for function in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, function, read_only)
    for call in (
        lambda: write_json(tmp_path / "x.json", {}),
        lambda: RunDir.create(tmp_path / "run", recipe=None, run={}),
    ):
        with pytest.raises(UserError, match="Read-only"):
            call()
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="permission"):
            write_json(tmp_path / "x.json", {})
        with pytest.raises(UserError, match="permission"):
            RunDir.create(tmp_path / "run", recipe=None, run={})
    finally:
        tmp_path.chmod(0o755)


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"n": 0, "filler": "x" * 100_000})
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(len(json.loads(path.read_text())["filler"]))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        write_json(path, {"n": number, "filler": "x" * 100_000})
    stop.set()
    reader.join()
    assert seen == {100_000}


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert names(tmp_path) == []


# -- creating -------------------------------------------------------------------------------------


def test_a_run_directory_appears_whole(tmp_path):
    path = tmp_path / "deep" / "run"
    run = RunDir.create(path, recipe="seed: 3\n", run={"status": "running", "seed": 3})
    assert names(path) == ["recipe.yaml", "run.json"]
    assert run.recipe.read_text() == "seed: 3\n"
    stored = run.read_run()
    assert (stored["schema"], stored["status"], stored["seed"]) == (1, "running", 3)
    assert stored["created"].endswith("Z")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert path.stat().st_mode == plain.stat().st_mode
    assert names(path.parent) == ["run"]
    with pytest.raises(UserError, match="exists"):
        RunDir.create(path, recipe=None, run={})
    assert run.read_run() == stored
    run.update_run(status="done", wall=3.5)
    assert run.read_run() == {**stored, "status": "done", "wall": 3.5}


def test_a_run_directory_that_fails_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RunDir.create(tmp_path / "run", recipe="x", run={"loss": float("inf")})
    assert names(tmp_path) == []


def test_a_draft_is_removed_when_the_block_fails(tmp_path):
    def fill():
        with run_dir.replacing_directory(tmp_path / "x", what="it") as draft:
            (draft / "big").write_text("data")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert names(tmp_path) == []


def test_opening(tmp_path, run):
    assert RunDir.open(str(run.path)) == run
    for path, what in ((tmp_path, "no run.json"), (tmp_path / "nothing", "does not exist")):
        with pytest.raises(UserError, match=what) as caught:
            RunDir.open(path)
        one_line(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", '{"schema": 2}', '{"status": "done"}', "\x00", "nul"]
)
def test_a_broken_run_json_is_one_line(run, text):
    run.run.write_text(text)
    with pytest.raises(UserError) as caught:
        run.read_run()
    assert "run.json" in one_line(caught.value)
    run.run.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError):
        run.read_run()


def test_next_free(tmp_path):
    assert next_free(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").touch()
    assert next_free(tmp_path / "a") == tmp_path / "a-3"


def test_file_names(run):
    assert run.checkpoint(100).name == "step-00000100.pt"
    assert run.checkpoint_hash(100).name == "step-00000100.pt.sha256"
    assert run.checkpoint_steps() == []
    for step in (100, 20, 123456789):
        run.checkpoint(step).parent.mkdir(exist_ok=True)
        run.checkpoint(step).touch()
        run.checkpoint_hash(step).touch()
    assert run.checkpoint_steps() == [20, 100, 123456789]
    path = run.path / "x"
    path.write_bytes(b"abc" * 1000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_run_dir_needs_no_torch():
    code = "import sys, sercli.runs.run_dir, sercli.recipe.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- metrics --------------------------------------------------------------------------------------


def test_metrics_are_appended_and_read_back(run):
    assert list(run.read_metrics()) == []
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for row in rows:
        run.append_metrics(row)
    assert list(run.read_metrics()) == rows
    assert run.metrics.read_text().count("\n") == 3


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_resumed_run_continues_after_a_half_line(run, cut):
    for step in (10, 20, 30, 40):
        run.append_metrics({"step": step, "loss": 0.5, "note": "Übung"})
    data = run.metrics.read_bytes()
    run.metrics.write_bytes(data[:-cut])
    rows = [row["step"] for row in run.read_metrics()]
    assert rows == ([10, 20, 30] if cut > 1 else [10, 20, 30, 40])
    run.truncate_metrics(20)
    assert [row["step"] for row in run.read_metrics()] == [10, 20]
    run.append_metrics({"step": 30, "loss": 0.4})
    assert [row["step"] for row in run.read_metrics()] == [10, 20, 30]
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())


def test_truncating_keeps_what_is_at_the_step_and_needs_no_file(run):
    run.truncate_metrics(5)
    assert list(run.read_metrics()) == []
    for step in (4, 5, 6):
        run.append_metrics({"step": step})
    run.truncate_metrics(5)
    assert [row["step"] for row in run.read_metrics()] == [4, 5]
    run.truncate_metrics(0)
    assert list(run.read_metrics()) == []


@pytest.mark.parametrize(
    "line",
    [bytes(range(128, 256)), b"[1, 2]", b"5", b'{"step": "x"}', b'{"step": true}', b'{"step": NaN}',
     b"[" * 100_000, b'{"step": 1, "lo', b'"step"'],
)  # fmt: skip
def test_lines_that_are_no_rows_are_left_out_and_counted(run, line):
    rows = [b'{"step": 1}', line, b'{"step": 2}', b"", b'{"step": 3}', line]
    run.metrics.write_bytes(b"\n".join(rows))
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert run.truncate_metrics(2) == 1  # the last one may have been cut by a kill
    assert run.metrics.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_row_makes_no_directory(run):
    shutil.rmtree(run.path)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        run.append_metrics({"step": 1})
    with pytest.raises(RunFailed, match="has vanished"):
        run.require_there()
    with pytest.raises(RunFailed, match="has vanished"):
        run.detection("x").require_there()
    assert not run.path.exists()


def test_metrics_that_cannot_be_written(run):
    run.metrics.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        run.append_metrics({"step": 1})


# -- results --------------------------------------------------------------------------------------


def shuffled(value):
    """The same mapping with its keys in reverse order, all the way down."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return value


def test_the_protocol_id_is_of_the_rule_not_of_the_order_of_its_keys():
    protocol = {
        "name": "knn",
        "version": 1,
        "settings": {"k": 20, "t": 0.07, "a": {"b": 1, "c": 2}},
    }
    expected = hashlib.sha256(
        b'{"name":"knn","settings":{"a":{"b":1,"c":2},"k":20,"t":0.07},"version":1}'
    ).hexdigest()[:12]
    assert protocol_id(protocol) == protocol_id(shuffled(protocol)) == expected
    for change in ({"version": 2}, {"settings": {"k": 10, "t": 0.07}}, {"variant": "x"}):
        assert protocol_id({**protocol, **change}) != expected
    assert protocol_id(json.loads(json.dumps(protocol))) == expected


def test_a_result_comes_back(run):
    first = result()
    path = run.write_result(first)
    assert path == run.results / "knn.json"
    assert run.read_results() == [first]
    stored = json.loads(path.read_text())
    assert stored["schema"] == 1
    assert stored["protocol_id"] == first.protocol_id
    assert stored["metrics"]["es"] is None
    assert sorted(stored) == [
        "content_sha256", "created", "data", "metrics", "model", "protocol", "protocol_id",
        "schema",
    ]  # fmt: skip
    variant = dataclasses.replace(first, protocol={**first.protocol, "variant": "imagenet-r"})
    assert run.write_result(variant).name == "knn--imagenet-r.json"
    assert run.predictions(variant.name).name == "knn--imagenet-r.npz"
    assert len(run.read_results()) == 2
    assert variant.protocol_id != first.protocol_id


def edited(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["protocol"]["settings"].update(t=0.1), "must not be edited"),
        (lambda v: v["protocol"].update(version=2), "must not be edited"),
        (lambda v: v.update(protocol_id="0" * 12), "must not be edited"),
        (lambda v: v.update(schema=2), "schema 2"),
        (lambda v: v.pop("schema"), "schema None"),
        (lambda v: v.pop("metrics"), "metrics"),
        (lambda v: v.pop("protocol_id"), "protocol_id"),
    ],
)
def test_an_edited_result_is_refused(run, change, words):
    path = run.write_result(result())
    edited(path, change)
    with pytest.raises(UserError, match=words) as caught:
        run.read_results()
    assert "knn.json" in one_line(caught.value)


def test_reordered_keys_are_no_edit(run):
    path = run.write_result(result())
    edited(path, lambda v: v.update(protocol=shuffled(v["protocol"])))
    assert run.read_results()[0].protocol_id == result().protocol_id


def test_a_protocol_with_integer_keys_is_read_back(run):
    run.write_result(result(protocol={"name": "knn", "settings": {"weights": {2: 0.5, 10: 1.0}}}))
    assert len(run.read_results()) == 1


def test_a_result_with_nan_is_refused_and_the_old_one_stays(run):
    run.write_result(result())
    with pytest.raises(ValueError, match="JSON"):
        run.write_result(result(metrics={"top1": float("nan")}))
    assert run.read_results()[0].metrics["top1"] == 12.5
    assert names(run.results) == ["knn.json"]

"""What benchmarks find: as cells, as Markdown, as JSON; and where it was measured."""

import json
import re

import pytest
import torch

from sercli import statistics
from sercli.benchmarks import record, rounds
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.suite import BENCHMARKS
from sercli.benchmarks.table import Column, Table
from sercli.cli import app
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.statistics import Interval, Ratio

TABLE = Table(
    "step",
    "A step",
    (
        Column("what", "what"),
        Column("seconds", "ms", "s", ",.1f", 1e-3),
        Column("ratio", "time / none", form=".2f"),
        Column("tiles", "", form="d", printed=False),
    ),
    [
        {"what": "a|b", "seconds": 1.5, "ratio": Ratio(1.25, Interval(1.0, 1.5), 9), "tiles": 3},
        {"what": "few rounds", "seconds": None, "ratio": Ratio(0.5, None, 2)},
    ],
    ("a note",),
)


def test_cells_have_units_of_people_and_json_those_of_physics():
    assert TABLE.cells == [["a|b", "1,500.0", "1.25 [1.00, 1.50]"], ["few rounds", "-", "0.50"]]
    found = TABLE.to_json()
    assert found["units"] == {"seconds": "s"}
    ratio = {"value": 1.25, "low": 1.0, "high": 1.5, "confidence": 0.95, "rounds": 9}
    assert found["rows"][0] == {"what": "a|b", "seconds": 1.5, "ratio": ratio, "tiles": 3}
    none = {"low": None, "high": None, "confidence": None}
    assert found["rows"][1]["ratio"] == {"value": 0.5, **none, "rounds": 2}
    assert found["rows"][1]["tiles"] is None
    json.dumps(found, allow_nan=False)


def test_markdown_is_a_table():
    lines = TABLE.to_markdown().splitlines()
    assert lines[0] == "### A step"
    assert lines[2] == "| what | ms | time / none |"
    assert lines[3] == "| :-- | --: | --: |"
    assert lines[4] == "| a\\|b | 1,500.0 | 1.25 [1.00, 1.50] |"
    assert "a note" in lines


def test_a_record_says_what_its_numbers_depend_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ser", "bench", "loss", "--json", "a b.json"])
    machine = record.Machine(Runtime(torch.device("cpu"), None), 3)
    found = record.record(machine, [TABLE])
    assert (found["threads"], found["tables"]) == (3, [TABLE.to_json()])
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"]
    assert found["command"] == "ser bench loss --json 'a b.json'"
    record.write(tmp_path / "found.json", found)
    assert json.loads((tmp_path / "found.json").read_text()) == found
    record.write_page(tmp_path / "found.md", found, [TABLE])
    page = (tmp_path / "found.md").read_text()
    assert TABLE.to_markdown() in page
    assert torch.__version__ in page


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_every_other_round_runs_backwards():
    called = []
    variants = [lambda name=name: called.append(name) or len(called) for name in "abc"]
    found = interleaved(variants, rounds=2)
    assert "".join(called) == "cba" + "abc" + "cba"
    assert found == [[4, 9], [5, 8], [6, 7]]  # the warm-up does not count


def test_rounds_say_what_is_measured_and_how_long_still(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rounds, "time", clock)

    def slow():
        clock.now += 20

    told = []
    interleaved([slow, slow], rounds=3, report=told.append)
    assert told == [
        "3 rounds of 2 measurements, after 1 round to warm up",
        "warmed up, about 2 min left",
        "round 1 of 3, about 80 s left",
        "round 2 of 3, about 40 s left",
        "round 3 of 3",
    ]
    told.clear()
    interleaved([slow], rounds=1, warmup=0, report=told.append)
    assert told == ["1 round of 1 measurement", "round 1 of 1"]


def test_few_rounds_say_which_confidence_they_have_and_outliers_do_not_count():
    ratio = statistics.paired_ratio([2.0, 4, 6, 8, 10, 12, 1400], [1.0, 2, 3, 4, 5, 6, 7])
    assert ratio.value == 2.0
    assert (ratio.interval.low, ratio.rounds) == (2.0, 7)
    assert (
        Column("r", "r", form=".2f").cell(Ratio(2.0, Interval(1.9, 2.5), 7)) == "2.00 [1.90, 2.50]"
    )
    three = statistics.paired_ratio([2.0, 4, 9], [1.0, 2, 3])
    assert three == Ratio(2.0, Interval(2.0, 3.0, 0.75), 3)
    assert Column("r", "r", form=".1f").cell(three) == "2.0 [2.0, 3.0; 75 %]"
    assert statistics.paired_ratio([3.0], [2.0]) == Ratio(1.5, None, 1)
    with pytest.raises(ValueError, match="2 and 1 values"):
        statistics.paired_ratio([1.0, 2.0], [1.0])


def test_the_command_prints_a_table_and_writes_its_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    file = tmp_path / "addons.json"
    words = "bench addons --batch-size 8 --fraction 0.25 --rounds 1 --json"
    app([*words.split(), str(file)], prog_name="ser", standalone_mode=False)
    said = capsys.readouterr().out
    (table,) = json.loads(file.read_text())["tables"]
    none = table["rows"][0]
    assert none["addon"] == "none"
    assert none["ratio"]["value"] == 1
    assert f"{none['seconds']:.3f}" in said
    assert re.search(r"none +2 +\+0 +1\.000", said)
    assert f"wrote {file}" in said


def test_all_of_them_in_one_json_and_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    called = []

    def fake(name):
        return lambda machine, _tell: called.append((name, machine.threads)) or [TABLE]

    benchmarks = {name: fake(name) for name in ("step", "loss", "data")}
    monkeypatch.setattr("sercli.benchmarks.suite.BENCHMARKS", benchmarks)

    def bench_all(*words):
        app(["bench", "all", *words], prog_name="ser", standalone_mode=False)

    json_file, page = tmp_path / "all.json", tmp_path / "all.md"
    bench_all("--json", str(json_file), "--page", str(page))
    assert called == [("step", 1), ("loss", 1), ("data", 1)]
    assert json.loads(json_file.read_text())["tables"] == 3 * [TABLE.to_json()]
    assert page.read_text().count(TABLE.to_markdown()) == 3
    bench_all("--only", "data")
    assert [name for name, _ in called[3:]] == ["data"]
    with pytest.raises(UserError, match="--only dta; no such benchmark; known: step, loss, data"):
        bench_all("--only", "dta")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    words = ["bench", "all", "--json", str(tmp_path / "file" / "all.json")]
    with pytest.raises(UserError, match="file"):
        app(words, prog_name="ser", standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--json", "."], ". is a directory; a file is needed"),
        (["--page", "."], ". is a directory; a file is needed"),
        (["--json", "both", "--page", "./both"], "--json and --page both; each is a file"),
    ],
)
def test_files_that_cannot_be_are_refused_before_anything_is_measured(
    options, line, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BENCHMARKS, "data", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=re.escape(line)):
        app(["bench", "all", "--only", "data", *options], prog_name="ser", standalone_mode=False)


def test_the_suite_is_made_of_every_benchmark():
    from sercli.commands.bench import app as bench

    commands = {command.name or command.callback.__name__ for command in bench.registered_commands}
    assert commands - {"all"} <= set(BENCHMARKS)

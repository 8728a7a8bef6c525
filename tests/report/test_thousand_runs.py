"""A thousand run directories: in memory that a laptop has, each of them in the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sercli.report import compare_runs
from sercli.runs import facts
from tests.support.run_grid import make_runs

MEASURE = """
import resource, sys
import sercli
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "compare":
    rows = len(sercli.compare_runs([sys.argv[2]]).rows)
else:
    rows = sercli.results(sys.argv[2])["run"].nunique()
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    make_runs(tmp_path, 1000)
    for what in ("compare", "results"):
        command = [sys.executable, "-c", MEASURE, what, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows, mebibytes = done.stdout.split()
        assert int(rows) == 1000
        assert float(mebibytes) < 1000, what


def test_one_bad_run_among_many_is_named_and_costs_no_other(tmp_path: Path) -> None:
    paths = make_runs(tmp_path, 12, images=40, rows=2)
    whole = compare_runs([tmp_path])
    (paths[5] / "run.json").write_bytes((paths[5] / "run.json").read_bytes()[:200])
    (paths[7] / "results" / "knn.json").write_text('{"schema": 1, "foreign": true}')
    table = compare_runs([tmp_path])
    assert len(table.rows) == len(whole.rows) - 2 == 10
    said = " ".join(note.text for note in table.notes)
    assert f"Passed over: {paths[5] / 'run.json'} is not valid JSON" in said
    assert f"Passed over: {paths[7] / 'results/knn.json'}: it has no protocol" in said
    kept = [path for path in paths if path not in (paths[5], paths[7])]
    assert compare_runs(kept).render("csv") == table.render("csv")


def test_a_recipe_that_is_recorded_is_not_read_as_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_runs(tmp_path, 3, images=40, rows=2)
    before = compare_runs(paths).render("json")
    monkeypatch.setattr(facts, "read_mapping", None)
    assert compare_runs(paths).render("json") == before

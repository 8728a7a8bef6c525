"""Tables that users lay out: which runs, what makes a row, order, labels; the frame as a file."""

from __future__ import annotations

import builtins
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import sercli
from sercli.cli import app
from sercli.errors import UserError
from sercli.report import compare_runs
from sercli.report.compare.tables import Table
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

TOP1 = "knn/top1"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, addon: str, top1: float, *, seed: int = 0, **settings: Any) -> Path:
        section = {"name": addon} | ({} if addon == "none" else {"layer": 3, "weight": 1.0})
        layer, weight, epochs = (settings.get(key) for key in ("layer", "weight", "epochs"))
        section |= {} if layer is None else {"layer": layer}
        section |= {} if weight is None else {"weight": weight}
        recipe = {
            "seed": seed,
            "method": {"name": settings.get("method", "moco")},
            "addon": section,
            "views": {"setting": "2"},
            "train": {"epochs": epochs or 3.0, "log_steps": seed + 1},
        }
        made = RunDir.create(tmp_path / name, recipe=yaml.safe_dump(recipe), run={"status": "done"})
        rule = {"name": "knn", "variant": None, "version": 1, "settings": {}}
        made.write_result(Result(rule, {"source": "x"}, {"path": "set", "n": 100}, {"top1": top1}))
        return made.path

    return run


@pytest.fixture
def grid(make: Callable[..., Path]) -> list[Path]:
    """None, SER at 3 and 9, with two seeds each."""
    return [
        make(f"{addon}{layer or ''}-{seed}", addon, top1 + 2 * seed, seed=seed, layer=layer)
        for addon, layer, top1 in (("none", None, 50.0), ("ser", 3, 54.0), ("ser", 9, 52.0))
        for seed in (0, 1)
    ]


def labels(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def values(table: Table, key: str = TOP1) -> list[float | None]:
    return [row.cells[key].value for row in table.rows]


def test_rows_are_of_fields_and_means_over_seeds(grid: list[Path]) -> None:
    table = compare_runs(grid, rows=["addon", "layer"])
    assert labels(table) == [
        "MoCo-v3 (2 seeds)",
        "MoCo-v3 + SER (layer 3) (2 seeds)",
        "MoCo-v3 + SER (layer 9) (2 seeds)",
    ]
    assert values(table) == [51.0, 55.0, 53.0]  # log_steps differ, which changes no number
    alone = compare_runs(grid[::2], rows=["addon", "layer"])
    assert labels(alone)[0] == "MoCo-v3"
    assert alone.rows[0].cells[TOP1].low is not None  # over images: nothing is averaged


def test_rows_keep_runs_with_a_value(grid: list[Path]) -> None:
    table = compare_runs(grid, rows=["addon=ser", "layer=3"])
    assert values(table) == [54.0, 56.0]
    assert values(compare_runs(grid, rows=["layer=none|9", "seed=1"])) == [52.0, 54.0]
    assert values(compare_runs(grid, rows=["run=*none-*"])) == [50.0, 52.0]
    base = compare_runs(grid, rows=["addon=s*", "seed=0"], baseline=grid[1])
    assert values(base) == [52.0, 54.0, 52.0]
    with pytest.raises(UserError, match="addon=sre keeps no run; addon is none, ser here"):
        compare_runs(grid, rows=["addon=sre"])
    with pytest.raises(UserError, match="'addn' is no field of these runs; fields are run, method"):
        compare_runs(grid, rows=["addn=ser"])


def test_runs_that_differ_in_more_than_the_seed_do_not_share_a_row(grid: list[Path]) -> None:
    with pytest.raises(UserError, match=r"differ in layer \(3 vs 9\).*name layer with --rows"):
        compare_runs(grid, rows=["addon"])
    table = compare_runs(grid, rows=["addon"], group_by=["layer"])
    assert labels(table) == ["MoCo-v3 (2 runs)", "MoCo-v3 + SER (4 runs)"]
    assert values(table) == [51.0, 54.0]
    note = " ".join(one.text for one in table.notes)
    assert "means over layers and seeds" in note


def test_a_field_among_columns_is_a_pivot(make: Callable[..., Path]) -> None:
    paths = [
        make(f"{m}-{a}-{s}", a, 40.0 + 7 * i + s * s, method=m, seed=s)
        for i, (m, a) in enumerate(
            [("moco", "none"), ("moco", "ser"), ("dino", "none"), ("dino", "ser")]
        )
        for s in range(3)
        if (m, a, s) != ("dino", "ser", 2)
    ]
    table = compare_runs(paths, rows=["addon"], columns=["method", TOP1])
    keys = [f"{TOP1}[method={name}]" for name in ("dino", "moco")]
    assert [column.key for column in table.columns] == keys
    assert [column.heading for column in table.columns] == ["kNN top-1, DINO", "kNN top-1, MoCo-v3"]
    assert labels(table) == ["without add-on", "SER (layer 3)"]
    frame = sercli.results(*paths)
    frame = frame[frame.metric == "top1"]
    for how, attribute in (("mean", "value"), ("count", "averaged"), ("std", "std")):
        pivot = frame.pivot_table(index="addon", columns="method", values="value", aggfunc=how)
        told = [[getattr(row.cells[key], attribute) for key in keys] for row in table.rows]
        assert told == pytest.approx(pivot.to_numpy()), how
    split = compare_runs(paths[:6], columns=["seed", TOP1])
    changes = [split.rows[1].cells[f"{TOP1}[seed={seed}]"].difference for seed in range(3)]
    assert [change.value for change in changes if change] == pytest.approx([7.0] * 3)


def test_a_key_of_recipes_makes_rows_and_is_said(make: Callable[..., Path]) -> None:
    runs = [make(f"{e}-{s}", "none", 50.0 + e, seed=s, epochs=e) for e in (3, 9) for s in (0, 1)]
    table = compare_runs(runs, rows=["train.epochs"])
    assert labels(table) == ["MoCo-v3 (epochs=3) (2 seeds)", "MoCo-v3 (epochs=9) (2 seeds)"]
    assert values(table) == [53.0, 59.0]


def test_group_by_seed_is_group_seeds(grid: list[Path]) -> None:
    assert compare_runs(grid, group_by=["seed"]) == compare_runs(grid, group_seeds=True)


def test_rows_are_sorted_best_first_or_by_a_field(grid: list[Path]) -> None:
    grid = grid[::2]
    assert values(compare_runs(grid, sort=[TOP1])) == [54.0, 52.0, 50.0]
    assert values(compare_runs(grid, sort=[f"-{TOP1}"])) == [50.0, 52.0, 54.0]
    assert values(compare_runs(grid, sort=["-layer"])) == [52.0, 54.0, 50.0]  # without one: last
    table = compare_runs(grid, sort=["addon", TOP1], published=True)
    assert values(compare_runs(grid, sort=["addon", TOP1])) == [50.0, 54.0, 52.0]
    assert [row.published for row in table.rows] == sorted(row.published for row in table.rows)
    with pytest.raises(UserError, match="--sort knn/top5 is no column of the table and no field"):
        compare_runs(grid, sort=["knn/top5"])


def test_labels_of_ones_own_are_of_rows_and_columns(grid: list[Path], tmp_path: Path) -> None:
    grid = grid[::2]
    table = compare_runs(grid, labels={"ser9-0": "Deep", str(grid[1]): "Ours", TOP1: "Neighbours"})
    assert labels(table) == ["MoCo-v3", "Ours", "Deep"]
    assert table.columns[0].title == "Neighbours ↑"
    with pytest.raises(UserError, match="a label for 'knn/top5'; it names a run directory"):
        compare_runs(grid, labels={"knn/top5": "x"})
    file = tmp_path / "labels.yaml"
    file.write_text("ser3-0: From a file\nnone-0: A file's\nsome-other-run: Passed over\n")
    said = CliRunner().invoke(
        app,
        ["compare", *map(str, grid), "--labels", str(file), "--label", "none-0=Without = 0"],
    )
    assert "From a file" in said.stdout
    assert "Without = 0" in said.stdout
    assert "A file's" not in said.stdout
    file.write_text("ser3-0: [no, text]\n")
    answer = CliRunner().invoke(app, ["compare", str(grid[0]), "--labels", str(file)])
    assert "has no text for 'ser3-0'" in str(answer.exception)
    # Of a run that this table leaves out.
    assert labels(compare_runs(grid, rows=["addon=none"], labels={"ser3-0": "x"})) == ["MoCo-v3"]


def test_a_wide_table_names_columns(grid: list[Path]) -> None:
    for place in range(8):
        rule = {"name": "knn", "variant": f"set{place}", "version": 1, "settings": {}}
        result = Result(rule, {"source": "x"}, {"path": "set", "n": 100}, {"top1": 1.0})
        RunDir(grid[0]).write_result(result)
    wide = compare_runs(grid[:1])
    assert any(note.text.startswith("9 columns: --columns KEY") for note in wide.notes)
    six = compare_runs(grid[:1], columns=[f"knn--set{place}/top1" for place in range(6)])
    assert not any("columns: --columns" in note.text for note in six.notes)


# -- the frame as a file --------------------------------------------------------------------------


def run(*line: str | Path) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, line)])


def test_tidy_csv_is_the_frame(grid: list[Path]) -> None:
    said = run(*grid, "--format", "tidy-csv")
    read = pd.read_csv(io.StringIO(said.stdout))
    frame = sercli.results(*grid)
    assert list(read.columns) == list(frame.columns)
    assert read.value.tolist() == frame.value.tolist()
    assert read.layer.isna().tolist() == frame.layer.isna().tolist()
    assert said.stdout_bytes.count(b"\r\n") == len(frame) + 1


def test_hostile_texts_of_the_frame_are_lines_and_no_formulas(make: Callable[..., Path]) -> None:
    path = make("a\x1b[31m\n=1+1", "none", 50.0, method="=cmd()")
    said = run(path, "--format", "tidy-csv").stdout
    assert "\x1b" not in said
    (row,) = csv.DictReader(io.StringIO(said, newline=""))
    assert row["method"] == "'=cmd()"
    assert "\n" not in row["run"]


def test_options_of_a_table_are_refused_with_the_frame(grid: list[Path]) -> None:
    for option in (["--columns", "knn"], ["--table", "main"], ["--block", "0"], ["--published"]):
        answer = run(*grid, "--format", "tidy-csv", *option)
        assert f"--format tidy-csv with {option[0]}" in str(answer.exception)
    assert "without --out" in str(run(*grid, "--format", "parquet").exception)


def test_parquet_without_pyarrow_is_one_line(
    grid: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    out = tmp_path / "frame.parquet"
    answer = run(*grid, "--format", "parquet", "--out", out)
    assert "needs pyarrow" in str(answer.exception)
    assert "sercli[parquet]" in str(answer.exception)
    assert not out.exists()


@pytest.mark.clients
def test_parquet_is_the_frame(grid: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "frame.parquet"
    assert run(*grid, "--format", "parquet", "--out", out).exit_code == 0
    read, frame = pd.read_parquet(out), sercli.results(*grid)
    assert read.value.equals(frame.value)
    assert read.layer.equals(frame.layer)
    assert (read.run == frame.run).all()

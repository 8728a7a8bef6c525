"""What a mean is of: runs that scored other images, other weights, or tap other layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sercli.commands.compare import TableOptions
from sercli.errors import UserError
from sercli.report.compare.comparison import Options, compare_runs, compare_tables
from sercli.report.compare.tables import Cell, Table
from sercli.report.page.gathering import gather
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from tests.support.run_dirs import add, bare_run

KEY = "knn/top1"
SEEDS = Options(group_by=("seed",), columns=(KEY,))


def scored(path: Path, top1: float, *, n: int = 1000, on: str = "set", **run: object) -> RunDir:
    made = bare_run(path, **run)
    add(made, "knn", {"top1": top1}, n=n, path=on)
    return made


def cells(table: Table, key: str = KEY) -> list[Cell]:
    return [row.cells[key] for row in table.rows]


def said(table: Table) -> str:
    return " ".join(note.text for note in table.notes)


def test_a_mean_over_sets_of_other_sizes_says_so_and_is_compared_with_none(tmp_path: Path) -> None:
    base = [scored(tmp_path / f"none{seed}", 50.0 + seed, seed=seed).path for seed in range(2)]
    ours = [
        scored(tmp_path / f"ser{n}", 60.0, addon="ser", seed=seed, n=n).path
        for seed, n in enumerate((1000, 500))
    ]
    table = compare_runs([*base, *ours], SEEDS)
    whole, mixed = cells(table)
    assert (whole.value, mixed.value, mixed.averaged) == (50.5, 60.0, 2)
    assert mixed.data is not None
    assert (mixed.data.mixed, mixed.data.images) == (True, None)
    assert "scored different numbers of images: set (n differs)" in said(table)
    assert mixed.difference is None
    assert not mixed.best
    assert not whole.best


def test_a_mean_over_two_places_of_equally_many_images_names_both(tmp_path: Path) -> None:
    paths = [
        scored(tmp_path / f"run{seed}", 50.0, seed=seed, on=f"set{seed}").path for seed in range(2)
    ]
    (cell,) = cells(compare_runs(paths, SEEDS))
    assert cell.data is not None
    assert (cell.data.path, cell.data.images) == ("set0 and set1", 1000)


def test_weights_are_those_of_all_seeds_that_have_a_number(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    for run, key in zip(runs[1:], ("student", "teacher"), strict=True):
        rule = {"name": "knn", "variant": None, "version": 1, "settings": {}}
        run.write_result(Result(rule, {"key": key}, {"path": "set", "n": 10}, {"top1": 50.0}))
    (cell,) = cells(compare_runs([run.path for run in runs], SEEDS))
    assert (cell.weights, cell.seeds) == ("student and teacher", 2)


def test_a_row_over_layers_has_no_layer(tmp_path: Path) -> None:
    paths = [
        scored(tmp_path / f"ser{layer}", 50.0, addon="ser", layer=layer).path for layer in (3, 12)
    ]
    both = Options(group_by=("layer",), columns=("run/layer", KEY))
    assert [cell.value for cell in cells(compare_runs(paths, both), "run/layer")] == [None]
    one = Options(group_by=("seed",), columns=("run/layer", KEY))
    assert [cell.value for cell in cells(compare_runs(paths, one), "run/layer")] == [3, 12]


def test_of_two_files_with_one_result_neither_is_shown_for_the_other(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", 50.0)
    copy = run.results / "knn.old.json"
    shutil.copy(run.result("knn"), copy)
    add(run, "knn", {"top1": 60.0}, path="set", n=1000)
    with pytest.raises(UserError, match=r"knn\.old\.json holds the result knn; .* make it knn\.js"):
        compare_runs([run.path])
    found = gather([run.path])  # of a page
    assert found.runs[0].results["knn"].metrics == {"top1": 60.0}
    assert ["knn.old.json" in one.text for one in found.problems] == [True]
    copy.unlink()
    assert [cell.value for cell in cells(compare_runs([run.path]))] == [60.0]


def test_all_tables_are_sorted_by_what_some_have_and_have_their_own_columns(
    tmp_path: Path,
) -> None:
    paths = []
    for layer, top1 in ((3, 50.0), (12, 60.0)):
        run = bare_run(tmp_path / f"ser{layer}", addon="ser", layer=layer)
        add(run, "linear-eval--ser", {"top1": top1})
        paths.append(run.path)
    tables = compare_tables(paths, Options(table="all", sort=("linear-eval--ser/top1",)))
    tapped = {
        table.title.partition(":")[0]: [
            row.provenance["runs"][0]["path"][-2:] for row in table.rows
        ]
        for table in tables
    }
    assert tapped["Layer ablation"] == ["12", "r3"]
    assert tapped["Cost"] == ["r3", "12"]  # it has no such column
    with pytest.raises(UserError, match="--sort knn/top1 is no column"):
        compare_tables(paths, Options(table="all", sort=("knn/top1",)))
    with pytest.raises(UserError, match="--table all with --columns run/flops; each of these tab"):
        compare_tables(paths, Options(table="all", columns=("run/flops",)))


def test_a_comma_in_brackets_is_of_a_key() -> None:
    given = ["-knn/top1[method=moco,layer=3],seed", "views"]
    options = TableOptions(sort=given).options()
    assert options.sort == ("-knn/top1[method=moco,layer=3]", "seed", "views")
    assert TableOptions(columns=["a[,b"]).options().columns == ("a[", "b")

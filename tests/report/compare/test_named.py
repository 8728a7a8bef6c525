"""The paper's tables by name: which runs and columns they have, and what they say is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

import sercli
from sercli.errors import UserError
from sercli.report.compare.comparison import Options, compare_runs, compare_tables
from sercli.report.compare.papers_tables import PAPERS_TABLES
from sercli.report.compare.tables import Table
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

PROBE = "linear-eval--ser/top1"


def train(
    path: Path, addon: str = "none", *, method: str = "moco", seed: int = 0, **more: Any
) -> RunDir:
    """A run; `more` are settings of its add-on, `cls_after`, `views`, or sections of run.json."""
    section: dict[str, Any] = {"name": addon}
    if addon != "none":
        section |= {"layer": 3, "weight": 1.0} | {
            key: more.pop(key) for key in ("layer", "weight", "action") if key in more
        }
    recipe = {
        "seed": seed,
        "method": {"name": method},
        "addon": section,
        "model": {"name": "vit_micro", "cls_after": more.pop("cls_after", None)},
        "views": {"setting": more.pop("views", "2")},
        "data": {"path": "/data/imagenet"},
    }
    return RunDir.create(path, recipe=yaml.safe_dump(recipe), run={"status": "done", **more})


def add(run: RunDir, name: str, path: str = "/data/imagenet", **metrics: float) -> None:
    protocol, _, variant = name.partition("--")
    rule = {"name": protocol, "variant": variant or None, "version": 1, "settings": {}}
    told = {key.replace("__", "/"): value for key, value in metrics.items()}
    run.write_result(Result(rule, {"source": "x"}, {"path": path, "n": 100}, told))


def keys(table: Table) -> list[str]:
    return [column.key for column in table.columns]


def labels(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def text(table: Table) -> str:
    return " ".join(note.text for note in table.notes)


def paths(runs: Sequence[RunDir]) -> list[Path]:
    return [run.path for run in runs]


@pytest.fixture
def grid(tmp_path: Path) -> list[Path]:
    """The paper's runs of MoCo-v3, with its controls, and all that it measures of them."""
    runs = [
        train(tmp_path / "none"),
        train(tmp_path / "delayed", cls_after=3),
        *(train(tmp_path / f"ser{layer}", "ser", layer=layer) for layer in (3, 9, 12)),
        train(tmp_path / "weight0", "ser", weight=0),
        train(tmp_path / "placebo", "ser", action="placebo"),
        *(train(tmp_path / f"augself{layer}", "augself", layer=layer) for layer in (3, 12)),
        train(tmp_path / "stl", "stl"),
    ]
    for place, run in enumerate(runs):
        add(run, "linear-eval--ser", top1=60.0 + place, top5=80.0)
        add(run, "knn", top1=50.0 + place)
        add(run, "equiv-score", **{f"es__block{b:02d}__rotation": 0.5 for b in (3, 6, 9, 12)})
        for name in ("sketch", "v2-matched-frequency", "r", "a"):
            add(run, f"robustness--imagenet-{name}", top1=20.0 + place)
        add(run, "robustness--imagenet-c", top1=40.0, mce=70.0)
    return paths(runs)


def test_main_has_the_papers_columns_and_each_add_on_at_its_place(grid: list[Path]) -> None:
    table = compare_runs(grid, Options(table="main"))
    assert [key.removeprefix("robustness--imagenet-") for key in keys(table)] == [
        PROBE,
        *("sketch/top1", "v2-matched-frequency/top1", "r/top1"),
    ]
    assert labels(table) == [
        "MoCo-v3",
        "MoCo-v3 + AugSelf (layer 12)",
        "MoCo-v3 + STL (layer 3)",  # where it was not run at its authors' layer
        "MoCo-v3 + SER (layer 3)",
    ]
    assert table.title.startswith("Main results")
    assert "Not of this table: " in text(table)
    assert "no run here has" not in text(table)


def test_ablation_has_layers_and_controls_and_es_where_add_ons_tap(grid: list[Path]) -> None:
    table = compare_runs(grid, Options(table="ablation"))
    blocks = [f"equiv-score/es/block{block:02d}/rotation" for block in (3, 9, 12)]
    assert keys(table) == ["run/layer", PROBE, *blocks]
    assert sorted(Path(row.provenance["runs"][0]["path"]).name for row in table.rows) == sorted(
        ["none", "delayed", "ser3", "ser9", "ser12", "weight0", "placebo", "augself3", "augself12"]
    )
    layers = {row.label: row.cells["run/layer"].value for row in table.rows}
    assert layers["MoCo-v3 + SER (layer 9)"] == 9
    assert layers["MoCo-v3 + SER (layer 3, λ=0)"] == 3
    assert layers["MoCo-v3 ([CLS] after block 3)"] is None
    assert all(row.baseline == "MoCo-v3" for row in table.rows if row.label != "MoCo-v3")
    assert keys(compare_runs(grid, Options(table="ablation", block=6)))[-1] == blocks[0].replace(
        "03", "06"
    )


def test_objectives_are_each_without_and_with_ser(tmp_path: Path) -> None:
    runs = []
    for method in ("barlow-twins", "moco", "dino"):
        kinds = (("none", {}), ("ser", {}), ("ser", {"layer": 9}), ("ser", {"weight": 0}))
        for addon, more in (*kinds, ("none", {"cls_after": 3}), ("stl", {})):
            run = train(tmp_path / f"{method}{addon}{len(runs)}", addon, method=method, **more)
            add(run, "linear-eval--ser", top1=60.0)
            runs.append(run)
    table = compare_runs(paths(runs), Options(table="objectives"))
    assert labels(table) == [
        label
        for name in ("MoCo-v3", "DINO", "Barlow Twins")
        for label in (name, f"{name} + SER (layer 3)")
    ]
    assert "ES under rotation (`ser equiv-score RUN`)" in text(table)


def test_in_a_world_of_its_own_what_there_is_stands_in(tmp_path: Path) -> None:
    run = train(tmp_path / "none")
    add(run, "linear-eval--ser-no-augment", "shapes", top1=60.0, best__top1=60.0)
    add(run, "linear-eval--ser-1pct", "shapes", top1=40.0)
    add(run, "knn", "shapes", top1=50.0)
    table = compare_runs([run.path], Options(table="main"))
    assert keys(table) == ["linear-eval--ser-no-augment/top1", "knn/top1"]
    assert "linear probe top-1 (`ser linear-eval RUN`)" in text(table)
    assert "ImageNet-Sketch, ImageNet-V2 and ImageNet-R (`ser robustness" in text(table)


def test_what_has_no_number_is_said_with_the_command_that_fills_it(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one"), train(tmp_path / "other", "ser")
    add(one, "coco-detect--torchvision", ap=30.0)
    add(other, "knn", top1=50.0)
    table = compare_runs(paths([one, other]), Options(table="transfer"))
    assert labels(table) == ["MoCo-v3"]
    assert f"Without a number for it: {other.path}." in text(table)
    assert "mask AP (`ser coco-detect RUN`); segmentation mIoU (`ser segment RUN`)" in text(table)
    with pytest.raises(UserError, match=r"table transfer; it has detection AP .*`ser coco-detect"):
        compare_runs([other.path], Options(table="transfer"))
    with pytest.raises(UserError, match="--table mian; the tables are main, ablation"):
        compare_runs([other.path], Options(table="mian"))


def test_transfer_is_detection_and_segmentation_of_the_last_block(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    add(run, "coco-detect--torchvision", ap=30.0, mask_ap=20.0, ap50=40.0)
    add(run, "segment--voc", miou=50.0, miou__block03=30.0, pixel_accuracy=90.0)
    assert keys(compare_runs([run.path], Options(table="transfer"))) == [
        *("coco-detect--torchvision/ap", "coco-detect--torchvision/mask_ap", "segment--voc/miou")
    ]


@pytest.mark.parametrize("table", ["main", "all"])
def test_protocols_are_not_mixed_in_a_table(grid: list[Path], table: str) -> None:
    run = RunDir(grid[0])
    (told,) = (one for one in run.read_results() if one.name == "linear-eval--ser")
    run.write_result(replace(told, protocol={**told.protocol, "version": 2}))
    for options in (Options(table=table), Options(table=table, group_seeds=True)):
        with pytest.raises(UserError, match=f"mixes 2 protocols: version: .*2 .{run.path}"):
            compare_tables(grid, options)
        mixed = compare_tables(grid, replace(options, allow_mixed=True))[0]
        assert [key.partition("@")[0] for key in keys(mixed)][:2] == [PROBE, PROBE]


def test_all_is_each_table_that_has_a_number(grid: list[Path]) -> None:
    tables = compare_tables(grid, Options(table="all", block=9))
    titles = [table.title.partition(":")[0] for table in tables]
    assert titles == [
        PAPERS_TABLES[n].title for n in ("main", "ablation", "robustness", "objectives")
    ]
    assert "Not shown: transfer, of which no run has a number: detection" in text(tables[-1])
    assert "Not shown: cost" in text(tables[-1])
    bare = train(grid[0].parent / "bare", timings={"steps": 3})
    with pytest.raises(UserError, match="no number for any table"):
        compare_tables([bare.path], Options(table="all"))


def test_published_columns_stand_beside_those_of_runs(grid: list[Path], tmp_path: Path) -> None:
    run = train(tmp_path / "alone")
    add(run, "linear-eval--ser", top1=60.0)
    table = compare_runs([run.path], Options(table="main", published=True))
    assert keys(table) == keys(compare_runs(grid, Options(table="main")))
    ours, theirs = table.rows
    assert [theirs.cell(one).value for one in table.columns] == [68.44, 17.65, 56.54, 18.59]
    assert [ours.cell(one).value for one in table.columns] == [60.0, None, None, None]


def test_cost_is_what_run_json_has(tmp_path: Path) -> None:
    run = train(
        tmp_path / "none",
        parameters={"trainable": 26_512_000, "encoder": 21_665_664},
        flops={"step": 2.586e10, "ratio_none": 1.0, "ratio_weight0": 1.0},
        timings={"train_seconds": 100.0, "images_per_s": 50.0},
        memory={"counted_gib": 3.21, "peak_gib": 2.5},
    )
    table = compare_runs([run.path], Options(table="cost"))
    shown = {
        one.key.removeprefix("run/"): one.text(table.rows[0].cell(one).value or 0)
        for one in table.columns
    }
    assert shown == {
        "parameters": "26.51 M",
        "encoder_parameters": "21.67 M",
        "flops": "25.86 G",
        "flops_ratio_none": "1.000",
        "flops_ratio_weight0": "1.000",
        "train_seconds": "100 s",
        "counted_memory_gib": "3.21 GiB",
        "peak_memory_gib": "2.50 GiB",
        "images_per_s": "50.0",
    }
    assert "9 columns: --columns" in text(table)


def test_a_published_cost_has_a_column_where_runs_have_none(tmp_path: Path) -> None:
    run = train(tmp_path / "ser", "ser", timings={"train_seconds": 100.0})
    table = compare_runs([run.path], Options(table="cost", published=True))
    assert keys(table) == ["run/flops_ratio_none", "run/train_seconds"]
    assert [row.cell(table.columns[0]).value for row in table.rows] == [None, 1.008]


def test_a_named_baseline_stays_with_or_without_numbers(grid: list[Path], tmp_path: Path) -> None:
    bare, control = train(tmp_path / "bare"), next(one for one in grid if one.name == "placebo")
    for base in (bare.path, control):
        table = compare_runs(grid, Options(table="main", baseline=base))
        assert any(str(base) in str(row.provenance) for row in table.rows)


@pytest.mark.parametrize("draw", range(3))
def test_tables_equal_what_pandas_makes_of_the_frame(tmp_path: Path, draw: int) -> None:
    """Random grids of runs: each cell is the mean of the frame's values, with its t interval."""
    generator = np.random.default_rng(draw)
    runs = []
    for addon, layer in (("none", 0), ("ser", 3), ("ser", 12), ("equimod", 12)):
        for seed in range(int(generator.integers(1, 5))):
            run = (
                train(tmp_path / f"{addon}{layer}-{seed}", addon, seed=seed, layer=layer)
                if layer
                else train(tmp_path / f"none-{seed}", seed=seed)
            )
            for name in ("linear-eval--ser", "robustness--imagenet-r"):
                if generator.random() < 0.8:
                    add(run, name, top1=float(generator.uniform(10, 90)))
            add(run, "equiv-score", es__block03__rotation=float(generator.random()))
            runs.append(run.path)
    frame = sercli.results(*runs)
    frame["key"] = frame.protocol + ("--" + frame.variant).fillna("") + "/" + frame.metric
    kinds = frame.assign(layer=frame.layer.fillna(0)).groupby(["addon", "layer", "key"]).value
    expected = kinds.agg(["mean", "std", "count", "sem"])
    checked = 0
    for table in compare_tables(runs, Options(table="all", group_by=("seed",))):
        for row in table.rows:
            first = Path(row.provenance["runs"][0]["path"]).name.split("-")[0]
            addon = first.rstrip("0123456789")
            layer = int(first.removeprefix(addon)) if addon != "none" else 0
            for key, cell in row.cells.items():
                if cell.value is None or key.startswith("run/"):
                    continue
                mean, std, count, sem = expected.loc[(addon, layer, key)]
                assert cell.value == pytest.approx(mean)
                assert cell.averaged == count
                if count > 1:
                    ends = stats.t.interval(0.95, count - 1, mean, sem)
                    assert (cell.low, cell.high, cell.std) == pytest.approx((*ends, std))
                else:
                    assert cell.low is cell.high is cell.std is None
                checked += 1
    assert checked > 10

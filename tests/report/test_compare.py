"""`ser compare` on synthetic run directories made with the real writers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from scipy import stats
from typer.testing import CliRunner

from sercli.commands.compare import compare
from sercli.errors import UserError
from sercli.report.compare.comparison import Options, compare_runs
from sercli.report.compare.notes import power_notes
from sercli.report.compare.tables import Cell, Row, Table
from sercli.report.formats.machine import csv_text
from sercli.runs.files import write_json
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.statistics import smallest_difference


def make_run(
    path: Path,
    *,
    method: str = "moco",
    addon: str = "none",
    views: str = "2",
    seed: int = 0,
    status: str = "done",
    layer: int = 3,
    weight: float = 1.0,
    fraction: float = 0.01,
    epochs: int = 10,
    flops: Mapping[str, float] | None = None,
    recipe: bool = True,
    run: Mapping[str, Any] | None = None,
) -> RunDir:
    """A pretrained run: recipe.yaml and run.json as `ser pretrain` leaves them."""
    section: dict[str, Any] = {"name": addon}
    if addon != "none":
        section |= {"layer": layer, "weight": weight, "fraction": fraction}
    text = yaml.safe_dump(
        {
            "method": {"name": method},
            "addon": section,
            "views": {"setting": views},
            "data": {"path": "shapes", "image_size": 64},
            "model": {"name": "vit_tiny", "patch_size": 8},
            "seed": seed,
            "train": {"epochs": epochs, "batch_size": 64},
        }
    )
    record = {
        "status": status,
        "recipe_name": f"shapes/{method}-{addon}",
        "command": ["ser", "pretrain"],
        "versions": {"ser": "0.1.0"},
        "git_commit": "abc1234",
        "device": "cpu",
        "seed": seed,
        "timings": {"train_seconds": 123.4, "steps": 300, "images_per_s": 81.04},
        "flops": dict(flops or {}),
    }
    return RunDir.create(path, recipe=text if recipe else None, run={**record, **(run or {})})


def add_result(
    run_dir: RunDir,
    name: str,
    metrics: Mapping[str, float | None],
    *,
    n: int = 1000,
    partial: bool = False,
    path: str = "shapes/val",
    key: str = "student",
    matched: int = 152,
    warnings: Sequence[str] = (),
    precision: str | None = None,
    version: int = 1,
    **settings: Any,
) -> None:
    """A result as an evaluator writes it; `name` is `<protocol>[--<variant>]`."""
    protocol, _, variant = name.partition("--")
    run_dir.write_result(
        Result(
            protocol={
                "name": protocol,
                "variant": variant or None,
                "version": version,
                "settings": {"resize": 256, **settings},
            },
            model={"source": str(run_dir.path), "key": key, "matched": matched, "expected": 152}
            | ({"precision": precision} if precision else {}),
            data={"path": path, "n": n, "partial": partial}
            | ({"warnings": list(warnings)} if warnings else {}),
            metrics=dict(metrics),
        )
    )


def add_predictions(run_dir: RunDir, name: str, right: np.ndarray) -> None:
    """Predictions whose correctness is `right` [n] bool, in a shuffled order of images."""
    order = np.random.default_rng(len(name) + int(right.sum())).permutation(right.size)
    labels = np.arange(right.size) % 10
    predictions = np.where(right, labels, (labels + 1) % 10)
    run_dir.results.mkdir(exist_ok=True)
    np.savez(
        run_dir.predictions(name),
        image_ids=np.array([f"val/{index:05d}.jpg" for index in order]),
        labels=labels[order],
        predictions=predictions[order],
    )


def equivariance(rotation: float | None, hflip: float, *, block: int = 3) -> dict[str, Any]:
    """Metrics of `equiv-score` after one block, with intervals, floors and the raw cosine."""
    place = f"block{block:02d}"
    metrics: dict[str, Any] = {
        f"es/{place}/rot90": rotation,
        f"es/{place}/rotation": rotation,
        f"es/{place}/hflip": hflip,
        f"es/{place}/hflip/low": hflip - 0.004,
        f"es/{place}/hflip/high": hflip + 0.004,
        f"es_random/{place}/rotation": 0.61,
        f"es_random/{place}/hflip": 0.6789,
        f"es_identity/{place}/rotation": 0.3,
        f"cosine_raw/{place}/rotation": 0.989,
        f"energy/{place}": 0.4,
    }
    if rotation is not None:
        metrics |= {
            f"es/{place}/rotation/low": rotation - 0.003,
            f"es/{place}/rotation/high": rotation + 0.003,
        }
    return metrics


def paper_runs(root: Path) -> list[Path]:
    """MoCo-v3 with each add-on, as in the paper's main table, plus one run cut short."""
    generator = np.random.default_rng(0)
    base = generator.random(1000) < 0.60
    better = base | (generator.random(1000) < 0.10)
    none = make_run(root / "none", flops={"step": 1e12})
    ser = make_run(root / "ser", addon="ser", flops={"ratio_none": 1.013, "ratio_weight0": 1.0007})
    for run_dir, right in ((none, base), (ser, better)):
        add_result(run_dir, "knn", {"top1": 100 * float(right.mean()), "k10/top1": 50.0})
        add_predictions(run_dir, "knn", right)
    for run_dir, shift in ((none, 0.0), (ser, 0.84)):
        add_result(run_dir, "linear-eval--ser", {"top1": 68.4 + shift, "top5": 88.0 + shift})
        for variant in ("imagenet-r", "imagenet-sketch", "imagenet-v2-matched-frequency"):
            add_result(run_dir, f"robustness--{variant}", {"top1": 18.5 + shift, "top5": 30.0})
        add_result(run_dir, "robustness--imagenet-c", {"top1": 40.0 + shift, "mce": 80.0 - shift})
        add_result(run_dir, "coco-detect--torchvision", {"ap": 30.0 + shift, "ap50": 50.0})
    add_result(none, "equiv-score", equivariance(0.904, 0.888))
    add_result(ser, "equiv-score", equivariance(0.972, 0.970))
    paths = [none.path, ser.path]
    for addon, views in (("essl", "2+4-rotations"), ("stl", "2"), ("equimod", "3")):
        other = make_run(root / addon, addon=addon, views=views, layer=12)
        add_result(
            other, "knn", {"top1": 59.0}, n=200 if addon == "stl" else 1000, partial=addon == "stl"
        )
        add_result(other, "equiv-score", equivariance(None, 0.7))
        paths.append(other.path)
    short = make_run(root / "short", addon="augself", status="preempted")
    return [*paths, short.path]


def labels(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def row_of(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def notes(table: Table) -> str:
    return " ".join(note.text for note in table.notes)


def knn_runs(root: Path, *runs: dict[str, Any]) -> list[Path]:
    """Runs with a kNN result each; `top1` and `result` are taken out of the arguments."""
    paths = []
    for index, arguments in enumerate(runs):
        top1, result = arguments.pop("top1", 50.0), arguments.pop("result", {})
        run_dir = make_run(root / f"run{index}", **arguments)
        add_result(run_dir, "knn", {"top1": top1}, **result)
        paths.append(run_dir.path)
    return paths


# -- rows -----------------------------------------------------------------------------------------


def test_rows_come_in_the_papers_order_with_its_words(tmp_path: Path) -> None:
    paths = [*reversed(paper_runs(tmp_path))]
    for method in ("barlow_twins", "dino"):
        paths.append(make_run(tmp_path / method, method=method).path)
    table = compare_runs(paths)
    assert [(row.label, row.views) for row in table.rows] == [
        ("MoCo-v3", "2"),
        ("MoCo-v3 + AugSelf (layer 3) [preempted]", "2"),
        ("MoCo-v3 + STL (layer 12)", "2"),
        ("MoCo-v3 + SER (layer 3)", "2"),
        ("MoCo-v3 + EquiMod (layer 12)", "3"),
        ("MoCo-v3 + E-SSL (layer 12)", "2+4 rotations"),
        ("DINO", "2"),
        ("Barlow Twins", "2"),
    ]


def test_labels_say_more_only_where_they_clash(tmp_path: Path) -> None:
    ser = {"addon": "ser"}
    paths = knn_runs(tmp_path, {}, ser | {"weight": 0.5}, ser | {"weight": 1.0}, ser | {"layer": 9})
    assert labels(compare_runs(paths)) == [
        "MoCo-v3",
        "MoCo-v3 + SER (layer 3, λ=0.5)",
        "MoCo-v3 + SER (layer 3, λ=1)",
        "MoCo-v3 + SER (layer 9)",
    ]
    assert labels(compare_runs(paths[1:2])) == ["MoCo-v3 + SER (layer 3)"]


def test_the_control_never_reads_like_the_method(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"addon": "ser", "weight": 0})
    assert labels(compare_runs(paths)) == ["MoCo-v3 + SER (layer 3, λ=0)"]


def test_equal_recipes_are_told_apart_by_seed_then_directory(tmp_path: Path) -> None:
    seeds = knn_runs(tmp_path / "a", {"seed": 0}, {"seed": 1})
    assert labels(compare_runs(seeds)) == ["MoCo-v3 (seed 0)", "MoCo-v3 (seed 1)"]
    twins = knn_runs(tmp_path / "b", {}, {})
    assert labels(compare_runs(twins)) == ["MoCo-v3 (run0)", "MoCo-v3 (run1)"]


def test_a_foreign_checkpoint_is_named_by_its_source(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "x", recipe=False)
    add_result(run_dir, "knn", {"top1": 50.0})
    assert labels(compare_runs([run_dir.path])) == ["x"]
    write_json(run_dir.result("knn"), {**_stored(run_dir), "model": {"source": "timm:vit_small"}})
    assert labels(compare_runs([run_dir.path])) == ["timm:vit_small"]


def _stored(run_dir: RunDir) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(run_dir.result("knn").read_text())
    del stored["content_sha256"]  # a result without it is believed
    return stored


# -- cells ----------------------------------------------------------------------------------------


def test_intervals_are_the_stored_ones_or_wilsons(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    add_result(run_dir, "knn", {"top1": 31.2, "top1/low": 30.0, "top1/high": 33.0})
    add_result(run_dir, "linear-eval--ser", {"top1": 31.2}, n=1000)
    add_result(run_dir, "robustness--imagenet-c", {"top1": 31.2}, n=1000)
    cells = compare_runs([run_dir.path]).rows[0].cells
    assert (cells["knn/top1"].low, cells["knn/top1"].high) == (30.0, 33.0)
    wilson = stats.binomtest(312, 1000).proportion_ci(method="wilson")
    probe = cells["linear-eval--ser/top1"]
    assert (probe.low, probe.high) == pytest.approx((100 * wilson.low, 100 * wilson.high))
    # 75 cells over the same images are not n independent trials.
    assert cells["robustness--imagenet-c/top1"].low is None


@pytest.mark.parametrize("group", [False, True])
def test_what_an_evaluator_warns_of_is_a_footnote(tmp_path: Path, group: bool) -> None:
    few = "the probe may not have converged: it took 50 steps, fewer than 800"
    edge = "the chosen learning rate 10 is the highest of the grid"
    paths = []
    for seed, warnings in enumerate(((few,), (edge, few), ())):
        run_dir = make_run(tmp_path / f"{seed}", seed=seed)
        add_result(run_dir, "linear-eval--ser", {"top1": 40.0 + seed}, warnings=warnings)
        add_result(run_dir, "knn", {"top1": 40.0})
        paths.append(run_dir.path)
    table = compare_runs(paths, Options(group_seeds=group))
    text = {note.mark: note.text for note in table.notes if note.mark}
    assert sorted(text.values()) == sorted(f"{t[0].upper()}{t[1:]}." for t in (few, edge))
    told = [{text[mark] for mark in row.cells["linear-eval--ser/top1"].marks} for row in table.rows]
    one, both = {f"T{few[1:]}."}, {f"T{few[1:]}.", f"T{edge[1:]}."}
    assert told == ([both] if group else [one, both, set()])
    assert all(not row.cells["knn/top1"].marks for row in table.rows)


def test_equivariance_has_its_floor_and_stays_undefined(tmp_path: Path) -> None:
    table = compare_runs(paper_runs(tmp_path))
    key = "equiv-score/es/block03/rotation"
    cell = row_of(table, "MoCo-v3 + SER (layer 3)").cells[key]
    assert (cell.value, cell.floor, cell.best) == (0.972, 0.61, True)
    assert row_of(table, "MoCo-v3 + STL (layer 12)").cells[key].undefined
    assert not any("cosine_raw" in column.key for column in table.columns)
    assert "floor:" in notes(table)


def test_block_is_named_or_the_only_one(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    add_result(run_dir, "equiv-score", equivariance(0.9, 0.9, block=2))
    assert compare_runs([run_dir.path]).columns[0].key == "equiv-score/es/block02/rotation"
    both = equivariance(0.9, 0.9, block=2) | equivariance(0.8, 0.8, block=5)
    add_result(run_dir, "equiv-score", both)
    open_choice = compare_runs([run_dir.path])
    assert not any(column.key.startswith("equiv") for column in open_choice.columns)
    assert "--block" in notes(open_choice)
    named = compare_runs([run_dir.path], Options(block=5))
    assert named.rows[0].cells["equiv-score/es/block05/rotation"].value == 0.8
    with pytest.raises(UserError, match="--block 3; blocks scored are 2, 5"):
        compare_runs([run_dir.path], Options(block=3))


def test_partial_results_are_marked_and_not_subtracted(tmp_path: Path) -> None:
    part = {"n": 200, "partial": True}
    paths = knn_runs(tmp_path, {"top1": 50.0}, {"addon": "ser", "top1": 60.0, "result": part})
    table = compare_runs(paths)
    cell = table.rows[1].cells["knn/top1"]
    assert cell.marks == ("†",)
    assert cell.difference is None
    assert any(note.mark == "†" for note in table.notes)


def test_other_data_other_weights_and_missing_tensors_are_footnotes(tmp_path: Path) -> None:
    table = compare_runs(
        knn_runs(
            tmp_path,
            {"seed": 0},
            {"seed": 1, "result": {"path": "elsewhere/val", "n": 10}},
            {"seed": 2, "result": {"key": "teacher"}},
            {"seed": 3, "result": {"matched": 150}},
        )
    )
    assert [row.cells["knn/top1"].marks for row in table.rows] == [(), ("a",), ("b",), ("c",)]
    texts = [note.text for note in table.notes if note.mark]
    assert "elsewhere/val (n = 10)" in texts[0]
    assert "teacher" in texts[1]
    assert "150 of 152" in texts[2]


def in_precisions(root: Path, *precisions: str | None) -> Table:
    runs = ({"seed": i, "result": {"precision": p}} for i, p in enumerate(precisions))
    return compare_runs(knn_runs(root, *runs))


def test_rows_of_another_precision_are_compared_and_marked(tmp_path: Path) -> None:
    table = in_precisions(tmp_path, "fp32", "bf16", None)
    assert [row.cells["knn/top1"].marks for row in table.rows] == [(), ("a",), ()]
    assert [note.text for note in table.notes if note.mark] == ["The encoder ran in bf16."]


@pytest.mark.parametrize(
    ("precisions", "cells"),
    [
        (("fp32", "bf16", None), ["fp32", "bf16", ""]),
        (("bf16", "bf16"), ["bf16", "bf16"]),
        (("fp32", None), None),
    ],
)
def test_csv_which_has_no_footnotes_has_a_column_of_precisions(
    tmp_path: Path, precisions: tuple[str | None, ...], cells: list[str] | None
) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(in_precisions(tmp_path, *precisions)))))
    found = [row.get("knn/top1/precision") for row in rows]
    assert found == (cells or [None] * len(precisions))


@pytest.mark.parametrize(("precision", "said"), [("bf16", True), ("fp32", False), (None, False)])
def test_one_precision_for_all_rows_is_said_once(
    tmp_path: Path, precision: str | None, said: bool
) -> None:
    table = in_precisions(tmp_path, precision, precision)
    assert [row.cells["knn/top1"].marks for row in table.rows] == [(), ()]
    assert ("The encoder ran in bf16: knn." in notes(table)) == said


def test_seeds_of_both_precisions_say_so(tmp_path: Path) -> None:
    runs = (
        {"addon": "ser", "seed": i, "result": {"precision": p}}
        for i, p in enumerate(("fp32", "bf16"))
    )
    other = {"result": {"precision": "fp32"}}
    table = compare_runs(knn_runs(tmp_path, other, *runs), Options(group_seeds=True))
    assert "The encoder ran in bf16 and fp32." in notes(table)


def test_a_result_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"seed": 0}, {"seed": 1, "result": {"version": 2}})
    with pytest.raises(UserError) as error:
        compare_runs(paths)
    assert f"version: 1 ({paths[0]}) vs 2 ({paths[1]})" in str(error.value)
    assert f"repeat that of {paths[0]} (an earlier version's)" in str(error.value)


def test_costs_come_from_the_run(tmp_path: Path) -> None:
    cells = row_of(compare_runs(paper_runs(tmp_path)), "MoCo-v3 + SER (layer 3)").cells
    assert cells["run/flops_ratio_none"].value == 1.013
    assert cells["run/flops_ratio_weight0"].value == 1.0007
    assert cells["run/train_seconds"].value == 123.4
    assert not cells["run/images_per_s"].best


# -- baselines and paired tests -------------------------------------------------------------------


def test_the_baseline_is_found_by_method_views_and_seed(tmp_path: Path) -> None:
    paths = knn_runs(
        tmp_path,
        {"seed": 0, "top1": 50.0},
        {"seed": 1, "top1": 40.0},
        {"method": "dino", "seed": 0, "top1": 10.0},
        {"addon": "ser", "seed": 1, "top1": 40.84},
        {"addon": "equimod", "views": "3", "seed": 1, "top1": 45.0},
    )
    table = compare_runs(paths)
    difference = row_of(table, "MoCo-v3 + SER (layer 3)").cells["knn/top1"].difference
    assert difference is not None
    assert difference.value == pytest.approx(0.84)
    assert row_of(table, "MoCo-v3 + EquiMod (layer 3)").cells["knn/top1"].difference is None


def test_a_named_baseline_serves_all_and_need_not_be_listed(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"method": "dino", "top1": 50.0}, {"addon": "ser", "top1": 51.0})
    table = compare_runs(paths[1:], Options(baseline=paths[0]))
    assert len(table.rows) == 2
    assert table.rows[0].baseline == "DINO"
    assert "baseline, DINO" in notes(table)


def test_an_open_choice_of_baselines_is_said(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {}, {}, {"addon": "ser"})
    table = compare_runs(paths)
    assert all(row.baseline is None for row in table.rows)
    assert "name one with --baseline" in notes(table)


def test_a_baseline_trained_otherwise_is_said(tmp_path: Path) -> None:
    table = compare_runs(knn_runs(tmp_path, {"epochs": 100}, {"addon": "ser", "epochs": 50}))
    assert "train.epochs 100 vs 50" in notes(table)


def test_paired_tests_join_images_by_id(tmp_path: Path) -> None:
    table = compare_runs(paper_runs(tmp_path))
    difference = row_of(table, "MoCo-v3 + SER (layer 3)").cells["knn/top1"].difference
    assert difference is not None
    generator = np.random.default_rng(0)
    base = generator.random(1000) < 0.60
    better = base | (generator.random(1000) < 0.10)
    gained = int((better & ~base).sum())
    assert difference.value == pytest.approx(gained / 10)
    assert difference.p_value == pytest.approx(
        stats.binomtest(0, gained).pvalue / 2, rel=1e-4, abs=0
    )
    assert difference.low is not None
    assert difference.low > 0
    assert difference.significant
    assert len(table.comparisons) == 1


def test_a_note_says_which_difference_the_first_tested_column_can_show(tmp_path: Path) -> None:
    """400 images: 2.5 and 5 % are right in one of two runs only; the larger is the median."""
    base = np.arange(400) < 200
    paths = []
    for addon, lost, gained in (("none", 0, 0), ("stl", 4, 6), ("ser", 8, 12)):
        right = base ^ (np.arange(400) < lost) ^ (np.arange(400) >= 400 - gained)
        run_dir = make_run(tmp_path / addon, addon=addon)
        add_result(run_dir, "knn", {"top1": 100 * float(right.mean())}, n=400)
        add_predictions(run_dir, "knn", right)
        paths.append(run_dir.path)
    table = compare_runs(paths)
    (said,) = [note.text for note in table.notes if "power" in note.text]
    smallest = smallest_difference(discordant=0.05, images=400)
    assert smallest == pytest.approx(0.0315, abs=0.002)  # Connor's: 2.80 √0.05 / √400
    assert said.startswith("kNN top-1: with 400 images and 5 % discordant (right in one of two")
    assert f"the median of 2 pairs) a difference of {100 * smallest:.2f} points is found" in said
    alone = compare_runs(paths[:2])
    (said,) = [note.text for note in alone.notes if "power" in note.text]
    assert "and 2.5 % discordant (right in one of two runs only) a difference of" in said
    # Nothing was tested, nothing differs, or there is no one share to speak of.
    assert power_notes(compare_runs(paths[:1]).rows, table.columns) == []
    row = table.rows[-1]
    cell = row.cells["knn/top1"]
    assert cell.difference is not None
    same = replace(cell, difference=replace(cell.difference, discordant=0))
    few = replace(cell, difference=replace(cell.difference, discordant=4))
    assert power_notes([replace(row, cells={"knn/top1": same})], table.columns) == []
    (note,) = power_notes([replace(row, cells={"knn/top1": few})], table.columns)
    assert "no difference is found" in note.text
    assert power_notes([row] * 101, table.columns) == []


def test_the_star_is_corrected_for_the_number_of_tests(tmp_path: Path) -> None:
    base = np.arange(400) < 200
    paths = []
    for index, gained in enumerate((0, 5, 5)):
        right = base | ((np.arange(400) >= 200) & (np.arange(400) < 200 + gained))
        addon = ("none", "stl", "ser")[index]
        run_dir = make_run(tmp_path / addon, addon=addon)
        add_result(run_dir, "knn", {"top1": 100 * float(right.mean())}, n=400)
        add_predictions(run_dir, "knn", right)
        paths.append(run_dir.path)

    def star(chosen: list[Path]) -> bool:
        difference = compare_runs(chosen).rows[-1].cells["knn/top1"].difference
        assert difference is not None
        assert difference.p_value == pytest.approx(1 / 2**5)  # mid-p: half of the exact 2 / 2**5
        return difference.significant

    assert star([paths[0], paths[2]])
    assert not star(paths)


@pytest.mark.parametrize("fault", ["stale", "other images", "other labels"])
def test_predictions_that_do_not_belong_are_not_paired(tmp_path: Path, fault: str) -> None:
    paths = paper_runs(tmp_path)
    path = RunDir(paths[1]).predictions("knn")
    arrays = dict(np.load(path))
    if fault == "stale":
        arrays["predictions"] = (arrays["predictions"] + 1) % 10
    elif fault == "other images":
        arrays["image_ids"][0] = "val/99999.jpg"
    else:
        arrays["labels"][:2] += 1
        arrays["predictions"][:2] += 1
    np.savez(path, **arrays)
    table = compare_runs(paths)
    difference = row_of(table, "MoCo-v3 + SER (layer 3)").cells["knn/top1"].difference
    assert difference is not None
    assert difference.p_value is None
    assert not table.comparisons


def test_embedded_worlds_of_two_seeds_are_not_paired(tmp_path: Path) -> None:
    right = np.arange(200) < 100
    paths = []
    for seed in (0, 1):
        run_dir = make_run(tmp_path / str(seed), seed=seed)
        add_result(run_dir, "knn", {"top1": 50.0}, n=200, path="shapes")
        add_predictions(run_dir, "knn", right)
        paths.append(run_dir.path)
    difference = (
        compare_runs(paths, Options(baseline=paths[0])).rows[1].cells["knn/top1"].difference
    )
    assert difference is not None
    assert difference.p_value is None


def test_unreadable_predictions_are_a_clear_error(tmp_path: Path) -> None:
    paths = paper_runs(tmp_path)
    RunDir(paths[0]).predictions("knn").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"knn\.npz cannot be read as predictions"):
        compare_runs(paths)


# -- protocols ------------------------------------------------------------------------------------


def mixed_runs(root: Path) -> list[Path]:
    first, second = make_run(root / "a"), make_run(root / "b", addon="ser")
    add_result(first, "knn", {"top1": 50.0, "top5": 80.0})
    add_result(second, "knn", {"top1": 51.0, "top5": 81.0}, resize=224, k=20)
    add_result(first, "linear-eval--ser", {"top1": 60.0})
    add_result(second, "linear-eval--ser", {"top1": 61.0})
    return [first.path, second.path]


def test_mixed_protocols_are_refused_by_name(tmp_path: Path) -> None:
    paths = mixed_runs(tmp_path)
    with pytest.raises(UserError) as error:
        compare_runs(paths)
    message = str(error.value)
    assert f"settings.resize: 256 ({paths[0]}) vs 224 ({paths[1]})" in message
    assert f"settings.k: absent ({paths[0]}) vs 20 ({paths[1]})" in message
    assert "--allow-mixed" in message
    assert "\n" not in message
    assert len(compare_runs(paths, Options(columns=("linear-eval",))).columns) == 1


def test_allowed_mixtures_get_a_column_each(tmp_path: Path) -> None:
    table = compare_runs(mixed_runs(tmp_path), Options(allow_mixed=True, columns=("knn/*",)))
    headings = [column.heading for column in table.columns]
    assert headings == ["kNN top-1 [A]", "kNN top-1 [B]", "kNN top-5 [A]", "kNN top-5 [B]"]
    identities = [column.protocol_id for column in table.columns]
    assert identities[0] == identities[2] != identities[1] == identities[3]
    values = [[row.cell(column).value for column in table.columns] for row in table.rows]
    assert values == [[50.0, None, 80.0, None], [None, 51.0, None, 81.0]]
    assert all(
        row.cell(column).difference is None for row in table.rows for column in table.columns
    )
    assert "settings.resize: 256" in notes(table)


# -- seeds ----------------------------------------------------------------------------------------


def test_seeds_are_averaged_with_students_interval(tmp_path: Path) -> None:
    scores, ours = (50.0, 51.0, 54.0), (52.0, 52.5, 53.0)
    runs = [{"seed": seed, "top1": score} for seed, score in enumerate(scores)]
    runs += [{"addon": "ser", "seed": seed, "top1": score} for seed, score in enumerate(ours)]
    paths = knn_runs(tmp_path, *runs)
    table = compare_runs(paths, Options(group_seeds=True))
    assert labels(table) == ["MoCo-v3 (3 seeds)", "MoCo-v3 + SER (layer 3) (3 seeds)"]
    cell = table.rows[0].cells["knn/top1"]
    assert (cell.value, cell.std) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    expected = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    assert (cell.low, cell.high) == pytest.approx(expected)
    assert (cell.averaged, cell.seeds) == (3, None)
    difference = table.rows[1].cells["knn/top1"].difference
    assert difference is not None
    paired = stats.ttest_rel(ours, scores)
    ends = paired.confidence_interval()
    told = (difference.value, difference.low, difference.high, difference.p_value)
    expected = (np.mean(ours) - np.mean(scores), ends.low, ends.high, paired.pvalue)
    assert told == pytest.approx(expected)
    assert (difference.seeds, difference.images) == (3, None)
    assert "means over seeds, ± half the width of their 95 % interval (Student's t" in notes(table)
    assert "paired t p =" in table.comparisons[0]


def test_tests_over_seeds_share_holms_correction(tmp_path: Path) -> None:
    base, first, second = (50.0, 51.0, 54.0), (53.0, 54.1, 57.3), (50.5, 52.0, 54.1)
    runs = [{"seed": seed, "top1": score} for seed, score in enumerate(base)]
    for addon, scores in (("stl", first), ("ser", second)):
        runs += [{"addon": addon, "seed": s, "top1": score} for s, score in enumerate(scores)]
    table = compare_runs(knn_runs(tmp_path, *runs), Options(group_by=("seed",)))
    changes = [row.cells["knn/top1"].difference for row in table.rows[1:]]
    p_values = [stats.ttest_rel(scores, base).pvalue for scores in (first, second)]
    assert [change.p_value for change in changes if change] == pytest.approx(p_values)
    smaller, larger = sorted(p_values)
    adjusted = {smaller: min(1.0, 2 * smaller), larger: max(2 * smaller, larger)}
    assert [change.adjusted_p for change in changes if change] == pytest.approx(
        [adjusted[p] for p in p_values]
    )
    assert [change.significant for change in changes if change] == [True, False]


def test_a_pair_is_of_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    runs = [{"seed": seed, "top1": top1} for seed, top1 in ((0, 50.0), (1, 51.0), (2, 60.0))]
    runs += [{"addon": "ser", "seed": seed, "top1": top1} for seed, top1 in ((0, 52.0), (1, 52.5))]
    change = (
        compare_runs(knn_runs(tmp_path, *runs), Options(group_seeds=True))
        .rows[1]
        .cells["knn/top1"]
        .difference
    )
    assert change is not None
    assert (change.value, change.seeds) == (pytest.approx(1.75), 2)
    assert change.p_value == pytest.approx(stats.ttest_rel([52.0, 52.5], [50.0, 51.0]).pvalue)


def test_a_row_of_one_seed_has_no_interval_among_rows_of_several(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"seed": 0}, {"seed": 1, "top1": 52.0}, {"method": "dino"})
    table = compare_runs(paths, Options(group_seeds=True))
    assert labels(table) == ["MoCo-v3 (2 seeds)", "DINO (1 seed)"]
    alone = table.rows[1].cells["knn/top1"]
    assert (alone.value, alone.low, alone.std, alone.averaged) == (50.0, None, None, 1)
    assert "A row of one has no interval" in notes(table)
    header, *rows = csv.reader(io.StringIO(csv_text(table), newline=""))
    told = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["knn/top1/seeds"] for row in told] == ["2", "1"]
    assert [bool(row["knn/top1/low"]) for row in told] == [True, False]


def test_a_cell_with_fewer_seeds_says_so(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"seed": 0, "top1": 50.0}, {"seed": 1, "top1": 52.0})
    paths.append(make_run(tmp_path / "third", seed=2).path)
    cell = compare_runs(paths, Options(group_seeds=True)).rows[0].cells["knn/top1"]
    assert (cell.value, cell.seeds) == (51.0, 2)


def test_seeds_scored_on_different_images_or_with_different_weights_say_so(tmp_path: Path) -> None:
    for images, marked in ((100, 0), (50, 1)):
        runs = [{"seed": seed, "result": {"n": n}} for seed, n in enumerate((100, images))]
        paths = knn_runs(tmp_path / str(images), *runs)
        table = compare_runs(paths, Options(group_seeds=True))
        said = [note.text for note in table.notes if "different numbers of images" in note.text]
        assert len(said) == marked
    assert said == [
        "A mean over runs that scored different numbers of images: shapes/val (n differs)."
    ]
    assert table.rows[0].cells["knn/top1"].marks
    runs = [{"seed": seed, "result": {"key": key}} for seed, key in enumerate(("teacher", "ema"))]
    table = compare_runs(knn_runs(tmp_path / "weights", *runs), Options(group_seeds=True))
    assert "Its runs were scored with different weights, ema and teacher." in notes(table)


def test_seeds_of_a_pair_that_saw_other_images_are_not_compared(tmp_path: Path) -> None:
    for images, tested in ((100, True), (50, False)):
        runs = [{"seed": seed, "top1": 50.0 + seed, "result": {"n": 100}} for seed in (0, 1)]
        runs += [
            {"addon": "ser", "seed": seed, "top1": 53.0 + 2 * seed, "result": {"n": n}}
            for seed, n in enumerate((100, images))
        ]
        paths = knn_runs(tmp_path / str(images), *runs)
        change = compare_runs(paths, Options(group_seeds=True)).rows[1].cells["knn/top1"].difference
        assert (change is not None and change.p_value is not None) == tested


def test_seeds_of_another_protocol_are_not_averaged_with_the_others(tmp_path: Path) -> None:
    runs = [{"seed": 0, "top1": 50.0}, {"seed": 1, "top1": 60.0}]
    runs += [{"seed": 2, "top1": 90.0, "result": {"version": 2}}]
    paths = knn_runs(tmp_path, *runs)
    (row,) = compare_runs(paths, Options(group_seeds=True, allow_mixed=True)).rows
    told = [(cell.value, cell.averaged) for key, cell in row.cells.items() if "knn/top1" in key]
    assert told == [(55.0, 2), (90.0, 1)]


def test_a_seed_cannot_count_twice(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"seed": 1}, {"seed": 1})
    with pytest.raises(UserError, match="both seed 1 of the same recipe"):
        compare_runs(paths, Options(group_seeds=True))


# -- published ------------------------------------------------------------------------------------


def test_published_rows_stand_apart(tmp_path: Path) -> None:
    table = compare_runs(paper_runs(tmp_path), Options(published=True))
    own = [row for row in table.rows if not row.published]
    theirs = table.rows[len(own) :]
    assert all(row.published and row.label.endswith("[published]") for row in theirs)
    ser = row_of(table, "MoCo-v3 + SER (layer 3) [published]")
    assert ser.cells["linear-eval--ser/top1"].value == 69.28
    cosine = ser.cells["equiv-score/cosine_raw/block03/rotation"]
    assert cosine.value == 0.840
    assert "equiv-score/es/block03/rotation" not in ser.cells
    text = next(note.text for note in table.notes if note.mark in cosine.marks)
    assert "definition and block not public" in text
    assert not any(cell.best for row in theirs for cell in row.cells.values())


def test_the_published_column_appears_without_own_results(tmp_path: Path) -> None:
    table = compare_runs(knn_runs(tmp_path, {}), Options(published=True))
    assert table.columns[0].key == "linear-eval--ser/top1"
    assert table.rows[0].cells["linear-eval--ser/top1"] == Cell()
    assert table.rows[1].cells["linear-eval--ser/top1"].value == 68.44


def test_nothing_published_is_said(tmp_path: Path) -> None:
    paths = knn_runs(tmp_path, {"method": "dino"})
    assert "No published number" in notes(compare_runs(paths, Options(published=True)))


# -- columns and errors ---------------------------------------------------------------------------


def test_columns_can_be_chosen_and_ordered(tmp_path: Path) -> None:
    paths = paper_runs(tmp_path)

    def keys(*patterns: str) -> list[str]:
        return [column.key for column in compare_runs(paths, Options(columns=patterns)).columns]

    assert keys("run/train_seconds", "knn") == ["run/train_seconds", "knn/top1"]
    assert keys("knn/*") == ["knn/top1", "knn/k10/top1"]
    assert keys("coco-detect") == ["coco-detect--torchvision/ap"]
    assert keys("equiv-score/energy*") == ["equiv-score/energy/block03"]
    with pytest.raises(UserError, match=r"'nonsense' fits no column; .*knn/top1"):
        keys("nonsense")
    with pytest.raises(UserError, match="equivariance column is chosen"):
        compare_runs(paths, Options(columns=("knn",), block=3))


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no run directory"):
        compare_runs([tmp_path / "empty"])
    with pytest.raises(UserError, match="does not exist"):
        compare_runs([tmp_path / "missing"])
    bare = make_run(tmp_path / "bare", run={"timings": {}, "status": "running"})
    with pytest.raises(UserError, match="no result and no timing in"):
        compare_runs([bare.path])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n"])
def test_a_broken_recipe_is_a_clear_error(tmp_path: Path, text: str) -> None:
    run_dir = make_run(tmp_path / "a")
    run_dir.recipe.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        compare_runs([run_dir.path])


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("compare")(compare)
    return app


def test_the_command_prints_plain_text_into_a_pipe(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, list(map(str, paper_runs(tmp_path))))
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "+4.90*" in result.stdout


def test_the_command_replaces_its_file_and_makes_folders(app: typer.Typer, tmp_path: Path) -> None:
    paths = list(map(str, paper_runs(tmp_path / "runs")))
    out = tmp_path / "new" / "table.txt"
    for options in (["--format", "json"], ["--format", "csv", "--columns", "knn,run"]):
        result = CliRunner().invoke(app, [*paths, "--out", str(out), *options])
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
    header, *rows = csv.reader(io.StringIO(out.read_bytes().decode(), newline=""))
    assert header[6:9] == ["knn/top1", "knn/top1/low", "knn/top1/high"]
    assert len(rows) == 6
    assert [path.name for path in out.parent.iterdir()] == ["table.txt"]


def test_csv_on_the_screen_keeps_its_line_ends(app: typer.Typer, tmp_path: Path) -> None:
    paths = list(map(str, knn_runs(tmp_path, {})))
    result = CliRunner().invoke(app, [*paths, "--format", "csv"])
    assert result.stdout_bytes.count(b"\r\n") == 2


def test_the_command_fails_before_writing(app: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    paths = list(map(str, mixed_runs(tmp_path)))
    result = CliRunner().invoke(app, [*paths, "--format", "markdown", "--out", str(out)])
    assert isinstance(result.exception, UserError)
    assert not out.exists()


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_detectors_have_columns_as_coco_names_them(tmp_path, engine):
    paths = []
    for addon, shift in (("none", 0.0), ("ser", 2.5)):
        run_dir = make_run(tmp_path / addon, addon=addon)
        paths.append(run_dir.path)
        names = ("ap", "ap50", "ap_small", "ap/traffic light", "mask_ap", "mask_ap75")
        metrics = {name: 30.0 + shift + place for place, name in enumerate(names)}
        metrics |= {"ap/low": 29.0 + shift, "ap/high": 31.5 + shift}
        add_result(run_dir, f"coco-detect--{engine}", metrics)
    table = compare_runs(paths, Options())
    headings = {column.key.partition("/")[2]: column.heading for column in table.columns}
    assert headings["ap"] == f"COCO ({engine}) AP"
    assert headings["mask_ap"] == f"COCO ({engine}) mask AP"
    assert not {"ap50", "ap/low", "ap/traffic light"} & set(headings)
    everything = compare_runs(paths, Options(columns=("coco-detect--*",)))
    shown = [column.heading.removeprefix(f"COCO ({engine}) ") for column in everything.columns]
    assert shown == ["AP", "AP50", "AP small", "AP traffic light", "mask AP", "mask AP75"]
    assert all(column.direction == "up" for column in everything.columns)
    cell = table.rows[1].cells[f"coco-detect--{engine}/ap"]
    assert (cell.value, cell.low, cell.high) == (32.5, 31.5, 34.0)
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(2.5)
    (data,) = [note.text for note in table.notes if note.text.startswith("Scored")]
    assert data == f"Scored: coco-detect--{engine} on shapes/val."
    (published,) = [
        row for row in compare_runs(paths, Options(published=True)).rows if row.published
        and f"coco-detect--{engine}/ap" in row.cells
        and row.cells[f"coco-detect--{engine}/ap"].difference is not None
    ]  # fmt: skip
    assert published.cells[f"coco-detect--{engine}/ap"].difference.value == 1.7

"""What sercli/evals/README.md claims of the embedded world, by commands (minutes: marker slow)."""

import math
import statistics
from pathlib import Path

import pytest

from sercli.runs.run_dir import RunDir
from tests.support.command_line import ser

pytestmark = pytest.mark.slow


def trained(path, name, *options):
    run = path / name
    done = ser("pretrain", "--out", str(run), *options, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    for command in ("equiv-score", "knn"):
        done = ser(command, str(run), OMP_NUM_THREADS="2")
        assert done.returncode == 0, done.stderr
    return {result.name: result.metrics for result in RunDir(run).read_results()}


def test_ser_raises_equivariance_at_block_3(tmp_path):
    """In turns by more than the intervals; in mirrors less, which rounding moves as far."""
    plain = trained(tmp_path, "none", "--addon", "none")["equiv-score"]
    with_ser = trained(tmp_path, "ser")["equiv-score"]
    for g in ("rotation", "hflip"):
        name = f"es/block03/{g}"
        assert with_ser[name] > plain[name]
        assert with_ser[f"{name}/low"] > with_ser[f"es_random/block03/{g}/high"]
    rotation = "es/block03/rotation"
    assert with_ser[f"{rotation}/low"] > plain[f"{rotation}/high"]


@pytest.mark.timeout(3600)
def test_classes_are_learnt_and_ser_costs_no_accuracy_beyond_the_spread_of_seeds(tmp_path):
    differences = []
    for seed in ("0", "1", "2"):
        scores = {}
        for addon in ("none", "ser"):
            options = ("--recipe", f"shapes/moco-{addon}-long", "--seed", seed)
            run = scores[addon] = trained(tmp_path, f"{addon}-{seed}", *options)["knn"]
            assert run["top1"] >= 20  # twice chance
            assert run["top1/low"] > run["random/top1/high"]
        differences.append(scores["ser"]["top1"] - scores["none"]["top1"])
    half_width = 4.303 * statistics.stdev(differences) / math.sqrt(3)  # Student's t, 95 %, n = 3
    assert statistics.mean(differences) + half_width >= 0


SIX = [(method, addon) for method in ("moco", "dino", "barlow-twins") for addon in ("none", "ser")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("method", "addon"), SIX)
def test_every_objective_learns_the_embedded_world(tmp_path, method, addon):
    """Losses finite and falling, kNN above the random encoder's."""
    run = tmp_path / "run"
    done = ser("pretrain", "--method", method, "--addon", addon, "--out", str(run))
    assert done.returncode == 0, done.stderr
    rows = list(RunDir(run).read_metrics())
    for key in ("loss", "loss_inv", *(["loss_equiv"] if addon == "ser" else [])):
        values = [row[key] for row in rows]
        assert all(value is not None and math.isfinite(value) for value in values)
        # Against the first row, as DINO's loss rises again while its targets spread.
        assert statistics.mean(values[-len(values) // 4 :]) < values[0], key
    # DINO's custom is to evaluate the teacher.
    done = ser("knn", str(run), *(["--teacher"] if method == "dino" else []))
    assert done.returncode == 0, done.stderr
    found = {result.name: result.metrics for result in RunDir(run).read_results()}["knn"]
    assert found["top1"] > found["random/top1"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_detector_learns_the_embedded_world(tmp_path, engine):
    run = str(tmp_path / "run")
    assert ser("pretrain", "--out", run, OMP_NUM_THREADS="2").returncode == 0
    found = []
    for out, options in ((run, ()), (str(tmp_path / "untrained"), ("--schedule", "0"))):
        done = ser("coco-detect", run, "--engine", engine, "--out", out, *options)
        assert done.returncode == 0, done.stderr
        (result,) = RunDir(Path(out)).read_results()
        found.append(result.metrics)
    learnt, untrained = found
    for name in ("ap50", "mask_ap50"):
        assert learnt[f"{name}/low"] > untrained[f"{name}/high"]

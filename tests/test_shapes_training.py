"""What the README claims of the embedded world, from the command line (minutes: marker slow)."""

import pytest
from test_cli import ser

from sercli.run_dir import RunDir

pytestmark = pytest.mark.slow


def trained(path, name, *options):
    run = path / name
    done = ser("pretrain", "--out", str(run), *options, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    for command in ("equiv-score", "knn"):
        done = ser(command, str(run), OMP_NUM_THREADS="2")
        assert done.returncode == 0, done.stderr
    return {result.name: result.metrics for result in RunDir(run).read_results()}


def test_ser_raises_equivariance_at_block_3_intervals_apart(tmp_path):
    plain = trained(tmp_path, "none", "--addon", "none")["equiv-score"]
    with_ser = trained(tmp_path, "ser")["equiv-score"]
    for g in ("rotation", "hflip"):
        name = f"es/block03/{g}"
        assert with_ser[f"{name}/low"] > plain[f"{name}/high"]
        assert plain[f"{name}/low"] > plain[f"es_random/block03/{g}/high"]


@pytest.mark.timeout(3600)
def test_classes_are_learnt_and_ser_costs_no_accuracy(tmp_path):
    for seed in ("0", "1", "2"):
        plain = trained(
            tmp_path, f"none-{seed}", "--recipe", "shapes/moco-none-long", "--seed", seed
        )
        with_ser = trained(
            tmp_path, f"ser-{seed}", "--recipe", "shapes/moco-ser-long", "--seed", seed
        )
        for run in (plain["knn"], with_ser["knn"]):
            assert run["top1"] >= 20  # twice chance
            assert run["top1/low"] > run["random/top1/high"]
        assert with_ser["knn"]["top1/high"] >= plain["knn"]["top1/low"]

"""A method and an add-on from outside the checkout, by each door, through whole commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sercli.runs.run_dir import RunDir
from tests.support import toy_addon, toy_objective
from tests.support.command_line import ser
from tests.support.paths import ROOT
from tests.support.training import losses

pytestmark = pytest.mark.run
WORLD = [
    item
    for setting in (
        *("data.image_size=16", "data.num_train=96", "data.num_val=16", "data.workers=2"),
        *("model.patch_size=4", "model.width=16", "model.depth=4", "model.num_heads=2"),
        *("train.batch_size=12", "train.max_steps=2", "train.log_steps=1"),
    )
    for item in ("--set", setting)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files and a recipe, far from the checkout."""
    place = tmp_path_factory.mktemp("lab")
    shutil.copy(toy_addon.__file__ or "", place / "toy.py")
    shutil.copy(toy_objective.__file__ or "", place / "objective.py")
    (place / "mine.yaml").write_text(
        "extends: shapes/base\nplugins: [toy.py, objective.py]\n"
        "method: {name: toy, width: 16}\naddon: {name: toy, layer: 2, width: 8}\n"
    )
    return place


@pytest.fixture(scope="module")
def installed(place: Path) -> dict[str, str]:
    """The environment in which a distribution has them too."""
    package, info = place / "site" / "ser_toy", place / "site" / "ser_toy-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    shutil.copy(place / "toy.py", package / "addon.py")
    (package / "__init__.py").touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ser-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sercli.addons]\ntoy = ser_toy.addon:Toy\n")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(place / "site")])}


def done(place: Path, *arguments: str, **variables: str) -> str:
    answer = ser(*arguments, cwd=place, **{"PYTHONPATH": str(ROOT), **variables})
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def by_recipe(place: Path) -> RunDir:
    done(place, "pretrain", "--recipe", "mine.yaml", *WORLD, "--out", "by-recipe")
    return RunDir.open(place / "by-recipe")


def test_by_recipe_and_by_option_train_alike(place: Path, by_recipe: RunDir) -> None:
    options = [
        "--plugin",
        "toy.py",
        "--plugin",
        "objective.py",
        "--method",
        "toy",
        "--addon",
        "toy",
    ]
    options += ["--layer", "2", "--set", "addon.width=8", "--set", "method.width=16"]
    done(place, "pretrain", *options, *WORLD, "--out", "by-option")
    assert losses(RunDir.open(place / "by-option")) == losses(by_recipe)
    assert by_recipe.read_run()["titles"] == {"method": "toy", "addon": "toy"}


def test_loader_processes_may_be_spawned(place: Path, by_recipe: RunDir) -> None:
    lines = (
        "if __name__ == '__main__':",
        "    import multiprocessing",
        "    multiprocessing.set_start_method('spawn')",
        "    from sercli.cli import main",
        "    main()",
    )
    (place / "spawning.py").write_text("\n".join(lines))
    line = ["pretrain", "--recipe", "mine.yaml", *WORLD, "--out", "spawned"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "spawning.py", *line]
    subprocess.run(command, check=True, cwd=place, env=environment, capture_output=True)
    assert losses(RunDir.open(place / "spawned")) == losses(by_recipe)


def test_two_processes_train_it(place: Path, by_recipe: RunDir) -> None:
    line = ("--recipe", "mine.yaml", *WORLD, "--out", "two", "--nproc", "2")
    done(place, "pretrain", *line)
    two = RunDir.open(place / "two")
    assert two.read_run()["world_size"] == 2
    for ours, theirs in zip(losses(two), losses(by_recipe), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)


def test_by_a_package_and_what_is_left_without_it(place: Path, installed: dict[str, str]) -> None:
    done(place, "pretrain", "--addon", "toy", *WORLD, "--out", "by-package", **installed)
    recipe = (place / "by-package" / "recipe.yaml").read_text()
    assert recipe.endswith("plugins:\n- distribution: ser-toy\n  version: '1.0'\n")
    RunDir.open(place / "by-package").update_run(status="preempted")
    answer = ser("pretrain", "--resume", "by-package", cwd=place, PYTHONPATH=str(ROOT))
    assert answer.returncode == 2
    assert "the addon toy is of the package ser-toy 1.0; which is not installed" in answer.stderr
    assert "width" in done(place, "recipe", "show", "by-package")
    done(place, "pretrain", "--resume", "by-package", **installed)


def test_a_run_that_lost_its_files_resumes_and_is_shown_evaluated_and_compared(
    place: Path, by_recipe: RunDir
) -> None:
    shutil.copytree(by_recipe.path, place / "moved" / "run")
    run = RunDir.open(place / "moved" / "run")
    elsewhere = place / "moved"
    run.update_run(status="preempted", saved_step=None)  # stopped before it was saved
    run.checkpoint(2).unlink()
    done(elsewhere, "pretrain", "--resume", "run")  # from its own copies
    assert losses(run) == losses(by_recipe)
    text = run.recipe.read_text().replace(str(place), "/gone")
    run.recipe.write_text(text)
    shutil.rmtree(run.plugins)
    assert "addon.width" in done(elsewhere, "recipe", "show", "run")
    done(elsewhere, "knn", "run")
    done(elsewhere, "equiv-score", "run", "--layers", "0,2")
    done(elsewhere, "linear-eval", "run", "--epochs", "1")
    assert "toy + toy (layer 2)" in done(elsewhere, "compare", "run")
    run.update_run(status="preempted")
    answer = ser("pretrain", "--resume", "run", cwd=elsewhere, PYTHONPATH=str(ROOT))
    assert answer.returncode == 2
    assert "there is no plug-in" in answer.stderr


def test_what_it_costs_is_measured_and_that_it_would_train_is_checked(place: Path) -> None:
    files = ("--plugin", "toy.py", "--plugin", "objective.py")
    told = done(
        place,
        "bench",
        "addons",
        *files,
        "--rounds",
        "1",
        "--batch-size",
        "16",
        "--fraction",
        "0.25",
    )
    assert "toy" in told
    assert "FLOPs / none" in done(place, "recipe", "check", "mine.yaml")

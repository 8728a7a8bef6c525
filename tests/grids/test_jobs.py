"""A grid's jobs: which, in which order, and as a person would type them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sercli.errors import UserError
from sercli.families import resolve
from sercli.grids.jobs import Places, Plan, plan_jobs
from sercli.grids.reading import read_grid
from sercli.grids.schema import Grid
from tests.grids.conftest import job_of


def test_jobs_go_seed_by_seed_and_run_by_run(plan: Plan) -> None:
    assert [job.name for job in plan.jobs] == [
        "none-seed0", "none-seed0/knn", "none-seed0/probe", "data/world-seed0",
        "none-seed0/shifted", "ser-seed0", "ser-seed0/knn", "ser-seed0/probe",
        "none-seed1", "none-seed1/knn", "none-seed1/probe", "data/world-seed1",
        "none-seed1/shifted", "ser-seed1", "ser-seed1/knn", "ser-seed1/probe",
    ]  # fmt: skip
    assert job_of(plan, "none-seed1/shifted").needs == ("none-seed1", "data/world-seed1")


def test_commands_are_as_they_are_typed(plan: Plan, places: Places) -> None:
    out = shlex.quote(str(places.out))
    assert job_of(plan, "ser-seed1").command == (
        "ser pretrain --recipe shapes/moco-ser --seed 1 --set train.max_steps=2 "
        f"--set addon.weight=0.5 --out {out}/runs/ser-seed1"
    )
    assert job_of(plan, "data/world-seed1").command == (
        f"ser data shapes {out}/data/world-seed1 --seed 1"
    )
    assert job_of(plan, "none-seed1/shifted").command == (
        f"ser robustness {out}/runs/none-seed1 --all {out}/data/world-seed1"
    )
    going_on = job_of(plan, "ser-seed1").resumed(places)
    assert going_on.command == f"ser pretrain --resume {out}/runs/ser-seed1"


def test_device_processes_and_images_are_passed_on(grid: Grid, places: Places) -> None:
    there = replace(places, data="/d", machine=("--device", "cuda"), nproc=2)
    plan = plan_jobs(grid, there)
    words = job_of(plan, "none-seed0").words
    assert words[5:7] == ("--data", "/d")
    assert words[-4:] == ("--device", "cuda", "--nproc", "2")
    assert job_of(plan, "none-seed0/knn").words[-2:] == ("--device", "cuda")
    resumed = job_of(plan, "none-seed0").resumed(there)
    assert resumed.words[3:] == ("--device", "cuda", "--nproc", "2")


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("train: {lr: 1e-3}", "train.lr", 0.001),
        ("data.classes: [red disc, '07']", "data.classes", ["07", "red disc"]),
        ("views.setting: '2'", "views.setting", "2"),
        ("data: {path: 'it''s: #1'}", "data.path", "it's: #1"),
    ],
)
def test_settings_arrive_as_they_were_meant(
    write: Callable[[str], Path], places: Places, written: str, key: str, value: object
) -> None:
    grid = read_grid(write(f"runs: {{a: {{recipe: shapes/moco-none, set: {{{written}}}}}}}"))
    (job,) = plan_jobs(grid, places).jobs
    section, _, leaf = key.partition(".")
    settings = (*job.settings, *(["data.num_train=40"] if "classes" in key else []))
    recipe = resolve(job.recipe, settings, {}).recipe.model_dump(mode="json")
    assert recipe[section][leaf] == value


def test_what_has_no_place_is_left_out_and_said(
    write: Callable[[str], Path], places: Places, tmp_path: Path
) -> None:
    text = """
    runs: {none: imagenet/moco-none}
    evaluations:
      c: robustness --imagenet-c {robustness/imagenet-c|ImageNet-C}
      r: robustness --imagenet-r {robustness/imagenet-r}
      coco: coco-detect --coco {coco}
    """
    grid = read_grid(write(text))
    (tmp_path / "sets" / "ImageNet-C").mkdir(parents=True)
    (tmp_path / "imagenet-r").mkdir()
    given = (str(tmp_path / "sets"), str(tmp_path / "imagenet-r"))
    plan = plan_jobs(grid, replace(places, robustness=given))
    assert plan.notes == ("coco is left out: it needs --coco",)
    assert job_of(plan, "none-seed0/c").words[-1] == str(tmp_path / "sets" / "ImageNet-C")
    assert job_of(plan, "none-seed0/r").words[-1] == str(tmp_path / "imagenet-r")
    assert [note.partition(" ")[0] for note in plan_jobs(grid, places).notes] == ["c", "r", "coco"]


def test_a_slot_that_stands_for_nothing_is_refused(
    write: Callable[[str], Path], places: Places
) -> None:
    text = (
        "runs: {a: shapes/moco-none}\nprepare: {world: data shapes}\nevaluations: {e: 'knn {wrld}'}"
    )
    with pytest.raises(UserError, match=r"\{wrld\}.*did you mean world"):
        plan_jobs(read_grid(write(text)), places)


def test_only_some_runs_with_what_they_need(plan: Plan) -> None:
    assert [job.name for job in plan.only(["none-seed1"]).jobs] == [
        "none-seed1", "none-seed1/knn", "none-seed1/probe", "data/world-seed1",
        "none-seed1/shifted",
    ]  # fmt: skip
    assert {job.run for job in plan.only(["ser"]).jobs} == {"ser"}
    worlds = plan.only(["world"]).jobs
    assert [job.name for job in worlds] == ["data/world-seed0", "data/world-seed1"]
    with pytest.raises(UserError, match="did you mean"):
        plan.only(["ser-sed0"])


def test_names_of_files_may_be_anything_a_file_can_be_called(grid: Grid, tmp_path: Path) -> None:
    plan = plan_jobs(grid, Places(tmp_path / "it's \x1b[31m a {seed} folder"))
    command = job_of(plan, "none-seed0/shifted").command
    assert shlex.split(command)[-1].endswith("{seed} folder/data/world-seed0")

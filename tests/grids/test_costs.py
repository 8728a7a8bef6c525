"""What a grid costs: FLOPs of all steps, and hours by a benchmark's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sercli.engine.flops import count_flops
from sercli.errors import UserError
from sercli.families import resolve
from sercli.grids.costs import NOMINAL, Counter, Speed
from sercli.grids.jobs import Places, Plan, plan_jobs
from sercli.grids.reading import read_grid
from sercli.recipe.schedule import Schedule
from tests.grids.conftest import job_of

TEXT = """
set: {data: {num_train: 640, num_val: 64}}
runs:
  ser: {recipe: shapes/moco-ser, set: {train.epochs: 2}}
evaluations:
  knn: {command: knn, encodes: {train: 2, val: 3, more: 5}}
  es: equiv-score
prepare: {world: data shapes}
"""


@pytest.fixture
def counted(write: Callable[[str], Path], places: Places) -> tuple[Plan, Counter]:
    plan = plan_jobs(read_grid(write(TEXT)), places)
    job = plan.jobs[0]
    return plan, Counter(
        {job.directory.name: resolve(job.recipe, job.settings, {"seed": job.seed})}
    )


def test_flops_are_those_of_all_steps_and_of_all_images(counted: tuple[Plan, Counter]) -> None:
    plan, counter = counted
    recipe = counter.recipes["ser-seed0"].recipe
    training = counter.flops(job_of(plan, "ser-seed0"))
    assert training == 20 * count_flops(recipe).step  # 2 epochs of 640 images, 64 a step
    # ViT of width 64, 12 blocks, 36 patches of 8 px: products of the blocks, [CLS] from block 4 on.
    blocks = sum(24 * n * 64**2 + 4 * n**2 * 64 for n in [36] * 3 + [37] * 9)
    embedding = 2 * 36 * 192 * 64
    images = 2 * 640 + 3 * 64 + 5
    assert counter.flops(job_of(plan, "ser-seed0/knn")) == images * (blocks + embedding)
    assert counter.flops(job_of(plan, "ser-seed0/es")) is None


def test_images_that_are_not_here_are_as_many_as_imagenets(tmp_path: Path) -> None:
    resolved = resolve("imagenet/moco-none", (), {"data.path": str(tmp_path / "none")})
    counter = Counter({"a": resolved})
    steps = Schedule.of(resolved.recipe.train, NOMINAL["train"]).total_steps
    assert counter._of_training(resolved.recipe) == steps * count_flops(resolved.recipe).step
    assert counter.assumed == {str(tmp_path / "none")}
    assert steps == 100 * (1_281_167 // 2048)


def test_of_a_part_of_images_that_are_not_here_the_part_is_counted(tmp_path: Path) -> None:
    part = ("data.share=0.1", "data.classes=[a, b, c, d, e]", "train.batch_size=8")
    recipe = resolve("imagenet/moco-none", part, {"data.path": str(tmp_path / "none")}).recipe
    counter = Counter({})
    assert counter._size(recipe, "train") == round(NOMINAL["train"] * 5 / 1000 * 0.1)
    assert counter._size(recipe, "val") == 250


def bench(path: Path, *rows: dict[str, object], benchmark: str = "step") -> Path:
    path.write_text(
        json.dumps({"schema": 1, "device": "H", "tables": [{"benchmark": benchmark, "rows": rows}]})
    )
    return path


def row(step: str, seconds: float | None) -> dict[str, object]:
    return {"step": step, "flops": 1e12, "seconds": seconds}


def test_hours_are_at_a_recipes_own_speed_or_the_median(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    speed = Speed.from_file(bench(file, row("a", 1.0), row("b", 2.0), row("c", 4.0)))
    assert speed.seconds(4e12, "a") == pytest.approx(4.0)
    assert speed.seconds(4e12, "new") == pytest.approx(8.0)
    assert speed.device == "H"
    compiled = bench(file, row("a", 1.0), row("a, compiled", 0.5), row("a, reference", 0.1))
    assert Speed.from_file(compiled).seconds(4e12, "a") == pytest.approx(2.0)


@pytest.mark.parametrize(
    "rows",
    [[], [row("a", None)], [row("a", 0)], [{"step": "a"}], ["text"], [row("a, reference", 1)]],
)
def test_a_file_without_a_timed_step_is_refused(tmp_path: Path, rows: list[object]) -> None:
    with pytest.raises(UserError, match="no timed step"):
        Speed.from_file(bench(tmp_path / "bench.json", *rows))  # type: ignore[arg-type]


def test_a_file_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no timed step"):
        Speed.from_file(bench(tmp_path / "bench.json", row("a", 1.0), benchmark="loss"))

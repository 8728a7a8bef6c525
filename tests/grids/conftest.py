"""Grids made by hand, and run directories as trainings and evaluators leave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sercli.commands.grid_words import read_words
from sercli.families import resolve
from sercli.grids.jobs import Job, Places, Plan, plan_jobs
from sercli.grids.reading import read_grid
from sercli.grids.schema import Grid
from sercli.grids.standing import Standings
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

TEXT = """
seeds: [0, 1]
set: {train: {max_steps: 2}}
runs:
  none: shapes/moco-none
  ser: {recipe: shapes/moco-ser, set: {addon.weight: 0.5}, tables: [ablation]}
prepare:
  world: data shapes --seed {seed}
evaluations:
  knn: {command: knn, tables: [main]}
  probe: linear-eval --cached-features --epochs 5
  shifted: {command: "robustness --all {world}", runs: [none], results: [robustness--val]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return file

    return written


@pytest.fixture
def grid(write: Callable[[str], Path]) -> Grid:
    return read_grid(write(TEXT))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "out")


@pytest.fixture
def plan(grid: Grid, places: Places) -> Plan:
    return plan_jobs(grid, places)


@pytest.fixture
def standings() -> Standings:
    return Standings(read_words)


def job_of(plan: Plan, name: str) -> Job:
    return next(job for job in plan.jobs if job.name == name)


def trained(job: Job, **record: Any) -> RunDir:
    """A run directory as the training of a job leaves it, without its weights."""
    resolved = resolve(job.recipe, job.settings, {"seed": job.seed})
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    run = {"status": "done", "seed": job.seed, **record}
    return RunDir.create(job.directory, recipe=resolved.recipe.to_yaml(), run=run)


def measured(
    run: RunDir,
    name: str,
    metrics: Mapping[str, float | None],
    *,
    command: tuple[str, ...] = (),
    partial: bool = False,
    rule: int = 1,
) -> Path:
    """A result as an evaluator leaves it."""
    protocol, _, variant = name.partition("--")
    result = Result(
        protocol={
            "name": protocol, "variant": variant or None, "version": 1, "settings": {"rule": rule},
        },
        model={"source": str(run.path), "key": "student"},
        data={"path": "shapes", "n": 32, "partial": partial},
        metrics=dict(metrics),
        command=command,
    )  # fmt: skip
    return run.write_result(result)

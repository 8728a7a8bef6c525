"""What is done is read from what is there: run directories as jobs leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sercli.grids.jobs import Places, Plan, plan_jobs
from sercli.grids.reading import read_grid
from sercli.grids.standing import Standings
from sercli.runs.lease import leased
from tests.grids.conftest import job_of, measured, trained

TOP1 = {"top1": 50.0}


def test_a_training_is_done_if_its_run_says_so(plan: Plan, standings: Standings) -> None:
    job = job_of(plan, "ser-seed1")
    assert standings.of(job).status == "new"
    run = trained(job, status="running")
    assert standings.of(job).status == "stopped"  # whoever trained it is gone
    for status in ("preempted", "interrupted"):
        run.update_run(status=status)
        assert standings.of(job).status == "stopped"
    run.update_run(status="failed", error="the loss was not finite\nat step 3")
    failed = standings.of(job)
    assert failed.status == "failed"
    assert "the loss was not finite at step 3" in failed.why
    run.update_run(status="done")
    assert standings.of(job).status == "done"


def test_a_run_of_another_recipe_is_not_it(
    write: Callable[[str], Path], plan: Plan, places: Places, standings: Standings
) -> None:
    trained(job_of(plan, "ser-seed1"))
    text = "seeds: [1]\nruns: {ser: {recipe: shapes/moco-ser, set: {train.max_steps: 3}}}"
    changed = standings.of(plan_jobs(read_grid(write(text)), places).jobs[0])
    assert changed.status == "other"
    assert "addon.weight was 0.5, is 1.0; train.max_steps was 2, is 3" in changed.why
    edited = plan_jobs(read_grid(write(text)), places).jobs
    assert standings.foreign(edited) == {edited[0].directory: changed.why}
    assert Standings(standings._read_command).foreign(plan.jobs) == {}


def test_settings_that_change_no_number_make_no_other_run(
    write: Callable[[str], Path], plan: Plan, places: Places, standings: Standings
) -> None:
    trained(job_of(plan, "none-seed0"))
    text = "runs: {none: {recipe: shapes/moco-none, set: {train: {max_steps: 2, log_steps: 1}}}}"
    assert standings.of(plan_jobs(read_grid(write(text)), places).jobs[0]).status == "done"
    text = text.replace("log_steps: 1", "max_steps: 2}, data: {path: elsewhere").replace(
        "max_steps: 2, max_steps", "max_steps"
    )
    moved = Standings(standings._read_command)
    assert moved.of(plan_jobs(read_grid(write(text)), places).jobs[0]).status == "other"


def test_what_another_process_is_at_is_busy(plan: Plan, standings: Standings) -> None:
    job, knn = job_of(plan, "ser-seed1"), job_of(plan, "ser-seed1/knn")
    run = trained(job, status="running")
    with leased(run):
        busy = standings.of(job)
        assert busy.status == "busy"
        assert "one process at a time" in busy.why
        run.update_run(status="done")
        assert standings.of(knn).status == "busy"
    assert standings.of(knn).status == "new"


@pytest.mark.parametrize("content", [None, "{", '{"schema": 9, "status": "done"}'])
def test_what_is_no_run_directory_is_said(
    plan: Plan, standings: Standings, content: str | None
) -> None:
    job = job_of(plan, "ser-seed1")
    job.directory.mkdir(parents=True)
    if content is not None:
        (job.directory / "run.json").write_text(content)
    standing = standings.of(job)
    assert standing.status == "other"
    assert "run.json" in standing.why


def test_an_evaluation_is_done_if_its_result_was_asked_for_alike(
    plan: Plan, standings: Standings
) -> None:
    run = trained(job_of(plan, "ser-seed1"))
    knn, probe = job_of(plan, "ser-seed1/knn"), job_of(plan, "ser-seed1/probe")
    assert standings.of(knn).status == "new"
    for command, status in {
        (): "new",  # of an earlier version, which did not say
        ("ser", "knn", "x", "--no-floor"): "new",
        ("ser", "knn", "x", "--limit", "8"): "new",
        ("ser", "knn", "x", "--unheard-of"): "new",
        ("ser", "knn", "x"): "done",
        ("ser", "knn", "elsewhere", "--floor", "--device", "cpu", "--debug"): "done",
    }.items():
        measured(run, "knn", TOP1, command=command)
        assert standings.of(knn).status == status, command
    measured(run, "knn", TOP1, command=("ser", "knn", "x"), partial=True)
    assert standings.of(knn).status == "new"
    name = "linear-eval--ser-no-augment"
    measured(run, name, TOP1, command=("ser", "linear-eval", "x", "--cached-features"))
    assert standings.of(probe).status == "new"  # of 50 epochs, not 5
    asked = ("ser", "linear-eval", "x", "--epochs=5", "--cached-features")
    measured(run, name, TOP1, command=asked)
    assert standings.of(probe).status == "done"


def test_a_damaged_result_is_none(plan: Plan, standings: Standings) -> None:
    run = trained(job_of(plan, "ser-seed1"))
    path = measured(run, "knn", TOP1, command=("ser", "knn", "x"))
    value = json.loads(path.read_text())
    value["metrics"]["top1"] = 99.0
    path.write_text(json.dumps(value))
    assert standings.of(job_of(plan, "ser-seed1/knn")).status == "new"
    path.write_text(path.read_text()[:40])
    assert standings.of(job_of(plan, "ser-seed1/knn")).status == "new"


def test_of_several_results_all_must_be_there(
    write: Callable[[str], Path], places: Places, standings: Standings
) -> None:
    text = """
    runs: {none: shapes/moco-none}
    evaluations:
      r: {command: robustness --all W, results: [robustness--val, robustness--imagenet-c]}
    """
    training, job = plan_jobs(read_grid(write(text)), places).jobs
    run, command = trained(training), ("ser", "robustness", "x", "--all", "W")
    measured(run, "robustness--val", TOP1, command=command)
    assert standings.of(job).status == "new"
    measured(run, "robustness--imagenet-c", TOP1, command=(*command[:-1], "V"))
    assert standings.of(job).status == "new"
    measured(run, "robustness--imagenet-c", TOP1, command=command)
    assert standings.of(job).status == "done"


def test_what_is_prepared_is_there_or_not(plan: Plan, standings: Standings) -> None:
    job = job_of(plan, "data/world-seed0")
    assert standings.of(job).status == "new"
    job.directory.mkdir(parents=True)
    assert standings.of(job).status == "done"

"""Jobs one after the other, without a process: what is skipped, gone on with, left out, said."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sercli.errors import Interrupted, Preempted
from sercli.grids.children import Children
from sercli.grids.eta import Estimator
from sercli.grids.jobs import Job, Places, Plan
from sercli.grids.running import Files, Runner, Summary
from sercli.grids.standing import Standings
from sercli.runs.lease import leased
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.grids.conftest import job_of, measured, trained


class Made(Children):
    """Stands for processes: does what a job would, or what the test says instead.

    Args:
        jobs: That there may be.
        instead: Name of a job → what happens in its place.
    """

    def __init__(
        self, jobs: Sequence[Job], instead: dict[str, Callable[[], int]] | None = None
    ) -> None:
        super().__init__(StopRequest())
        self.jobs, self.instead, self.commands = jobs, instead or {}, list[str]()

    def run(self, words: Sequence[str], log: Path | None) -> int:
        del log
        self.commands.append(" ".join(words))
        job = next(
            job
            for job in self.jobs
            if words[0] == job.words[0]
            and (str(job.directory) in words)
            and ("--resume" in words or tuple(words) == job.words)
        )
        if job.name in self.instead:
            return self.instead[job.name]()
        return make(job)


def make(job: Job) -> int:
    if job.is_training:
        if job.directory.exists():
            RunDir(job.directory).update_run(status="done")
        else:
            trained(job)
    elif job.evaluation is None:
        job.directory.mkdir(parents=True)
    else:
        for name in job.evaluation.results or [
            {"linear-eval": "linear-eval--ser-no-augment"}.get(job.words[0], job.words[0])
        ]:
            measured(RunDir(job.directory), name, {"top1": 1.0}, command=("ser", *job.words))
    return 0


@pytest.fixture
def runner(places: Places, standings: Standings) -> Runner:
    lines: list[str] = []
    runner = Runner(
        places,
        standings,
        Estimator(lambda job: 100.0 if job.is_training else None),
        tell=lines.append,
        showing=lambda _text: contextlib.nullcontext(),
        patience=0.0,
    )
    runner.lines = lines  # type: ignore[attr-defined]
    return runner


def lines_of(runner: Runner) -> list[str]:
    return runner.lines  # type: ignore[attr-defined,no-any-return]


def test_all_is_done_once_and_a_line_a_job(plan: Plan, runner: Runner, places: Places) -> None:
    made = Made(plan.jobs)
    assert runner.run(plan.jobs, made).complete
    assert len(made.commands) == len(lines_of(runner)) - 1 == 16
    assert lines_of(runner)[0] == "16 jobs"
    assert lines_of(runner)[1].startswith(" 1/16 none-seed0: pretrain shapes/moco-none, 0 s; about")
    assert lines_of(runner)[-1] == "16/16 ser-seed1/probe, 0 s"
    logged = Files(places.out).lines.read_text().splitlines()
    assert [line.partition("Z ")[2] for line in logged] == lines_of(runner)
    assert "$ ser knn" in Files(places.out).log(job_of(plan, "ser-seed1/knn")).read_text()

    again = Made(plan.jobs)
    assert runner.run(plan.jobs, again).complete
    assert again.commands == []
    assert lines_of(runner)[-1] == "16 jobs, 16 of them done before"


def test_what_was_stopped_goes_on_and_is_not_timed(
    plan: Plan, runner: Runner, places: Places
) -> None:
    trained(job_of(plan, "none-seed0"), status="preempted")
    made = Made(plan.jobs)
    assert runner.run(plan.jobs, made).complete
    assert made.commands[0] == f"pretrain --resume {places.run('none', 0)}"
    assert "gone on with" in lines_of(runner)[1]
    rows = [json.loads(line) for line in Files(places.out).timed.read_text().splitlines()]
    assert len(rows) == 15
    assert "none-seed0" not in {row["job"] for row in rows}


def test_a_failure_leaves_out_what_needs_it_and_nothing_else(
    plan: Plan, runner: Runner, places: Places
) -> None:
    def fail() -> int:
        Files(places.out).log(job_of(plan, "none-seed0")).write_text("a\nser: no disk\n")
        return 3

    summary = runner.run(plan.jobs, Made(plan.jobs, {"none-seed0": fail}))
    assert list(summary.failed) == [
        "none-seed0", "none-seed0/knn", "none-seed0/probe", "none-seed0/shifted",
    ]  # fmt: skip
    assert summary.done == 12
    assert "failed: no disk" in lines_of(runner)[1]
    assert lines_of(runner)[2] == " 2/16 none-seed0/knn: left out, as none-seed0 is not done"


def test_it_can_stop_at_a_failure(plan: Plan, runner: Runner) -> None:
    made = Made(plan.jobs, {"none-seed0/knn": lambda: -9})
    summary = replace(runner, keep_going=False).run(plan.jobs, made)
    assert summary.done == 1
    assert "killed by signal 9 (SIGKILL), as happens where memory is short" in lines_of(runner)[-1]


def test_an_end_without_a_result_is_a_failure(plan: Plan, runner: Runner) -> None:
    summary = runner.run(plan.jobs, Made(plan.jobs, {"ser-seed0/knn": lambda: 0}))
    assert "no whole result of this command" in summary.failed["ser-seed0/knn"]
    assert len(summary.failed) == 1


def test_runs_that_failed_are_left_unless_they_are_asked_for(plan: Plan, runner: Runner) -> None:
    trained(job_of(plan, "none-seed0"), status="failed", error="the loss is nan")
    first = Made(plan.jobs)
    summary = runner.run(plan.jobs, first)
    assert "failed before: the loss is nan; --retry-failed" in summary.failed["none-seed0"]
    assert not summary.complete
    second = Made(plan.jobs)
    assert replace(runner, retry_failed=True).run(plan.jobs, second).complete
    assert "--resume" in second.commands[0]


@pytest.mark.parametrize(("how", "error"), [("preempted", Preempted), ("interrupted", Interrupted)])
def test_a_signal_stops_it_after_the_child(
    plan: Plan, runner: Runner, how: str, error: type[Exception]
) -> None:
    made = Made(plan.jobs)

    def stopped() -> int:
        setattr(made.request, how, True)
        trained(job_of(plan, "ser-seed0"), status="preempted")
        return 75

    made.instead["ser-seed0"] = stopped
    with pytest.raises(error, match="5 of 16 jobs are done: repeat the command"):
        runner.run(plan.jobs, made)
    assert runner.run(plan.jobs, Made(plan.jobs)).complete


def test_a_job_that_was_about_to_end_is_done(plan: Plan, runner: Runner) -> None:
    made = Made(plan.jobs)

    def late() -> int:
        made.request.preempted = True
        return make(job_of(plan, "none-seed0"))

    made.instead["none-seed0"] = late
    with pytest.raises(Preempted, match="1 of 16 jobs are done"):
        runner.run(plan.jobs, made)
    assert "stopped" not in " ".join(lines_of(runner))


def test_a_child_that_somebody_stopped_stops_it(plan: Plan, runner: Runner) -> None:
    with pytest.raises(Preempted):
        runner.run(plan.jobs, Made(plan.jobs, {"none-seed0": lambda: 75}))


def test_two_do_not_do_the_same_job(plan: Plan, runner: Runner) -> None:
    run = trained(job_of(plan, "none-seed0"), status="running")
    with leased(run):
        summary = runner.run(plan.jobs, Made(plan.jobs))
    assert "is being trained by process" in summary.failed["none-seed0"]
    assert summary.done == 12


def test_while_a_run_is_evaluated_it_is_leased(plan: Plan, runner: Runner) -> None:
    made = Made(plan.jobs)
    seen: list[str] = []

    def look() -> int:
        seen.append(runner.standings.of(job_of(plan, "none-seed0/knn")).status)
        return make(job_of(plan, "none-seed0/knn"))

    made.instead["none-seed0/knn"] = look
    assert runner.run(plan.jobs, made).complete
    assert seen == ["busy"]
    assert not RunDir(job_of(plan, "none-seed0").directory).lease.exists()


def test_a_summary_is_complete_when_all_is_done() -> None:
    assert Summary(2, 2).complete
    assert not Summary(2, 1, {"a": "why"}).complete

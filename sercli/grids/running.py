"""A grid's jobs, one after the other: what is done is skipped, what was stopped goes on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sercli.errors import Interrupted, Preempted, UserError, from_os_error
from sercli.grids.children import Children, how_it_ended
from sercli.grids.eta import Estimator, Timed
from sercli.grids.jobs import Job, Places
from sercli.grids.standing import Standing, Standings
from sercli.runs.lease import leased
from sercli.runs.reading import rows
from sercli.runs.result import now
from sercli.runs.run_dir import RunDir
from sercli.visible import counted, duration, visible

_LOOK_SECONDS = 0.5
_STOPPED = {Preempted.exit_status: Preempted, Interrupted.exit_status: Interrupted}


@dataclass(frozen=True)
class Files:
    """Where a grid's folder has what is no run."""

    out: Path

    @property
    def lines(self) -> Path:
        """A line a job, as people see it."""
        return self.out / "reproduce.log"

    @property
    def timed(self) -> Path:
        """What jobs took, for the time left of later ones; nothing is read from it but that."""
        return self.out / "timed.jsonl"

    def log(self, job: Job) -> Path:
        """What a job printed."""
        return self.out / "logs" / f"{job.name.replace('/', '--')}.log"


@dataclass
class Summary:
    """What became of the jobs.

    Attributes:
        done: How many are done, those of before included.
        failed: Name → why, of those that are not and of those that wait for them.
        total: Of all.
    """

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.done == self.total


@dataclass
class Runner:
    """Does jobs.

    Attributes:
        places: What all of them are given.
        standings: How they stand.
        estimator: What they take.
        tell: Shows a line.
        showing: Shows on a terminal what is under way.
        keep_going: Whether others follow one that failed.
        retry_failed: Whether runs that failed are gone on with.
        patience: Seconds that another process at the same job is waited for.
    """

    places: Places
    standings: Standings
    estimator: Estimator
    tell: Callable[[str], None]
    showing: Callable[[str], contextlib.AbstractContextManager[object]]
    keep_going: bool = True
    retry_failed: bool = False
    patience: float = 20.0

    def run(self, jobs: Sequence[Job], children: Children) -> Summary:
        """Do jobs one after the other.

        Raises:
            Preempted, Interrupted: A signal came; what is done is kept.
        """
        files = Files(self.places.out)
        self.estimator.timed += list(_timed(files.timed))
        standings = {job.name: self.standings.of(job, self.places.data) for job in jobs}
        open_jobs = [job for job in jobs if standings[job.name].status != "done"]
        summary = Summary(len(jobs), len(jobs) - len(open_jobs))
        self._say(files, self._beginning(summary, open_jobs))
        for place, job in enumerate(open_jobs):
            children.raise_if_stopped(_so_far(summary))
            why = self._why_not(job, summary)
            if not why:
                why = self._do(job, files, children, summary, later=open_jobs[place + 1 :])
            if why:
                summary.failed[job.name] = why
                number = summary.done + len(summary.failed)
                self._say(files, f"{self._number(number, summary)} {job.name}: {why}")
                if not self.keep_going:
                    break
        return summary

    def _beginning(self, summary: Summary, open_jobs: Sequence[Job]) -> str:
        left = str(self.estimator.left(open_jobs))
        before = f", {summary.done} of them done before" if summary.done else ""
        return f"{counted(summary.total, 'job')}{before}{f'; {left}' if left and open_jobs else ''}"

    def _why_not(self, job: Job, summary: Summary) -> str:
        """Why a job cannot be done, before its own state is looked at."""
        waits = [need for need in job.needs if need in summary.failed]
        return f"left out, as {waits[0]} is not done" if waits else ""

    def _do(
        self,
        job: Job,
        files: Files,
        children: Children,
        summary: Summary,
        *,
        later: Sequence[Job],
    ) -> str:
        """Do a job; why it is not done, or nothing."""
        standing = self._standing(job, children)
        if standing.status == "done":  # by another process meanwhile
            summary.done += 1
            return ""
        goes_on = standing.status == "stopped" or (
            standing.status == "failed" and self.retry_failed
        )
        children.raise_if_stopped(_so_far(summary))
        if standing.status != "new" and not goes_on:
            return _refused(standing)
        number = summary.done + len(summary.failed) + 1
        begun = time.monotonic()
        asked = job.resumed(self.places) if goes_on else job
        what = f": {job.what}" if job.is_training else ""  # an evaluation's name says it
        shown = f"{self._number(number, summary)} {job.name}{what}"
        try:
            with self.showing(shown), self._alone_in(job):
                _append(files.log(job), f"\n$ {asked.command}  # {now()}\n")
                status = children.run(asked.words, files.log(job))
        except UserError as error:
            return str(error)
        seconds = time.monotonic() - begun
        if status in _STOPPED or (status and children.stopped):
            self._say(files, f"{shown}, stopped after {duration(seconds)}")
            children.raise_if_stopped(_so_far(summary))
            raise _STOPPED[status](f"stopped; {_so_far(summary)}")  # by a signal to it alone
        if status:
            return f"failed: {how_it_ended(status, files.log(job))} ({files.log(job)})"
        if self.standings.of(job, self.places.data).status != "done":
            return f"it ended well, but {_missing(job)} ({files.log(job)})"
        summary.done += 1
        timed = Timed(job.kind, seconds, self.estimator.flops_of(job))
        if not goes_on:
            self.estimator.timed.append(timed)
            _append(files.timed, json.dumps(timed.to_json(job.name)) + "\n")
        left = str(self.estimator.left(later))
        gone_on = ", gone on with" if goes_on else ""
        self._say(
            files,
            f"{shown}{gone_on}, {duration(seconds)}{f'; {left}' if left and later else ''}",
        )
        return ""

    def _standing(self, job: Job, children: Children) -> Standing:
        """How a job stands; one whose process may be about to end is waited for.

        A training whose `ser reproduce` was killed sees that, saves and ends.
        """
        until = time.monotonic() + self.patience
        while True:
            standing = self.standings.of(job, self.places.data)
            if standing.status != "busy" or time.monotonic() > until or children.stopped:
                return standing
            time.sleep(_LOOK_SECONDS)

    @contextlib.contextmanager
    def _alone_in(self, job: Job) -> Iterator[None]:
        """Evaluations hold no lease of the run that they are of: this process does."""
        if job.evaluation is None:
            yield
            return
        with leased(RunDir(job.directory)):
            yield

    def _number(self, number: int, summary: Summary) -> str:
        return f"{number:>{len(str(summary.total))}}/{summary.total}"

    def _say(self, files: Files, line: str) -> None:
        line = visible(line)
        self.tell(line)
        _append(files.lines, f"{now()} {line}\n")


def _refused(standing: Standing) -> str:
    words = {"failed": "failed before: ", "busy": "", "other": ""}
    return f"{words[standing.status]}{standing.why}"


def _so_far(summary: Summary) -> str:
    return f"{summary.done} of {summary.total} jobs are done: repeat the command to go on"


def _missing(job: Job) -> str:
    if job.evaluation is None:
        return f"{job.directory} is not what it was to be"
    names = ", ".join(job.evaluation.results)
    return f"there is no whole result{f' of {names}' if names else ''} of this command"


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error


def _timed(path: Path) -> Iterator[Timed]:
    if path.is_file():
        for row in rows(path):
            timed = Timed.of_row(row)
            if timed is not None:
                yield timed

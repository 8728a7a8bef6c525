"""A thread in each of several processes that ends the run when another does not go on.

A process that dies or hangs leaves the others in a collective, for as long as torch lets them: half
an hour, and then a traceback. The thread tells the others where the main thread is
(`sercli.stages`), hears where they are (`meeting.Exchange`), and, where the `Judge` finds that one
of them has stood still for longer than its stage may, says who, writes run.json and ends the
process: its main thread cannot, as it waits. Files are written beside their place and renamed, so
that none is left half there. One process has no such thread.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from sercli import stages
from sercli.engine.judgement import Judge, Report, Verdict
from sercli.engine.meeting import Exchange, kept_by_torchrun
from sercli.engine.processes import Started, under_agent
from sercli.errors import Interrupted, Preempted, RunFailed, SerError
from sercli.runs.owner import Owner, is_stopped, lives
from sercli.runs.run_dir import RunDir
from sercli.visible import one_line

_LOOK_AT_A_DEATH = 5.0  # seconds to find out who has died, once a connection broke
_TELL = 30.0  # seconds for the last words: their file system may be what hangs
_LEAVE = 30.0  # seconds for the main thread to leave the group after an error


# -- what the kernel says -------------------------------------------------------------------------


def myself(rank: int) -> Report:
    """This process, as the others know it."""
    me = Owner.here()
    return Report(rank, me.host, me.boot, me.pid, me.started)


def state_of(report: Report) -> str:
    """What the kernel says of a process of this machine: "gone", "stopped" or ""."""
    if not lives(report.pid, report.born):
        return "gone"
    return "stopped" if is_stopped(report.pid) else ""


# -- watching -------------------------------------------------------------------------------------


class Watch:
    """Watches the other processes, beside the main thread.

    Args:
        one: This process.
        bounds: Seconds by stage.
    """

    def __init__(self, one: Started, bounds: Mapping[str, float]) -> None:
        self.one = one
        self.interval = min(1.0, min(bounds.values()) / 10)
        self.me, self._end = myself(one.rank), ""
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self.exchange = Exchange(one, self.interval, self._report)
        self.judge = Judge(
            one.rank,
            one.world_size,
            bounds,
            interval=self.interval,
            kept_by_first=not kept_by_torchrun(),
            state_of=state_of,
        )
        self._thread = threading.Thread(target=self._run, name="ser-watch", daemon=True)

    def start(self) -> None:
        self.exchange.start()
        self._thread.start()

    def end(self, last_word: str) -> None:
        """The main thread leaves: nothing is judged any more, and the others are told.

        Args:
            last_word: What it failed with; empty: it has not.
        """
        with self._lock:  # not while the thread leaves
            if self._is_over.is_set():
                return
            self._end = last_word
            self._is_over.set()
        self.exchange.end()

    def _report(self, beat: int) -> Report:
        here, me = stages.here, self.me
        return Report(
            me.rank, me.host, me.machine, me.pid, me.born,
            here.stage, here.doing, here.step, here.turn, here.moves, beat, here.run,
            self._end if self._is_over.is_set() else None,
        )  # fmt: skip

    def _run(self) -> None:
        looks = 0
        while not self._is_over.wait(self.interval):
            looks += 1
            verdict = self.judge.look(time.monotonic(), self._report(looks), self.exchange.seen)
            if verdict is not None:
                self._leave(verdict)

    def why(self, error: BaseException) -> str:
        """Who is behind a connection that broke in the main thread, if that can be found out."""
        until = time.monotonic() + _LOOK_AT_A_DEATH
        while time.monotonic() < until:
            if found := self.judge.suspect():
                return found
            time.sleep(self.interval)
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
        return self.judge.quietest() or (
            f"the connection to another of the {self.one.world_size} processes broke ({first}): "
            "its own last lines say why"
        )

    # -- leaving ------------------------------------------------------------------------------

    def _leave(self, verdict: Verdict) -> None:
        """End this process. Its main thread waits for what will not come."""
        with self._lock:
            if self._is_over.is_set():
                return
            # What is told may hang as the main thread does, for instance on a file system.
            telling = threading.Thread(target=self._tell, args=(verdict,), daemon=True)
            telling.start()
            telling.join(_TELL)
            os._exit(RunFailed.exit_status)

    def _tell(self, verdict: Verdict) -> None:
        text = verdict.text + how_to_go_on(self._run_dir())
        if self.one.rank == verdict.writer:
            self._record(text)
        if not under_agent() or verdict.writer in verdict.culprits:
            say(text)
        if self.one.rank != verdict.writer:
            time.sleep(min(2.0, 2 * self.interval))  # the first to end has the others ended
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()

    def _run_dir(self) -> str:
        told = (report.run for report in self.judge.reports.values())
        return stages.here.run or next(filter(None, told), "")

    def _record(self, text: str) -> None:
        if path := self._run_dir():
            record(RunDir(Path(path)), text)


def say(text: str) -> None:
    """A line on standard error, past all buffers: the main thread may hold their locks."""
    with suppress(OSError):
        os.write(2, f"{one_line(f'ser: {text}')}\n".encode("utf-8", "backslashreplace"))


def record(run: RunDir, text: str) -> None:
    """Say in run.json that the run failed, unless it says already how it ended."""
    with suppress(SerError, OSError, KeyError):
        if run.read_run()["status"] == "running":
            run.update_run(status="failed", exit_status=RunFailed.exit_status, error=text)


def how_to_go_on(run: str) -> str:
    """What a message ends with, where there is a run to go on with."""
    if not run:
        return ""
    if not RunDir(Path(run)).checkpoint_steps():
        return "; no checkpoint had been written"
    return f"; the last checkpoint is kept: continue with ser pretrain --resume {run}"


# -- around the main thread -----------------------------------------------------------------------

_watch: Watch | None = None


@contextmanager
def watching(one: Started, bounds: Mapping[str, float]) -> Iterator[None]:
    """Inside, the others are watched, and this process is by them."""
    global _watch
    _watch = Watch(one, bounds)
    _watch.start()
    try:
        with naming_who_is_gone():
            yield
    finally:
        _watch.end("")
        _watch, stages.here.run = None, ""


@contextmanager
def in_group() -> Iterator[None]:
    """Inside is what the processes do as a group; it is left in the end, whatever happens.

    The others are told of an error first: they may wait for this process.
    """
    timer = None
    try:
        with naming_who_is_gone():
            yield
    except Exception as error:
        if _watch is not None:
            _watch.end(_last_word(error))
        timer = _leave_anyway(error)
        raise
    finally:
        if _watch is not None:
            _watch.end("")
        dist.destroy_process_group()
        if timer is not None:
            timer.cancel()


@contextmanager
def naming_who_is_gone() -> Iterator[None]:
    """Turn what a collective raises when another process is gone into a line that names it.

    Raises:
        RunFailed: In that case.
    """
    try:
        yield
    except RuntimeError as error:
        if _watch is None or not of_a_connection(error):
            raise
        text = _watch.why(error)
        raise RunFailed(text + how_to_go_on(stages.here.run)) from error


def of_a_connection(error: BaseException) -> bool:
    """Whether an error is a collective's, whose other end is gone."""
    return isinstance(error, dist.DistError) or bool(
        re.search(r"gloo[/:]|NCCL|c10d|ProcessGroup|Connection (closed|reset)", str(error))
    )


def _last_word(error: BaseException) -> str:
    """What the others are told of an error; a stop by a signal is none."""
    if isinstance(error, Preempted | Interrupted):
        return ""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _leave_anyway(error: BaseException) -> threading.Timer:
    """End the process with its error in a while, should the group, half gone, keep it."""
    status = error.exit_status if isinstance(error, SerError) else 1
    text = str(error) or type(error).__name__

    def leave() -> None:
        say(text)
        os._exit(status)

    timer = threading.Timer(_LEAVE, leave)
    timer.daemon = True
    timer.start()
    return timer

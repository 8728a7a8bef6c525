"""Several processes on this machine: started, told of signals, and waited for to the last one."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from sercli import signals
from sercli.engine.processes import UNDER_AGENT
from sercli.engine.stops import stops_recorded
from sercli.errors import Interrupted, Preempted, RunFailed, SerError, UserError
from sercli.runs.run_dir import RunDir

_LOOK_SECONDS = 0.1
# Between the first process that ends otherwise than well, after which no step can be taken, and
# the kill of the others: rank 0 may be saving.
_GRACE_SECONDS = 60.0
# Likewise where run.json says already that the run failed: who is left then hangs, or is stopped.
_FAILED_SECONDS = 10.0


@dataclass(frozen=True)
class _Ended:
    """A process that ended otherwise than well.

    Attributes:
        rank: Which one.
        pid: Likewise.
        status: As subprocess has it: negative for a signal.
    """

    rank: int
    pid: int
    status: int

    def __str__(self) -> str:
        who = f"rank {self.rank} (process {self.pid})"
        if self.status >= 0:
            return f"{who} ended with status {self.status}"
        short = -self.status in (signal.SIGKILL, signal.SIGBUS)
        why = ", as happens where memory is short" if short else ""
        return f"{who} was killed by {signals.called(-self.status)}{why}"


def launch(run: RunDir, *, nproc: int, device: str | None, options: tuple[str, ...] = ()) -> None:
    """Train with `nproc` processes on this machine.

    A signal to this process is one to all of them: they save and end. If this process is killed,
    they see that by themselves.

    Args:
        run: The run directory.
        nproc: How many.
        device: As `--device` says.
        options: Of `--resume`, for the processes.

    Raises:
        SerError: As the workers ended, read from run.json; or, if none could say so, what is seen
            of them from here.
    """
    before = run.read_run()
    with stops_recorded(run, refusals=False), signals.at_boundaries(alone=False) as request:
        # Of this process, as the first rank's would be lost with it, and on a port that is free.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        words = ["--resume", str(run.path), *options]
        words += [] if device is None else ["--device", device]
        first = _wait(_Workers(words, nproc=nproc, port=store.port), run)
        refused = first is not None and first.status == UserError.exit_status
        if not refused or run.read_run() != before:
            _raise_how_it_ended(run, before, first, request)
            return
    raise SystemExit(UserError.exit_status)  # a worker has said why, and changed nothing


def _raise_how_it_ended(
    run: RunDir, before: Mapping[str, Any], first: _Ended | None, request: signals.StopRequest
) -> None:
    """Raise what run.json says, or, if no worker could say anything, what was seen of them."""
    state = run.read_run()
    said = state != before and state["status"] != "running"
    if first is None or (said and (first.status >= 0 or state["status"] != "failed")):
        raise_for_status(run)
        return
    go_on = f"continue with: ser pretrain --resume {run.path}"
    if request.interrupted or request.preempted:
        stop = Interrupted if request.interrupted else Preempted
        raise stop(f"stopped outside of steps; {go_on}")
    if first.status < 0:
        raise RunFailed(f"{first}; the others have ended; {go_on}")
    error = SerError(f"{first}, and said why above")
    error.exit_status = first.status
    raise error


def _wait(workers: _Workers, run: RunDir) -> _Ended | None:
    """Wait for all of them, passing signals on; the first that ended otherwise than well."""
    first, deadline = None, math.inf
    try:
        with signals.at_boundaries(workers.signal, alone=False) as request:
            if request.preempted or request.interrupted:  # while they were started
                workers.signal(signal.SIGINT if request.interrupted else signal.SIGTERM)
            while workers.alive():
                ended = workers.ended()
                if first is None and ended:
                    first = ended[0]
                    failed = first.status == RunFailed.exit_status and _has_failed(run)
                    deadline = time.monotonic() + (_FAILED_SECONDS if failed else _GRACE_SECONDS)
                if time.monotonic() > deadline:
                    return first
                time.sleep(_LOOK_SECONDS)
        return next(iter(workers.ended()), None)
    finally:
        workers.kill()


def _has_failed(run: RunDir) -> bool:
    with contextlib.suppress(SerError, OSError, KeyError):
        return bool(run.read_run()["status"] == "failed")
    return False


def raise_for_status(run: RunDir) -> None:
    """Raise what run.json says a run ended with; nothing if it is done."""
    state = run.read_run()
    if state["status"] == "done":
        return
    message = str(state.get("error") or f"the run ended with status {state['status']}")
    status = state.get("exit_status") or 1
    kinds: dict[int, type[SerError]] = {75: Preempted, 130: Interrupted}
    error = kinds.get(status, SerError)(message)
    if not isinstance(error, Preempted | Interrupted):
        error.exit_status = status
    raise error


class _Workers:
    """The processes of one launch.

    Args:
        words: What `ser pretrain` is told.
        nproc: How many there are.
        port: Where this process has the store by which they find each other.
    """

    def __init__(self, words: list[str], *, nproc: int, port: int) -> None:
        command = [sys.executable, "-m", "sercli", "pretrain", *words]
        shared = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc)),
            **os.environ,
            UNDER_AGENT: str(os.getpid()),
            "TORCHELASTIC_RUN_ID": f"ser-{os.getpid()}",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            with signals.starting_processes():
                for rank in range(nproc):
                    own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    self.processes.append(subprocess.Popen(command, env=own))
        except BaseException:
            self.kill()
            raise

    def signal(self, number: int) -> None:
        """Pass a signal on to those that are left."""
        for process in self.processes:
            process.send_signal(number)

    def ended(self) -> list[_Ended]:
        """Those that have ended otherwise than well; killed ones first, as others follow them."""
        codes = [(rank, one.pid, one.poll()) for rank, one in enumerate(self.processes)]
        ended = [_Ended(rank, pid, code) for rank, pid, code in codes if code]
        return sorted(ended, key=lambda one: one.status >= 0)

    def alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def kill(self) -> None:
        """End those that are left, at once."""
        for process in self.processes:
            process.kill()
            process.wait()

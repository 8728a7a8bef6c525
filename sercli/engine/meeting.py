"""Where several processes meet: the store that rank 0 or torchrun keeps, and the roll call.

torch waits half an hour for processes that nobody started, and then says how many there are. Here
each one says that it has come, and who has not is named after the bound of the stage `start`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch.distributed

from sercli.engine.judgement import Report, Seen
from sercli.engine.processes import Started
from sercli.errors import RunFailed, UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Its stores have no stubs under their public names.
_dist: Any = torch.distributed
_POLL = 0.2  # seconds between two looks at who has come
_ANSWER = 5.0  # seconds for one answer of the store


def kept_by_torchrun() -> bool:
    """Whether torchrun's agent keeps the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(one: Started, me: Report, seconds: float) -> Store:
    """The store of all processes, when all have come.

    Args:
        one: This process.
        me: What it says of itself.
        seconds: How long to wait for the others.

    Raises:
        UserError: The port is taken, on rank 0.
        RunFailed: Rank 0 cannot be reached, or some have not come.
    """
    met: Future[Store] = Future()

    def meeting() -> None:
        try:
            met.set_result(_meet(one, me, seconds))
        except Exception as error:
            met.set_exception(error)

    # In a thread, as what does not answer, or is no store, holds torch for ever.
    threading.Thread(target=meeting, name="ser-meeting", daemon=True).start()
    try:
        return met.result(timeout=seconds + _ANSWER)
    except TimeoutError:
        raise _unreachable(one, seconds, "what listens there does not answer") from None


def _meet(one: Started, me: Report, seconds: float) -> Store:
    deadline = time.monotonic() + seconds
    keeps = one.rank == 0 and not kept_by_torchrun()
    if not keeps:
        _wait_for_port(one, deadline, seconds)
    try:
        tcp = _tcp_store(one, keeps=keeps, seconds=max(_ANSWER, deadline - time.monotonic()))
    except (RuntimeError, ValueError) as error:
        if keeps:
            raise UserError(
                f"{one.host}:{one.port}: rank 0 cannot keep its store there "
                f"({str(error).splitlines()[0][:120]})",
                "MASTER_ADDR is this machine, and nothing else has MASTER_PORT",
                "choose another port",
            ) from error
        raise _unreachable(one, seconds, str(error).splitlines()[0][:120]) from error
    store: Store = _dist.PrefixStore(f"ser/{one.job}", tcp)
    _call_roll(store, one, me, deadline=deadline, seconds=seconds)
    return store


def _tcp_store(one: Started, *, keeps: bool, seconds: float) -> Store:
    return cast(
        "Store",
        _dist.TCPStore(
            one.host,
            one.port,
            one.world_size,
            is_master=keeps,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=keeps,
        ),
    )


def _wait_for_port(one: Started, deadline: float, seconds: float) -> None:
    """Return as soon as something listens where the store is; torch would say much meanwhile."""
    while True:
        try:
            socket.create_connection((one.host, one.port), timeout=_ANSWER).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise _unreachable(one, seconds, error.strerror or str(error)) from error
        time.sleep(_POLL)


def _unreachable(one: Started, seconds: float, why: str) -> RunFailed:
    return RunFailed(
        f"rank {one.rank} of {one.world_size} has not reached rank 0 at {one.host}:{one.port} for "
        f"{seconds:.0f} s ({why}): it was not started, has ended, or MASTER_ADDR and MASTER_PORT "
        "are not its own; for one process unset RANK and WORLD_SIZE"
    )


def _call_roll(store: Store, one: Started, me: Report, *, deadline: float, seconds: float) -> None:
    missing = [rank for rank in range(one.world_size) if rank != one.rank]
    try:
        store.set(f"here/{one.rank}", me.name)
        while missing:
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
            if missing and time.monotonic() > deadline:
                raise _missing(one, missing, seconds)
            if missing:
                time.sleep(_POLL)
    except RuntimeError as error:  # the store's
        raise _unreachable(one, seconds, "it has left again") from error


def _missing(one: Started, missing: list[int], seconds: float) -> RunFailed:
    some = ", ".join(map(str, missing[:16])) + (", …" if len(missing) > 16 else "")
    are = f"rank{'s' if len(missing) > 1 else ''} {some} of {one.world_size}"
    have = "have" if len(missing) > 1 else "has"
    return RunFailed(
        f"{are} {have} not come to {one.host}:{one.port} within {seconds:.0f} s; see what became "
        f"of them, or start as many as there shall be ({one.world_size} by "
        f"{'SLURM_STEP_NUM_TASKS' if one.by == 'slurm' else 'WORLD_SIZE'})"
    )


class Exchange:
    """Tells the others where this process is, and hears where they are, in a thread of its own.

    A store whose keeper is stopped does not answer, for as long as that lasts: nothing else may
    wait for it.

    Args:
        one: This process.
        interval: Seconds between two rounds.
        report: What this process says of itself, with the number of the round.
    """

    def __init__(self, one: Started, interval: float, report: Callable[[int], Report]) -> None:
        self.one, self.report = one, report
        self.interval = interval * max(1.0, one.world_size / 32)  # the store serves all in turn
        self.seen = Seen({})
        self._ended = threading.Event()
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._run, name="ser-exchange", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, seconds: float = 2.0) -> None:
        """Say the last word, in so many seconds or not at all."""
        self._ended.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        beat = 0
        while True:
            last = self._ended.is_set()
            beat += 1
            try:
                self._round(beat)
            except Exception:  # a store has many; each means that it cannot be used
                self._store = None
                self.seen = Seen(self.seen.reports, self.seen.rounds, lost=True)
            if last:
                return
            self._ended.wait(self.interval)

    def _round(self, beat: int) -> None:
        one = self.one
        if self._store is None:
            # A connection of its own: the group's waits for minutes where the group is made.
            socket.create_connection((one.host, one.port), timeout=_ANSWER).close()
            tcp = _tcp_store(one, keeps=False, seconds=_ANSWER)
            self._store = _dist.PrefixStore(f"ser/{one.job}/watch", tcp)
        self._store.set(str(one.rank), json.dumps(asdict(self.report(beat))))
        reports = dict(self.seen.reports)
        others = [rank for rank in range(one.world_size) if rank != one.rank]
        known = [rank for rank in others if rank in reports or self._store.check([str(rank)])]
        for rank, text in zip(known, self._store.multi_get([str(r) for r in known]), strict=True):
            reports[rank] = Report(**json.loads(text))
        self.seen = Seen(reports, self.seen.rounds + 1)

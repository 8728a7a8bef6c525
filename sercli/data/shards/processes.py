"""Tasks of several processes, which count what they do and stop when they are asked to."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sercli import signals
from sercli.data.cores import cores
from sercli.errors import RunFailed

Task = tuple[str, int]
Result = TypeVar("Result")
# What a task is given: to count, and to ask whether it is to end.
Count = Callable[[int], None]
Asked = Callable[[], bool]
Work = Callable[[Task, Count, Asked], Result]

_LOOK_SECONDS = 0.5


class Stop(Exception):
    """A task ends where it is, as its command ends."""


def in_processes(
    work: Work[Result],
    tasks: Sequence[Task],
    *,
    processes: int | None,
    few: bool,
    tick: Callable[[int], object] | None,
) -> Iterator[tuple[Task, Result]]:
    """Results of tasks, as they are ready.

    Args:
        work: What is done; it is sent to each process once.
        tasks: What it is done to.
        processes: How many do it (default: one for each core that this process may use).
        few: Whether there is so little to do that starting processes would take longer.
        tick: Told now and then how much all have counted.

    Raises:
        RunFailed: A process was killed.
    """
    number = min(len(tasks), processes or cores())
    if number < 2 or (few and processes is None):
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if tick is not None:
                tick(done)

        for task in tasks:
            yield task, work(task, count, lambda: False)
        return
    yield from _several(work, tasks, number, tick)


def _several(
    work: Work[Result], tasks: Sequence[Task], number: int, tick: Callable[[int], object] | None
) -> Iterator[tuple[Task, Result]]:
    # Spawned, not forked: a progress bar has a thread, and forking a threaded process may hang.
    context = multiprocessing.get_context("spawn")
    counted, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(
        number,
        mp_context=context,
        initializer=_start,
        initargs=(work, counted, stop, os.getpid()),
    )
    try:
        with signals.starting_processes("spawn"):
            of: dict[Future[Any], Task] = {pool.submit(_do, task): task for task in tasks}
        running = set(of)
        while running:
            finished, running = wait(running, _LOOK_SECONDS, return_when=FIRST_COMPLETED)
            if tick is not None:
                tick(counted.value)
            for future in finished:
                yield of.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process that makes shards was killed, most likely for lack of memory; repeat the "
            "command to go on"
        ) from error
    finally:
        stop.value = 1  # or it would end after whole shards
        pool.shutdown(cancel_futures=True)


# -- Of a process ---------------------------------------------------------------------------------

_given: Any = None


def _start(work: Any, counted: Any, stop: Any, parent: int) -> None:
    global _given
    signals.ignore()  # what one means is the parent's to say
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def count(more: int) -> None:
        with counted.get_lock():
            counted.value += more

    _given = work, count, lambda: bool(stop.value)


def _end_with(parent: int) -> None:
    """End when the parent has, however it did."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _do(task: Task) -> Any:
    work, count, asked = _given
    return work(task, count, asked)

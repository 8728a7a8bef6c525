"""Loader processes: tasks go out and answers come back, in order, over one pipe a process.

torch's DataLoader hands tensors over as descriptors, or its sending thread fails where nobody
looks; here an answer is plain bytes, made where the work is done, so that whatever goes wrong comes
back as one, and a process that dies closes its pipe. Nothing is polled, and /dev/shm is not used.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor

from sercli import signals
from sercli.errors import FEWER_LOADERS, RunFailed, SerError, exhausted

Work = Callable[[Any], Any]
_JOIN_SECONDS = 1.0
_PATIENCE = 600.0  # seconds that a piece may take: a network disk may be slow, or gone
# Our ends of all pipes: a forked process has copies, which would keep the others' pipes open.
_our_ends: weakref.WeakSet[Any] = weakref.WeakSet()


class Workers(Protocol):
    """Who works on tasks; answers come in the order of the tasks."""

    def submit(self, task: Any) -> None: ...

    def take(self) -> Any: ...

    def close(self) -> None: ...


class InThisProcess:
    """Works on a task when its answer is asked for."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tasks: deque[Any] = deque()

    def submit(self, task: Any) -> None:
        self._tasks.append(task)

    def take(self) -> Any:
        return self._work(self._tasks.popleft())

    def close(self) -> None:
        self._tasks.clear()


class InProcesses:
    """`count` processes that take turns with the tasks.

    Tasks wait in pipes, so that only small ones, and few for a process, may be submitted ahead.

    Args:
        work: What is done with a task; it and its answers must be picklable.
        count: How many processes are started, at least one.

    Raises:
        RunFailed: They cannot be started: a limit is reached.
    """

    def __init__(self, work: Work, count: int) -> None:
        self._processes: list[BaseProcess] = []
        self._ends: list[Connection[Any, Any]] = []
        self._asked: deque[int] = deque()
        self._next = 0
        atexit.register(self.close)  # before multiprocessing's own, which would wait for them
        try:
            for _ in range(count):
                self._start(work)
        except OSError as error:
            self.close()
            raise exhausted(error, "starting loader processes") or error from None
        except BaseException:
            self.close()
            raise

    def _start(self, work: Work) -> None:
        context = multiprocessing.get_context()
        ours, theirs = context.Pipe()
        self._ends.append(ours)
        _our_ends.add(ours)
        process = context.Process(
            target=_serve, args=(work, theirs), daemon=True, name="ser-loader"
        )
        with signals.starting_processes(context.get_start_method()):
            process.start()
            self._processes.append(process)
        theirs.close()

    def submit(self, task: Any) -> None:
        process = self._next % len(self._ends)
        self._next += 1
        self._asked.append(process)
        try:
            self._ends[process].send(task)
        except OSError:
            raise self._death(process) from None

    def take(self) -> Any:
        """The answer to the earliest task that is open.

        Raises:
            SerError: As the work raised it.
            RunFailed: A process ended, or ran into a limit.
            RuntimeError: The work failed otherwise; with the traceback of its process.
        """
        process = self._asked.popleft()
        try:
            if not self._ends[process].poll(_PATIENCE):
                raise RunFailed(
                    f"a loader process has not answered for {_PATIENCE:.0f} seconds; it may be "
                    "stopped, or the disk that it reads from does not answer"
                )
            answer = pickle.loads(self._ends[process].recv_bytes())
        except (EOFError, OSError):
            raise self._death(process) from None
        if isinstance(answer, SerError):
            raise answer
        if isinstance(answer, _Bug):
            raise RuntimeError(f"in a loader process:\n{answer.traceback}")
        return answer

    def _death(self, index: int) -> RunFailed:
        process = self._processes[index]
        process.join(_JOIN_SECONDS)
        code = process.exitcode
        if code is None or code >= 0:
            return RunFailed(
                f"a loader process ended with status {code}, in the middle of its work"
            )
        killed = f"a loader process was killed by {signals.called(-code)}"
        if -code in (signal.SIGKILL, signal.SIGBUS):
            killed += f", as happens where memory is short: use a smaller batch or {FEWER_LOADERS}"
        return RunFailed(killed)

    def close(self) -> None:
        """End the processes at once: they only read, so nothing is lost."""
        atexit.unregister(self.close)
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        for end in self._ends:
            end.close()
        self._processes, self._ends = [], []


class _Bug:
    """An error that is nobody's but ours, as text: its class may not be picklable."""

    def __init__(self, text: str) -> None:
        self.traceback = text


def _serve(work: Work, end: Connection[Any, Any]) -> None:
    """A loader process: one thread, until its pipe closes.

    It is deaf to signals: the training process decides what one means.
    """
    signals.ignore()
    for other in list(_our_ends):
        other.close()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            task = end.recv()
        except (EOFError, OSError):
            return
        answer = _answer(work, task)
        try:
            end.send_bytes(answer)
        except OSError:
            return


def _end_with_the_parent() -> None:
    """However it ends, and whatever this process is waiting for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _answer(work: Work, task: Any) -> bytes:
    try:
        return _dumps(work(task))
    except SerError as error:
        return _as_it_is_or_told(error)
    except (OSError, MemoryError) as error:
        failed = exhausted(error, "reading images")
        return pickle.dumps(failed or _Bug(traceback.format_exc()))
    except BaseException:
        return pickle.dumps(_Bug(traceback.format_exc()))


def _as_it_is_or_told(error: SerError) -> bytes:
    """An error that cannot be pickled, or not unpickled, keeps its text and its status."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        told = SerError(str(error))
        told.exit_status = error.exit_status
        return pickle.dumps(told)
    return data


class _Pickler(pickle.Pickler):
    """Writes tensors by value: in shared memory each would cost a descriptor."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()

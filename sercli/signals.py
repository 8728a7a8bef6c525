"""What a signal does to a command: it ends soon, where nothing is half done.

SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU and SIGHUP preempt, Ctrl-C (SIGINT) interrupts. Outside of steps
either raises `Stopped` at once, wherever the main thread is, but for what is `deferred`: files are
written to their end first. Inside `at_boundaries` it only sets a request, which the steps honour.
A stop is raised once: a second signal does not break what the first has begun. One that is raised
where Python drops exceptions (in `__del__`, or while garbage is collected) is raised again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from sercli.errors import Interrupted, Preempted, SerError

_PREEMPTING = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP")
_NUMBERS = [getattr(signal, name) for name in (*_PREEMPTING, "SIGINT") if hasattr(signal, name)]
# Two SIGINT of one Ctrl-C (a terminal's and a launcher's, `timeout`'s to child and group) are one.
_AGAIN_SECONDS = 1.0
# Variable of the environment: the number of the process whose end is a signal to this one.
FOLLOWED = "SER_FOLLOWED"
_PARENT_SECONDS = 0.5  # between two looks at whether the parent lives
_AFTERWARDS = 0.05  # seconds until what dropped a stop is over


class Stopped(KeyboardInterrupt):
    """A signal ends the command; raised in the main thread, and passed on as Ctrl-C is."""


@dataclass
class StopRequest:
    """Which kind of signal asked the command to stop, if any."""

    preempted: bool = False
    interrupted: bool = False


@dataclass
class _State:
    """Of this process, changed by its main thread alone.

    Attributes:
        request: What came.
        asked: When the first signal came, by the monotonic clock; None: none did.
        deferred: How many `deferred` regions the main thread is in.
        at_once: Whether a signal raises; False: steps honour the request.
        alone: Whether a second Ctrl-C raises even inside steps.
        stopping: A stop was raised, by a handler or by the steps.
        pending: One is to be raised at the end of what is deferred.
        passed_on: Told of each signal.
    """

    request: StopRequest = field(default_factory=StopRequest)
    asked: float | None = None
    deferred: int = 0
    at_once: bool = True
    alone: bool = True
    stopping: bool = False
    pending: bool = False
    passed_on: Callable[[int], None] | None = None


_state = _State()


def install() -> None:
    """Handle signals from here to the end of the process, and forget what came before."""
    global _state
    _state = _State()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _NUMBERS:
        # nohup's children ignore SIGHUP, and shall.
        if signal.getsignal(number) != signal.SIG_IGN or number != getattr(signal, "SIGHUP", None):
            signal.signal(number, _handle)
    if not isinstance(sys.unraisablehook, _RaisedAgain):
        sys.unraisablehook = _RaisedAgain(sys.unraisablehook)
    # A worker is started with them held, so that none ends it before it can say so.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def ignore() -> None:
    """Be deaf: the status of this process is decided, or is for another to say."""
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)


def settle() -> None:
    """From here a signal changes nothing: what was to be done is, and says so."""
    _state.stopping = True


def _handle(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    again = number == signal.SIGINT and _state.request.interrupted
    again = again and _state.asked is not None and now - _state.asked > _AGAIN_SECONDS
    if number == signal.SIGINT:
        _state.request.interrupted = True
    else:
        _state.request.preempted = True
    if _state.asked is None:
        _state.asked = now
    if _state.passed_on is not None:
        _state.passed_on(number)
    raises = _state.at_once and not _state.stopping
    if raises or (again and _state.alone):
        _state.pending = True
        _raise_pending()


def _raise_pending() -> None:
    if _state.pending and not _state.deferred:
        _state.pending, _state.stopping = False, True
        raise Stopped


class _RaisedAgain:
    """Sees exceptions that Python drops, and raises a stop again when that is over."""

    def __init__(self, otherwise: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self._otherwise = otherwise

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            self._otherwise(dropped)
            return
        _state.stopping = False
        timer = threading.Timer(_AFTERWARDS, _ask_again)
        timer.daemon = True
        timer.start()


def _ask_again() -> None:
    number = signal.SIGINT if _state.request.interrupted else signal.SIGTERM
    if signal.getsignal(number) == _handle:
        os.kill(os.getpid(), number)


# -- regions --------------------------------------------------------------------------------------


class deferred(contextlib.ContextDecorator):  # noqa: N801  # why: used as a function is
    """Inside, a signal raises nothing; at the end of the outermost one, it does.

    In other threads than the main one it does nothing: no signal raises there.
    """

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            _state.deferred += 1

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            _state.deferred -= 1
            if error is None:
                _raise_pending()


@contextlib.contextmanager
def at_boundaries(
    passed_on: Callable[[int], None] | None = None, *, alone: bool = True
) -> Iterator[StopRequest]:
    """Inside, a signal only sets the request; who takes steps honours it between two of them.

    What comes after the last step changes nothing: what is left takes moments.

    Args:
        passed_on: Called with the number of each signal.
        alone: A second Ctrl-C raises, not in what is deferred. Of several processes one alone must
            not leave.
    """
    before = _state.at_once, _state.alone, _state.passed_on
    _state.at_once, _state.alone, _state.passed_on = False, alone, passed_on
    try:
        yield _state.request
    finally:
        _state.stopping = _state.stopping or _state.asked is not None
        _state.at_once, _state.alone, _state.passed_on = before


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside, a signal raises: also one that came before."""
    before, _state.at_once = _state.at_once, True
    try:
        if _state.asked is not None and not _state.stopping:
            _state.pending = True
            _raise_pending()
        yield
    finally:
        _state.at_once = before


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """Inside, a signal ends the process by itself: nothing is there that would be lost.

    For waits that are not in Python, where no handler would run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        for number, handler in before.items():
            if handler == _handle:
                signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            if handler == _handle:
                signal.signal(number, handler)


@contextlib.contextmanager
def starting_processes(method: str = "fork") -> Iterator[None]:
    """Inside, none of the processes that are started gets a signal before it says what it means.

    They inherit that signals are held; those for this process come at the end.

    Args:
        method: Of multiprocessing, by which they are started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
    try:
        if method != "fork":
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()  # which lets some signals through, the first time
            signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- what is said ---------------------------------------------------------------------------------


def called(number: int) -> str:
    """A signal by its number and, unless it is one of the real-time ones, its name."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def as_stop(error: BaseException, message: str) -> Preempted | Interrupted | None:
    """The error as which a command ends that a signal stopped, if that is what happened.

    Args:
        error: What was raised. Not all libraries pass a `Stopped` on as what it is.
        message: What there is to say, if the error does not.
    """
    if isinstance(error, Preempted | Interrupted):
        return error
    asked = _state.asked is not None and _state.stopping
    if isinstance(error, KeyboardInterrupt) or (
        asked and not isinstance(error, SerError | SystemExit)
    ):
        preempted = _state.request.preempted and not _state.request.interrupted
        return Preempted(message) if preempted else Interrupted(message)
    return None


def requested() -> StopRequest:
    """What has come to this process."""
    return _state.request


def follow(parent: int) -> None:
    """Take the end of the process `parent`, that started this one, as SIGTERM.

    However it ended: the others that it started see the same, and all save and end.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="ser-parent", daemon=True).start()

"""One job as a process: told of signals, its output in a file, waited for to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli import signals
from sercli.errors import Interrupted, Preempted, from_os_error
from sercli.signals import FOLLOWED, StopRequest, called

_LOOK_SECONDS = 0.2
_TAIL = 16_384  # bytes of a log in which its last line is looked for


@dataclass
class Children:
    """Starts processes of `ser` one after the other, and passes on to them what comes here.

    A terminal's Ctrl-C reaches both, which is one to a process of ser's; the end of this process,
    however it comes, ends the child as SIGTERM does.

    Attributes:
        request: Set by signals; see `passing_on`.
    """

    request: StopRequest
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def passing_on(cls) -> Iterator[Children]:
        """Inside, signals stop nothing here: they are the child's, and set the request."""
        children = cls(StopRequest())
        with signals.at_boundaries(children._pass_on, alone=False) as request:
            children.request = request
            yield children

    def _pass_on(self, number: int) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    @property
    def stopped(self) -> bool:
        """Whether a signal came."""
        return self.request.preempted or self.request.interrupted

    def raise_if_stopped(self, what: str) -> None:
        """End as the signal that came asks, if one did.

        Raises:
            Preempted, Interrupted: One did.
        """
        if self.stopped:
            interrupted = self.request.interrupted and not self.request.preempted
            raise (Interrupted if interrupted else Preempted)(f"stopped; {what}")

    def run(self, words: Sequence[str], log: Path | None) -> int:
        """Run `ser WORDS` to its end.

        Args:
            words: What `ser` is given.
            log: Where its output is added; None: it has this process's.

        Returns:
            Its status; minus the signal that killed it.
        """
        command = [sys.executable, "-m", "sercli", *words]
        with _output(log) as output:
            # Until it says what a signal means, it holds them: the first tenths of a second.
            with signals.starting_processes():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                    env={**os.environ, FOLLOWED: str(os.getpid())},
                )
                self._process = process
            if self.stopped:  # a signal that came before there was anybody to tell
                self._pass_on(signal.SIGINT if self.request.interrupted else signal.SIGTERM)
            try:
                return self._wait(process)
            finally:
                self._process = None
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=_LOOK_SECONDS)


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    if log is None:
        yield None
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            yield file.fileno()
    except OSError as error:
        raise from_os_error(error, f"cannot write {log}") from error


def last_line(log: Path) -> str:
    """The last line that a log has, without the mark of ser's errors; empty if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    filled = [line.strip() for line in lines if line.strip()]
    return filled[-1].removeprefix("ser: ") if filled else ""


def how_it_ended(status: int, log: Path) -> str:
    """What a child that did not end well says, or what is seen of it."""
    if status < 0:
        short = -status in (signal.SIGKILL, signal.SIGBUS)
        why = ", as happens where memory is short" if short else ""
        return f"it was killed by {called(-status)}{why}"
    return last_line(log) or f"it ended with status {status}"

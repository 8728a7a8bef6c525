"""Signals become a request that the training loop honours at a step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from sercli import distributed
from sercli.engine.processes import under_agent
from sercli.errors import Interrupted, Preempted


@dataclass
class StopRequest:
    """Which signal asked the run to stop, if any."""

    preempted: bool = False
    interrupted: bool = False


class Stopping:
    """Turns a signal that any rank got while images are read into an error on all of them.

    Args:
        request: Set by signal handlers; None: nothing stops the reading.
        device: Where the ranks agree.
    """

    def __init__(self, request: StopRequest | None, device: torch.device) -> None:
        self.request = request
        self.device = device

    def check(self) -> None:
        """Stop while images are read, at the same point on all ranks: every rank must ask.

        Raises:
            Interrupted, Preempted: As asked for.
        """
        if self.request is not None:
            flag = distributed.any_rank(self._asked(), self.device)
            _stop(flag, "stopped while reading images")

    def check_alone(self) -> None:
        """Stop this rank while it works and the others wait for what it finds.

        Raises:
            Interrupted, Preempted: As asked for.
        """
        _stop(self._asked(), "stopped while scoring")

    def _asked(self) -> int:
        if self.request is None:
            return 0
        return 2 if self.request.interrupted else 1 if self.request.preempted else 0


def _stop(flag: int, when: str) -> None:
    stop = (None, Preempted, Interrupted)[flag]
    if stop is not None:
        raise stop(f"{when}; repeat the command to go on")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside, SIGTERM, SIGUSR1 and the first Ctrl-C only set the request; a second one raises."""
    request = StopRequest()

    def preempt(_signal: int, _frame: FrameType | None) -> None:
        request.preempted = True

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if request.interrupted and not under_agent():
            raise KeyboardInterrupt
        request.interrupted = True

    handlers = {signal.SIGTERM: preempt, signal.SIGINT: interrupt}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = preempt
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

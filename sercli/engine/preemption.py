"""Signals become a request that the training loop honours at a step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from sercli.engine.runtime import under_agent


@dataclass
class StopRequest:
    """Which signal asked the run to stop, if any."""

    preempted: bool = False
    interrupted: bool = False


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

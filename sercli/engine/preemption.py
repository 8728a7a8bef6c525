"""Signals that any of several ranks got become one decision of all."""

from __future__ import annotations

import torch

from sercli import distributed, stages
from sercli.errors import Interrupted, Preempted
from sercli.signals import StopRequest


class Stopping:
    """Turns a signal that any rank got between steps into an error on all of them.

    Args:
        request: Set by signal handlers; None: nothing stops what is done.
        device: Where the ranks agree.
        message: What the error says; empty: what was done, and that the command is to be repeated.
    """

    def __init__(
        self, request: StopRequest | None, device: torch.device, message: str = ""
    ) -> None:
        self.request, self.device, self.message = request, device, message

    def check(self) -> None:
        """Stop, at the same point on all ranks: every rank must ask.

        Raises:
            Interrupted, Preempted: As asked for.
        """
        if self.request is not None:
            self._stop(distributed.any_rank(self._asked(), self.device), "while reading images")

    def check_alone(self) -> None:
        """Stop this rank while it works and the others wait for what it finds.

        That it asks shows them that it goes on.

        Raises:
            Interrupted, Preempted: As asked for.
        """
        stages.moved()
        self._stop(self._asked(), "while scoring")

    def _asked(self) -> int:
        if self.request is None:
            return 0
        return 2 if self.request.interrupted else 1 if self.request.preempted else 0

    def _stop(self, flag: int, when: str) -> None:
        stop = (None, Preempted, Interrupted)[flag]
        if stop is not None:
            raise stop(self.message or f"stopped {when}; repeat the command to go on")

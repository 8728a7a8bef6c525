"""Signals that any of several ranks got become one decision of all."""

from __future__ import annotations

import torch

from sercli import distributed
from sercli.errors import Interrupted, Preempted
from sercli.signals import StopRequest

_READING = "stopped while reading images; repeat the command to go on"


class Stopping:
    """Turns a signal that any rank got between steps into an error on all of them.

    Args:
        request: Set by signal handlers; None: nothing stops what is done.
        device: Where the ranks agree.
        message: What the error says.
    """

    def __init__(
        self, request: StopRequest | None, device: torch.device, message: str = _READING
    ) -> None:
        self.request, self.device, self.message = request, device, message

    def check(self) -> None:
        """Stop, at the same point on all ranks: every rank must ask.

        Raises:
            Interrupted, Preempted: As asked for.
        """
        if self.request is None:
            return
        flag = 2 if self.request.interrupted else 1 if self.request.preempted else 0
        stop = (None, Preempted, Interrupted)[distributed.any_rank(flag, self.device)]
        if stop is not None:
            raise stop(self.message)

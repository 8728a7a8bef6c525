"""Batches on their way to a CUDA device: copied ahead of need, beside what the device computes.

The next batch is copied on a stream of its own while a step is under way. Whoever takes a batch
waits, on the device alone, for its copy's event; the slot that it came from waits for that event
before it is written again; and the copy's memory is not given to another tensor before the taker's
stream is done with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class SlotsInUse:
    """Which slots a stream still copies from; on the CPU none.

    Args:
        stream: Which copies; None: there are none.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._events: dict[int, Any] = {}

    def note(self, slot: int) -> None:
        """What has been launched on the stream so far may read the slot."""
        if self._stream is not None:
            self._events[slot] = self._stream.record_event()

    def wait(self, slot: int) -> None:
        """Return when the slot may be written."""
        event = self._events.pop(slot, None)
        if event is not None and not event.query():
            event.synchronize()


def copied_ahead(
    batches: Iterable[tuple[Mapping[str, Tensor], _T]],
    names: frozenset[str],
    *,
    device: torch.device,
    stream: Any,
) -> Iterator[tuple[dict[str, Tensor], _T]]:
    """Batches with some of their columns on the device, each copied before the last one is given.

    Args:
        batches: Name → tensor in page-locked memory, and anything beside it; asked for one ahead.
        names: Which go to the device; of the others there is a copy on the CPU.
        device: A CUDA device.
        stream: Its stream that copies.

    Yields:
        Name → tensor, for the stream that is current when it is asked for; and what was beside it.
    """
    waiting: tuple[dict[str, Tensor], Any, _T] | None = None
    for columns, beside in batches:
        with torch.cuda.stream(stream):
            copied = {
                name: column.to(device, non_blocking=True) if name in names else column.clone()
                for name, column in columns.items()
            }
            event = stream.record_event()
        if waiting is not None:
            yield _taken(waiting[0], waiting[1], names), waiting[2]
        waiting = copied, event, beside
    if waiting is not None:
        yield _taken(waiting[0], waiting[1], names), waiting[2]


def _taken(columns: dict[str, Tensor], event: Any, names: frozenset[str]) -> dict[str, Tensor]:
    for name in names:
        taker = torch.cuda.current_stream(columns[name].device)
        taker.wait_event(event)
        columns[name].record_stream(taker)
    return columns

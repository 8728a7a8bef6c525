"""The parts of a training step, by name, for a profile of it; costs nothing while none is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# In the order of a step.
STEP_PARTS = (
    "data wait",
    "views",
    "forward, student",
    "forward, teacher",
    "losses",
    "backward",
    "optimiser, agreement",
)


class _Recorder:
    """What makes a context around a part, while a profile is made."""

    make: Callable[[str], AbstractContextManager[object]] | None = None


_recorder = _Recorder()


@contextmanager
def step_part(name: str) -> Iterator[None]:
    """Inside, or in the function that it decorates, a step is at one of `STEP_PARTS`."""
    if _recorder.make is None:
        yield
        return
    with _recorder.make(name):
        yield


@contextmanager
def recorded(make: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Inside, parts are recorded by what `make` gives for a name."""
    _recorder.make = make
    try:
        yield
    finally:
        _recorder.make = None

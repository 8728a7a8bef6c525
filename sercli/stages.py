"""Where the main thread of this process is, for the thread that watches it.

Plain assignments and no more: a step is not measurably longer for them. With one process nobody
reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Whereabouts:
    """What the main thread does.

    Attributes:
        stage: One of `STAGES`, each of which may take so long.
        doing: What of it, for messages; may be empty.
        step: Steps done.
        turn: How many collectives it has entered: the same in all processes at the same place, so
            the lowest is who the others wait for.
        moves: Counts whatever shows that it goes on, also between collectives.
        run: The run directory whose run.json says how the run ended; empty: none.
    """

    stage: str = "start"
    doing: str = ""
    step: int = 0
    turn: int = 0
    moves: int = 0
    run: str = ""


STAGES = ("start", "compile", "step", "save", "monitor", "evaluate")
OWN = ("save", "monitor")  # what one process does while the others wait

here = Whereabouts()


def moved() -> None:
    """The main thread goes on."""
    here.moves += 1


def enter(stage: str, doing: str = "", step: int | None = None) -> None:
    """The main thread begins something else."""
    here.stage, here.doing = stage, doing
    if step is not None:
        here.step = step
    here.moves += 1


@contextmanager
def inside(stage: str, doing: str = "") -> Iterator[None]:
    """Inside, it is at this stage; afterwards again where it was."""
    before = here.stage, here.doing
    enter(stage, doing)
    try:
        yield
    finally:
        enter(*before)


def take_turn() -> None:
    """The main thread enters a collective, and may wait for others from now on."""
    here.turn += 1

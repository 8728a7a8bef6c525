"""Variants measured in turn, so that their ratios come from one run and one mood of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sercli.visible import counted, duration

_T = TypeVar("_T")


def interleaved(
    variants: Sequence[Callable[[], _T]],
    *,
    rounds: int,
    warmup: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> list[list[_T]]:
    """Call every variant once a round.

    Every other round runs backwards: whatever drifts within a round hits all alike.

    Args:
        variants: What is measured; the first is usually the reference.
        rounds: Rounds that count.
        warmup: Rounds before those.
        report: Told at the beginning, and after every round, how far it is and how long still.

    Returns:
        For each variant what its calls gave, in the order of the rounds: pairs of two variants
        are of one round, as `statistics.paired_ratio` wants them.
    """
    found: list[list[_T]] = [[] for _ in variants]
    before = f", after {counted(warmup, 'round')} to warm up" if warmup else ""
    report(f"{counted(rounds, 'round')} of {counted(len(variants), 'measurement')}{before}")
    begun = time.monotonic()
    for number in range(1 - warmup, rounds + 1):
        order = range(len(variants)) if number % 2 else range(len(variants) - 1, -1, -1)
        for which in order:
            value = variants[which]()
            if number > 0:
                found[which].append(value)
        passed, left = warmup + number, rounds - number
        seconds = (time.monotonic() - begun) / passed * left
        done = f"round {number} of {rounds}" if number > 0 else "warmed up"
        report(f"{done}, about {duration(seconds)} left" if left else done)
    return found


def cpu_seconds(call: Callable[[], object]) -> Callable[[], float]:
    """A call that gives the CPU seconds, of user and system, that this process spent in it."""

    def measured() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return measured

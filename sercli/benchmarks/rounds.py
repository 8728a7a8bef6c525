"""Variants measured in turn, so that their ratios come from one run and one mood of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def interleaved(
    variants: Sequence[Callable[[], _T]],
    *,
    rounds: int,
    warmup: int = 1,
    report: Callable[[int], None] = lambda _: None,
) -> list[list[_T]]:
    """Call every variant once a round.

    Every other round runs backwards: whatever drifts within a round hits all alike.

    Args:
        variants: What is measured; the first is usually the reference.
        rounds: Rounds that count.
        warmup: Rounds before those.
        report: Called after every round with its number, 0 for a warm-up.

    Returns:
        For each variant what its calls gave, in the order of the rounds: pairs of two variants
        are of one round, as `statistics.paired_ratio` wants them.
    """
    found: list[list[_T]] = [[] for _ in variants]
    for number in range(1 - warmup, rounds + 1):
        order = range(len(variants)) if number % 2 else range(len(variants) - 1, -1, -1)
        for which in order:
            value = variants[which]()
            if number > 0:
                found[which].append(value)
        report(max(0, number))
    return found

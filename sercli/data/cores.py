"""How many processes read images: never more than there are cores. No torch."""

from __future__ import annotations

import os

from sercli.errors import UserError
from sercli.visible import counted

_ALWAYS = 2  # so that a recipe for two loaders also works in a container of one core


def cores() -> int:
    """How many this process may use; under SLURM and in containers fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_loaders() -> int:
    """The most loader processes of a rank: a core each, and two in any case."""
    return max(_ALWAYS, cores())


def require_loaders(workers: int | None, given_as: str) -> None:
    """Refuse more loader processes than have a core: they take memory and make nothing faster.

    Args:
        workers: How many are asked for, of a rank; None: the default.
        given_as: The option or key.

    Raises:
        UserError: There are not so many.
    """
    if workers is not None and workers > most_loaders():
        raise UserError(
            f"{given_as} {workers}",
            f"this process may use {counted(cores(), 'core')}, so at most "
            f"{most_loaders()} loader processes a rank have something to do",
            "leave it out for a good number",
        )

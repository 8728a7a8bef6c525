"""How long a stage of one of several processes may stand still, without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType

from sercli.errors import UserError
from sercli.stages import STAGES

# For all processes of a machine, those that `--nproc` starts included.
VARIABLE = "SER_BOUNDS"

# Seconds without any sign of going on: above what a slow file system or a long compilation takes,
# below the half hour after which torch ends a collective.
DEFAULTS: Mapping[str, float] = MappingProxyType(
    {"start": 900, "compile": 1200, "step": 600, "save": 900, "monitor": 1200, "evaluate": 1500}
)


def read_bounds(text: str, *, name: str = "--bounds") -> dict[str, float]:
    """The bounds in seconds, by stage, of a text such as `step=300,save=1800`.

    Args:
        text: Stages that are not named keep their defaults.
        name: What the user calls the text.

    Raises:
        UserError: It is of another form, names no stage, or has a bound that is none.
    """
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        stage, _, value = (piece.strip() for piece in part.partition("="))
        if stage not in STAGES:
            raise UserError(
                f"{name} {part[:80]}",
                f"a bound is STAGE=SECONDS, of {', '.join(STAGES)}",
                "such as step=300,save=1800",
            )
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 1 <= seconds <= 7 * 86400:
            raise UserError(
                f"{name} {part[:80]}",
                "a bound is from 1 to 604800 seconds (a week), a number alone",
                "such as step=300,save=1800",
            )
        if stage in given:
            raise UserError(f"{name} {text[:80]}", f"{stage} is there twice", "name it once")
        given[stage] = seconds
    return {**DEFAULTS, **given}


def bounds_here() -> dict[str, float]:
    """Those of this process: of `SER_BOUNDS`, or the defaults."""
    return read_bounds(os.environ.get(VARIABLE, ""), name=VARIABLE)


def collective_seconds(bounds: Mapping[str, float]) -> float:
    """When torch itself may end a collective: after every bound, and half an hour at least."""
    return max(1800.0, max(bounds.values()) + 300)

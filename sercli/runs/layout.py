"""A result's text as `write_json` lays it out: its numbers read, and hashed, as they stand.

Of reading a thousand runs most of the time went into their numbers: taking each key as a pair,
typing each value, putting the lines in order, writing each number again for the hash. Of a text
that is laid out as ours the numbers are cut out: plain ones, each key once, are told by a few looks
at all of them, and their lines are what canonical JSON has, in another order. All other texts are
for the readers of any JSON (`reading`), which also say what is wrong with one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from operator import itemgetter
from typing import Any

METRICS = "metrics"
_BEGIN, _BETWEEN, _END = f'\n "{METRICS}": {{\n  ', ",\n  ", "\n }"
_KINDS = {float, int, type(None)}
_FEWEST = 2  # rows, of which `itemgetter` gives a tuple


@dataclass(frozen=True)
class Laid:
    """A result's text in two parts.

    Attributes:
        rest: JSON of all but the numbers: `metrics` is empty there.
        metrics: What the numbers are.
        canonical: The inside of `metrics` in canonical JSON; empty where the lines do not tell.
    """

    rest: str
    metrics: dict[str, float | None]
    canonical: str


def laid_out(text: str) -> Laid | None:
    """The parts of a result's text; None: it is laid out otherwise, or its numbers are not plain.

    Whether the rest is a result is not looked at.
    """
    head, begin, after = text.partition(_BEGIN)
    inside, end, tail = after.partition(_END)
    if not begin or not end or not inside.isascii() or "\\" in inside:
        return None
    if any(f'"{METRICS}"' in other for other in (head, tail)):  # which of them is the result's?
        return None
    metrics = _numbers(inside)
    # A key has two quotes, and no number has any: one that stands twice would have more.
    if metrics is None or inside.count('"') != 2 * len(metrics):
        return None
    shared = _layout(tuple(metrics))
    rows = inside.replace('": ', '":').split(_BETWEEN)
    return Laid(
        rest=f'{head}\n "{METRICS}": {{}}{tail}',
        metrics=dict(zip(shared.names, metrics.values(), strict=True)),
        canonical=",".join(shared.sort(rows)) if len(rows) == len(metrics) else "",
    )


def _numbers(inside: str) -> dict[str, Any] | None:
    """The keys and numbers of the inside of a JSON object; None where there is anything else."""
    try:
        found = json.loads(f"{{{inside}}}", parse_constant=_refused)
        values = list(found.values())
        kinds = set(map(type, values))
        if not kinds <= _KINDS or not values:
            return None
        if type(None) in kinds:
            values = [value for value in values if value is not None]
        # One that is not finite makes their sum so; so may finite ones, which others then read.
        return found if isfinite(sum(values)) else None
    except (ValueError, OverflowError, RecursionError):
        return None


def _refused(name: str) -> Any:
    raise ValueError(name)


@dataclass(frozen=True)
class _Layout:
    """Keys in the order of a file, shared by all results that have them; and how to sort rows."""

    names: tuple[str, ...]
    sort: Callable[[Sequence[str]], Sequence[str]]


@lru_cache(maxsize=256)
def _layout(names: tuple[str, ...]) -> _Layout:
    """Of keys that are ASCII, whose order is that of their characters."""
    order = sorted(range(len(names)), key=names.__getitem__)
    return _Layout(names, itemgetter(*order) if len(order) >= _FEWEST else lambda rows: rows)

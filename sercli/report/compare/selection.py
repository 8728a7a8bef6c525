"""What a user says of rows: which runs are in a table, which fields make a row, their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.report.compare.cells import Grid
from sercli.report.compare.columns import Spec
from sercli.report.compare.entries import flat
from sercli.report.compare.runs import FIELDS, Entry, Run, field_of
from sercli.runs.facts import as_number


def row_fields(rows: Sequence[str]) -> list[str]:
    """The fields that make rows: those without a value."""
    return [one for one in rows if "=" not in one]


def kept(runs: Sequence[Run], rows: Sequence[str], *, always: Path | None) -> list[Run]:
    """The runs that FIELD=VALUE keep, where VALUE may have wildcards, and alternatives by `|`.

    Args:
        runs: All.
        rows: As asked for; fields without a value are passed over.
        always: A run directory that stays.

    Raises:
        UserError: A field does not exist, or no run is left.
    """
    filters = [(name, value) for name, sign, value in (one.partition("=") for one in rows) if sign]
    require_fields([name for name, _ in filters], runs)
    base = None if always is None else os.path.realpath(always)
    left = [
        run
        for run in runs
        if all(_fits(field_of(run, name), value) for name, value in filters)
        or os.path.realpath(run.path) == base
    ]
    if not left:
        name, _ = filters[-1]
        there = sorted({_text(field_of(run, name)) for run in runs})
        raise UserError(
            f"--rows {','.join(f'{name}={value}' for name, value in filters)} keeps no run",
            f"{name} is {', '.join(there)} here",
        )
    return left


def _fits(told: Any, value: str) -> bool:
    number = as_number(told)
    texts = {_text(told)} | ({f"{number:g}"} if number is not None else set())
    return any(fnmatchcase(text, one.strip()) for text in texts for one in value.split("|"))


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def require_fields(names: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse fields that no run has.

    Raises:
        UserError: One is neither of `FIELDS` nor a key of a run's recipe.
    """
    for name in names:
        if name not in FIELDS and not any(_has(run, name) for run in runs):
            raise UserError(
                f"{name!r} is no field of these runs",
                f"fields are {', '.join(FIELDS)} and keys of recipes, such as addon.weight",
            )


def _has(run: Run, name: str) -> bool:
    return name in flat(run.recipe)


# -- order ----------------------------------------------------------------------------------------


def places(
    entries: Sequence[Entry], grid: Grid, specs: Sequence[Spec], sort: Sequence[str]
) -> list[int]:
    """The order of rows.

    Args:
        entries: In the paper's order.
        grid: Their cells.
        specs: The columns.
        sort: Keys of columns, whose best value comes first (the smallest, where neither end is
            better), or fields, whose smallest does; with `-` before it the other way round. The
            first counts most. None: the paper's order.

    Raises:
        UserError: One is no column of the table and no field.
    """
    order = list(range(len(entries)))
    for asked in reversed(sort):
        name, backwards = asked.removeprefix("-"), asked.startswith("-")
        spec = next((one for one in specs if one.column.key == name), None)
        if spec is None:
            _require_sortable(name, entries, specs)
            told: list[Any] = [field_of(entry.run, name) for entry in entries]
            known = [place for place in order if told[place] is not None]
            known.sort(key=lambda place: _comparable(told[place]), reverse=backwards)
        else:
            values = [row[name].value for row in grid]
            known = [place for place in order if values[place] is not None]
            largest = (spec.column.direction == "up") != backwards
            known.sort(key=lambda place: values[place] or 0.0, reverse=largest)
        order = [*known, *(place for place in order if place not in known)]
    return order


def _require_sortable(name: str, entries: Sequence[Entry], specs: Sequence[Spec]) -> None:
    if name in FIELDS or any(_has(run, name) for entry in entries for run in entry.runs):
        return
    keys = ", ".join(spec.column.key for spec in specs)
    raise UserError(
        f"--sort {name} is no column of the table and no field",
        f"columns are {keys}; fields are {', '.join(FIELDS)} and keys of recipes",
    )


def _comparable(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then texts."""
    number = as_number(value)
    return (0, number, "") if number is not None else (1, 0.0, str(value))

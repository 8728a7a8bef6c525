"""What a user says of rows: which runs are in a table, which fields make a row, their order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.report.compare.cells import Grid
from sercli.report.compare.columns import Spec, catalogue
from sercli.report.compare.entries import is_called, known_title
from sercli.report.compare.runs import FIELDS, Entry, Run, field_of, flat
from sercli.report.compare.values import OF_RUN
from sercli.runs.facts import as_number


def row_fields(rows: Sequence[str]) -> list[str]:
    """The fields that make rows: those without a value."""
    return [one for one in rows if "=" not in one]


def column_fields(columns: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], tuple[str, ...]]:
    """What was asked for of columns: fields of runs, and patterns of keys."""
    own = [name for name in FIELDS if name != OF_RUN]  # "run" is the beginning of keys
    fields = [
        one
        for one in columns
        if one in own or ("/" not in one and any(_has(run, one) for run in runs))
    ]
    return fields, tuple(one for one in columns if one not in fields)


def spread_over(specs: Sequence[Spec], fields: Sequence[str], runs: Sequence[Run]) -> list[Spec]:
    """A column for each combination of values that runs have in some fields, of each column."""
    if not fields:
        return list(specs)
    found = {tuple(field_of(run, name) for name in fields): None for run in runs}
    combinations = sorted(found, key=lambda values: [_comparable(value) for value in values])
    return [
        _of_values(spec, tuple(zip(fields, values, strict=True)))
        for spec in specs
        for values in combinations
    ]


def _of_values(spec: Spec, where: tuple[tuple[str, Any], ...]) -> Spec:
    told = ", ".join(_in_heading(name, value) for name, value in where)
    of = ",".join(f"{name}={_text(value)}" for name, value in where)
    column = replace(
        spec.column, key=f"{spec.column.key}[{of}]", heading=f"{spec.column.heading}, {told}"
    )
    return replace(spec, column=column, where=where)


def _in_heading(name: str, value: Any) -> str:
    if name in ("method", "addon") and value is not None:
        return known_title(name, str(value))
    return f"{name.rpartition('.')[2]} {_text(value)}"


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
    left = [
        run
        for run in runs
        if all(_fits(field_of(run, name), value) for name, value in filters) or is_at(run, always)
    ]
    if not left:
        name, _ = filters[-1]
        there = sorted({_text(field_of(run, name)) for run in runs})
        raise UserError(
            f"--rows {','.join(f'{name}={value}' for name, value in filters)} keeps no run",
            f"{name} is {', '.join(there)} here",
        )
    return left


def is_at(run: Run, path: Path | None) -> bool:
    """Whether a path leads to a run's directory."""
    return path is not None and os.path.realpath(run.path) == os.path.realpath(path)


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


# -- texts ----------------------------------------------------------------------------------------


def relabelled(specs: Sequence[Spec], labels: Mapping[str, str]) -> list[Spec]:
    """Columns with headings of one's own."""
    return [
        replace(spec, column=replace(spec.column, heading=labels[spec.column.key]))
        if spec.column.key in labels
        else spec
        for spec in specs
    ]


def require_labels_used(
    labels: Iterable[str], everyone: Sequence[Run], specs: Sequence[Spec]
) -> None:
    """Refuse labels of nothing; one may be of what another table of these runs has.

    Raises:
        UserError: A label is of no run and of no column.
    """
    keys = {spec.column.key for spec in specs}
    for name in labels:
        if name in keys or any(is_called(run, name) for run in everyone):
            continue
        if all(spec.column.key != name for spec in catalogue(everyone, None)):
            raise UserError(
                f"a label for {name!r}",
                "it names a run directory, or the key of a column",
                "`--format json` has the keys",
            )


# -- order ----------------------------------------------------------------------------------------


class UnknownSort(UserError):
    """What rows are to be sorted by is not in the table.

    Attributes:
        asked: As it was given.
    """

    def __init__(self, asked: str, specs: Sequence[Spec]) -> None:
        keys = ", ".join(spec.column.key for spec in specs)
        super().__init__(
            f"--sort {asked} is no column of the table and no field",
            f"columns are {keys}; fields are {', '.join(FIELDS)} and keys of recipes",
        )
        self.asked = asked


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
        UnknownSort: One is no column of the table and no field.
    """
    order = list(range(len(entries)))
    for asked in reversed(sort):
        name, backwards = asked.removeprefix("-"), asked.startswith("-")
        spec = next((one for one in specs if one.column.key == name), None)
        if spec is None:
            if not _is_field(name, entries):
                raise UnknownSort(asked, specs)
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


def _is_field(name: str, entries: Sequence[Entry]) -> bool:
    return name in FIELDS or any(_has(run, name) for entry in entries for run in entry.runs)


def _comparable(value: Any) -> tuple[int, float, str]:
    """What there is not, then numbers by size, then texts."""
    if value is None:
        return (-1, 0.0, "")
    number = as_number(value)
    return (0, number, "") if number is not None else (1, 0.0, str(value))

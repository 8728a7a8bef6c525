"""Grids from YAML files: found by name, looked at key by key, and held to what they name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sercli.errors import UserError
from sercli.grids.schema import PARTS, Comparison, Grid, Part
from sercli.protocols import PROTOCOLS
from sercli.recipe.files import GRIDS, recipes_root
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES
from sercli.runs.places import require_place
from sercli.runs.reading import shown
from sercli.runs.text import read_mapping


def grid_names() -> list[str]:
    """Names of the grids that come with ser."""
    return sorted(file.stem for file in (recipes_root() / GRIDS).glob("*.yaml"))


def find_grid(name: str) -> Path:
    """The file of a grid: of one that comes with ser by its name, or a YAML file.

    Raises:
        UserError: There is none.
    """
    require_place(name, "grid")
    for candidate in (recipes_root() / GRIDS / f"{name}.yaml", Path(name)):
        if os.path.isfile(candidate):
            return candidate
    raise UserError(
        f"no grid {shown(name)}",
        f"a YAML file is needed, or one of those that come with ser: {', '.join(grid_names())}",
        suggestion(name, grid_names()),
    )


def read_grid(file: Path) -> Grid:
    """Read a grid.

    Raises:
        UserError: No YAML, an unknown key (with a suggestion), a value that cannot be, or a name
            that nothing has.
    """
    tree = read_mapping(file)
    try:
        grid = Grid.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {_explained(error)}") from error
    _require_names(grid, file)
    return grid


def suggestion(word: str, known: Iterable[str]) -> str:
    """The nearest of what is known as a remedy, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _explained(error: ValidationError) -> str:
    """The first problem, by its key; a key that is misspelt before the one that is then missing."""
    problems = error.errors(include_url=False)
    unknown = (one for one in problems if one["type"] == "extra_forbidden")
    problem = next(unknown, problems[0])
    place = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(place) or "the grid"
    if problem["type"] == "extra_forbidden":
        known = list(_part_at(place).model_fields)
        near = suggestion(place[-1], known) or f"known: {', '.join(known)}"
        return f"unknown key {key}; every key must be one that is used; {near}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {shown(problem['input'])}: {message[:1].lower()}{message[1:]}"


def _part_at(place: Sequence[str]) -> type[Part]:
    """What has the key that a path of keys ends with."""
    if len(place) == 1:
        return Grid
    return Comparison if "comparisons" in place[:-1] else PARTS[place[0]]


def _require_names(grid: Grid, file: Path) -> None:
    """Refuse runs and tables that are named and not there, and metrics that nothing measures.

    Raises:
        UserError: In these cases.
    """

    def known(name: str, where: str, names: Iterable[str], what: str) -> None:
        there = list(names)
        if name not in there:
            near = suggestion(name, there) or f"known: {', '.join(there) or 'none'}"
            raise UserError(
                f"{file}: {where} names {shown(name)}", f"no {what} has that name", near
            )

    for name, evaluation in grid.evaluations.items():
        for run in evaluation.runs or ():
            known(run, f"evaluations.{name}.runs", grid.runs, "run")
    for name, claim in grid.claims.items():
        for comparison in claim.comparisons:
            for run in (comparison.of, comparison.other):
                known(run, f"claims.{name}", grid.runs, "run")
            _require_measured(comparison.metric, f"{file}: claims.{name}")
    for table in [*grid.tables, *tables_of(grid)]:
        known(table, "tables", [*PAPERS_TABLES, ALL], "table of `ser compare`")
    taken = {"out", "seed", "data", "coco", "robustness"}
    for name in grid.prepare:
        if name in taken:
            raise UserError(f"{file}: prepare.{name}", f"{{{name}}} stands for something else")


def _require_measured(metric: str, where: str) -> None:
    """Refuse a metric of no protocol: it would be missing after all runs are done.

    Raises:
        UserError: It is one.
    """
    result, _, quantity = metric.partition("/")
    name, _, variant = result.partition("--")
    if name not in PROTOCOLS:
        near = suggestion(name, PROTOCOLS) or f"known: {', '.join(PROTOCOLS)}"
        raise UserError(f"{where} names {shown(metric)}", "no evaluator has that name", near)
    if not PROTOCOLS[name].measures(quantity, variant):
        raise UserError(
            f"{where} names {shown(metric)}",
            f"ser {name} measures no such thing",
            f"`ser compare --columns {name} --format json` lists the keys of what it does",
        )


def tables_of(grid: Grid) -> list[str]:
    """The tables that some run or evaluation is marked for."""
    parts: list[Any] = [*grid.runs.values(), *grid.evaluations.values()]
    return list(dict.fromkeys(table for part in parts for table in part.tables))


def restricted(grid: Grid, table: str) -> Grid:
    """What of a grid one table needs: runs and evaluations that are marked for it, or for none.

    Claims about runs that are left out go.

    Raises:
        UserError: Nothing is marked for it.
    """
    there = tables_of(grid)
    if table not in there:
        raise UserError(
            f"--table {shown(table)}",
            f"this grid marks runs for {', '.join(there) or 'no table'}",
            suggestion(table, there),
        )
    runs = {name: one for name, one in grid.runs.items() if not one.tables or table in one.tables}
    evaluations = {}
    for name, one in grid.evaluations.items():
        kept = [run for run in grid.runs_of(name) if run in runs]
        if kept and (not one.tables or table in one.tables):
            evaluations[name] = one.model_copy(update={"runs": kept})
    claims = {
        name: one
        for name, one in grid.claims.items()
        if all({part.of, part.other} <= set(runs) for part in one.comparisons)
    }
    changed = {"runs": runs, "evaluations": evaluations, "claims": claims, "tables": [table]}
    return grid.model_copy(update=changed)

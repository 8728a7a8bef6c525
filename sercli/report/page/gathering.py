"""Run directories read for a page: what can be read of each, and a line for what cannot.

A table refuses a damaged file, as a number would be missing silently. A page shows runs as they
are, those that broke as well, and says what it left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sercli.errors import UserError
from sercli.report.compare.runs import Run
from sercli.runs.facts import recipe_of
from sercli.runs.finding import find_runs
from sercli.runs.reading import Scalar, rows
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.survey.standing import DEAD, UNSEEN

UNREADABLE = "unreadable"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """Something of a run that is not on the page.

    Attributes:
        path: The run directory, as given.
        text: What is wrong, in a sentence without its full stop.
    """

    path: str
    text: str


@dataclass(frozen=True)
class Gathered:
    """What there is.

    Attributes:
        runs: Those that have a run.json, each once.
        problems: In the order of the paths.
    """

    runs: Sequence[Run]
    problems: Sequence[Problem]


def gather(paths: Sequence[Path]) -> Gathered:
    """Read run directories, and those below folders.

    Raises:
        UserError: A path does not exist, or none of them is a run directory.
    """
    directories: dict[str, RunDir] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            found = find_runs([path])
        except UserError as error:
            if not os.path.lexists(path):
                raise
            problems.append(Problem(str(path), str(error)))
        else:
            for place in found.places:
                directories.setdefault(os.path.realpath(place.run.path), place.run)
            problems += [Problem(str(one.path), one.why) for one in found.skipped]
    runs = [_read(directory, problems) for directory in directories.values()]
    if not runs:
        raise UserError(
            f"no run directory in {', '.join(problem.path for problem in problems[:3])}",
            "a page is of run directories",
            "see `ser pretrain --help`",
        )
    return Gathered(runs, problems)


def _read(directory: RunDir, problems: list[Problem]) -> Run:
    def tried(read: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return read()
        except UserError as error:
            problems.append(Problem(str(directory.path), str(error)))
            return otherwise

    nothing: dict[str, Any] = {}
    record = tried(directory.read_run, {"status": UNREADABLE})
    has_recipe = os.path.lexists(directory.recipe)
    found = [
        tried(lambda file=file: Result.of_run(file), None)  # type: ignore[misc]
        for file in sorted(directory.results.glob("*.json"))
    ]
    return Run(
        directory=directory,
        recipe=tried(lambda: recipe_of(directory.recipe, record), nothing)
        if has_recipe
        else nothing,
        record=record,
        results={result.name: result for result in found if result is not None},
    )


_STATES = {
    DEAD: "dead, as no process runs it",
    UNSEEN: "unseen for a minute, on another machine",
}


def standing(run: Run) -> str:
    """How a run stands, in words for who does not know those of `ser runs`."""
    return _STATES.get(run.state, run.state)


def logged(run: Run, problems: list[Problem]) -> list[dict[str, Scalar]]:
    """The rows of metrics.jsonl that say their step, in its order; what is none is passed over."""
    if not os.path.lexists(run.directory.metrics):
        return []
    try:
        found = [row for row in rows(run.directory.metrics) if _is_step(row.get("step"))]
    except UserError as error:
        problems.append(Problem(run.path, str(error)))
        return []
    return sorted(found, key=lambda row: row["step"])  # type: ignore[arg-type, return-value]


def _is_step(value: Scalar) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53

"""Run directories as `compare` sees them, and what one row of a table holds of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.protocols import PROTOCOLS
from sercli.runs.facts import RunFacts, read_facts
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir


@dataclass(frozen=True)
class Run(RunFacts):
    """One run directory, read.

    Attributes:
        results: By result name (the stem of the file).
    """

    results: Mapping[str, Result] = field(default_factory=dict)

    @property
    def has_numbers(self) -> bool:
        return bool(self.results) or any(self.record.get(key) for key in ("timings", "flops"))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories, each once.

    Raises:
        UserError: One is no run directory, or a file in it cannot be read, or none of them
            holds any number.
    """
    runs = open_runs(paths)
    if not any(run.has_numbers for run in runs):
        named = ", ".join(run.path for run in runs)
        raise UserError(
            f"no result and no timing in {named}",
            "compare shows what runs have measured",
            f"run an evaluator first, for instance `ser {next(iter(PROTOCOLS))} RUNDIR`",
        )
    return runs


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories, each once, whether or not they hold a number.

    Raises:
        UserError: One is no run directory, or a file in it cannot be read.
    """
    # Not `Path.resolve`, which before Python 3.13 raises where links lead in a circle.
    unique = {os.path.realpath(path): path for path in reversed(paths)}
    return [_read(path) for path in reversed(unique.values())]


def _read(path: Path) -> Run:
    facts = read_facts(RunDir.open(path))
    return Run(
        directory=facts.directory,
        recipe=facts.recipe,
        record=facts.record,
        results={result.name: result for result in facts.directory.read_results()},
    )


# -- what runs differ in --------------------------------------------------------------------------

SEED = "seed"
_FIELDS: Mapping[str, Callable[[Run], Any]] = {
    "run": lambda run: run.path,
    "method": lambda run: run.name("method") or None,
    "addon": lambda run: run.addon if run.recipe else None,
    "layer": lambda run: run.tapped_layer,
    "views": lambda run: run.views or None,
    SEED: lambda run: run.seed,
}
FIELDS = tuple(_FIELDS)


def field_of(run: Run, name: str) -> Any:
    """What a run is by one of `FIELDS`, or by a dotted key of its recipe; None if it has none."""
    if name in _FIELDS:
        return _FIELDS[name](run)
    value: Any = run.recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class Entry:
    """One row to be: one run, or several that differ in their seed only.

    Attributes:
        over: In what its runs differ, fields such as the seed; none where each run has a row.
        label: As in the paper's tables; with `views` it is unique.
        name: The label, with the views where another row has the same label.
    """

    runs: tuple[Run, ...]
    label: str = ""
    name: str = ""
    over: tuple[str, ...] = ()

    @property
    def run(self) -> Run:
        """The one that speaks for the row."""
        return self.runs[0]

    def repeat_of(self, run: Run) -> str:
        """What tells a run from the others of the row: its seed."""
        return ", ".join(str(field_of(run, name)) for name in self.over)

    @property
    def views(self) -> str:
        return "any" if "views" in self.over else self.run.views.replace("-", " ")

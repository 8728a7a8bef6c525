"""Run directories as `compare` sees them, and what one row of a table holds of them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sercli.errors import SerError, UserError
from sercli.protocols import PROTOCOLS
from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.report.compare.tables import Scored
from sercli.runs.facts import RunFacts, as_number, read_facts
from sercli.runs.finding import Skipped, find_runs
from sercli.runs.lease import holder_of
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.survey.standing import RUNNING, state_of

_NAMED = 4  # runs in a line


@dataclass(frozen=True)
class Run(RunFacts):
    """One run directory, read.

    Attributes:
        results: By result name (the stem of the file).
    """

    results: Mapping[str, Result] = field(default_factory=dict)

    @cached_property
    def state(self) -> str:
        """How it stands, as `ser runs` says it; a run that has ended has, whoever evaluates it."""
        if self.status != RUNNING:
            return self.status
        return state_of(self, holder_of(self.directory))

    @cached_property
    def scored(self) -> Mapping[str, Scored]:
        """The images that each result is of."""
        return {name: _scored(result) for name, result in self.results.items()}

    @cached_property
    def share_of_images(self) -> float:
        """Of the images that there are, how many the run saw: 0…1."""
        share = as_number(self.setting("data", "share"))
        return 1.0 if share is None else share  # of a run of before there were shares

    @cached_property
    def trained_with(self) -> Mapping[str, Any]:
        """Settings of training and data, but for what changes no number."""
        section = self.recipe.get("train")
        train = section if isinstance(section, Mapping) else {}
        classes = self.setting("data", "classes")
        told = ("path", "image_size", "num_train")
        return {
            **{
                name: value
                for key, value in train.items()
                if (name := f"train.{key}") not in WITHOUT_EFFECT
            },
            **{f"data.{key}": self.setting("data", key) for key in told},
            "data.classes": ", ".join(map(str, classes)) if isinstance(classes, list) else "all",
            "data.share": self.share_of_images,
        }

    @cached_property
    def built_with(self) -> Mapping[str, Any]:
        """Settings of model, method, views; where [CLS] enters follows from the add-on's layer."""
        sections = {key: self.recipe.get(key) for key in ("model", "method", "views")}
        return {key: value for key, value in flat(sections).items() if key != "model.cls_after"}

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Where its numbers come from: the directory, what made it, and each result's protocol."""
        recorded = ("status", "recipe_name", "git_commit", "device", "versions", "command")
        return {
            "path": self.path,
            "seed": self.seed,
            **{key: self.record[key] for key in recorded if key in self.record},
            **({"status": self.state} if "status" in self.record else {}),
            "results": {
                name: {
                    "protocol_id": result.protocol_id,
                    "model": result.model,
                    "data": result.data,
                    "created": result.created,
                }
                for name, result in self.results.items()
            },
        }

    @property
    def has_numbers(self) -> bool:
        return bool(self.results) or any(self.record.get(key) for key in ("timings", "flops"))


def _scored(result: Result) -> Scored:
    images = result.data.get("n")
    others = sorted(
        f"{key} {value}"
        for key, value in result.data.items()
        if key not in {"path", "n", "partial"} and isinstance(value, str | int | float)
    )
    return Scored(
        path=str(result.data.get("path")),
        images=images if isinstance(images, int) else None,
        partial=bool(result.data.get("partial")),
        other=", ".join(others),
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def read_runs(paths: Sequence[Path], skipped: list[Skipped] | None = None) -> list[Run]:
    """Read run directories, each once; see `open_runs`.

    Raises:
        UserError: As there, or none of them holds any number.
    """
    runs = open_runs(paths, skipped)
    if not any(run.has_numbers for run in runs):
        named = ", ".join(run.path for run in runs[:_NAMED])
        more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        raise UserError(
            f"no result and no timing in {named}{more}",
            "compare shows what runs have measured",
            f"run an evaluator first, for instance `ser {next(iter(PROTOCOLS))} RUNDIR`",
        )
    return runs


def open_runs(paths: Sequence[Path], skipped: list[Skipped] | None = None) -> list[Run]:
    """Read run directories, and those below folders, each once, whether or not they hold a number.

    Args:
        paths: Run directories, and folders that are searched for them.
        skipped: Takes what was found below a folder and cannot be read; None: a warning each.

    Raises:
        UserError: One that is named is no run directory and holds none, or a file in it cannot be
            read.
    """
    found = find_runs(paths)
    runs, unread = [], list(found.skipped)
    with without_collecting():
        for place in found.places:
            try:
                runs.append(_read(place.run))
            except SerError as error:
                if place.named:
                    raise
                unread.append(Skipped(place.run.path, str(error)))
    if not runs and unread:
        raise UserError(f"no run could be read: {unread[0].why}")
    if skipped is None:
        for one in unread:
            warnings.warn(f"passed over: {one.why}", stacklevel=3)
    else:
        skipped += unread
    return runs


@contextmanager
def without_collecting() -> Iterator[None]:
    """Without looking for garbage, while much is made that all stays: there is none to be found."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _read(directory: RunDir) -> Run:
    facts = read_facts(directory)
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
        spread: What columns are of as well: fields whose values its runs have a column each for.
        label: As in the paper's tables; with `views` it is unique.
        name: The label, with the views where another row has the same label.
    """

    runs: tuple[Run, ...]
    label: str = ""
    name: str = ""
    over: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()

    @property
    def run(self) -> Run:
        """The one that speaks for the row."""
        return self.runs[0]

    def at(self, where: Sequence[tuple[str, Any]]) -> Entry:
        """The row with only those of its runs that a column is of; there may be none."""
        if not where:
            return self
        runs = (run for run in self.runs if all(field_of(run, name) == to for name, to in where))
        return replace(self, runs=tuple(runs))

    def repeat_of(self, run: Run) -> str:
        """What tells a run from the others of the row: its seed."""
        return ", ".join(str(field_of(run, name)) for name in self.over)

    @property
    def views(self) -> str:
        return "any" if "views" in self.over else self.run.views.replace("-", " ")

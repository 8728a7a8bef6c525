"""How a job stands, read from what it makes: no file of ours says what is done, so none can lie.

A training is done where run.json says so and its recipe is the one that is asked for; an evaluation
where there are results that say they were asked for alike. Importing this imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sercli.encoders.asked import require_weights
from sercli.engine.resuming import edits
from sercli.errors import SerError, UserError
from sercli.families import resolve
from sercli.grids.jobs import Job, Places
from sercli.recipe.files import Resolved
from sercli.recipe.keys import FILLED_IN, WITHOUT_EFFECT
from sercli.runs.lease import refuse_if_leased
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.runs.text import read_mapping

# What the words of a command mean: option → value. A command raises `UserError` for words that
# are none of its.
Reader = Callable[[Sequence[str]], Mapping[str, Any]]
Status = Literal["done", "new", "stopped", "busy", "failed", "other"]

_NAMED = 3  # settings in a line
# Options that change no number, or (MODEL, --out) only say where: results that differ in these
# alone are of one job.
_WITHOUT_EFFECT = frozenset({"source", "out", "device", "workers", "restart"})
_OF_SOME = ("limit", "allow_partial")  # options that ask for a part


@dataclass(frozen=True)
class Standing:
    """How a job stands.

    Attributes:
        status: "stopped": a training that can be gone on with; "busy": another process is at it;
            "failed": its run did; "other": what is there is of something else.
        why: A phrase, where it cannot be done now.
    """

    status: Status
    why: str = ""


class Standings:
    """How jobs stand, each looked at anew when it is asked for.

    Args:
        read_command: Reads the words of evaluators.
    """

    def __init__(self, read_command: Reader) -> None:
        self._read_command = read_command
        self._recipes: dict[str, Resolved] = {}

    def recipe_of(self, job: Job, data: str | None) -> Resolved:
        """The recipe that a training is asked for with.

        Raises:
            UserError: There is no such recipe, or it cannot be used.
        """
        if job.name not in self._recipes:
            flags = {"seed": job.seed, **({} if data is None else {"data.path": data})}
            self._recipes[job.name] = resolve(job.recipe, job.settings, flags)
        return self._recipes[job.name]

    def require_weights(self, job: Job, places: Places) -> None:
        """Refuse weights that a training cannot begin from; of this grid they may be made yet.

        Raises:
            UserError: They are not there, or its recipe cannot be used.
        """
        model = self.recipe_of(job, places.data).recipe.model
        if model.weights is not None:
            there = Path(os.path.abspath(model.weights))
            if not there.is_relative_to(os.path.abspath(places.out)):
                require_weights(model)

    def of(self, job: Job, data: str | None = None) -> Standing:
        """How a job stands now.

        Args:
            job: The job.
            data: `--data` of the grid.
        """
        try:
            if job.is_training:
                return _of_training(job, self.recipe_of(job, data))
            if job.evaluation is None:
                return Standing("done" if job.directory.is_dir() else "new")
            return self._of_evaluation(job)
        except UserError as error:
            return Standing("other", str(error))

    def foreign(self, jobs: Iterable[Job], data: str | None = None) -> dict[Path, str]:
        """Directories that hold something else where trainings would make runs, and what it is.

        Args:
            jobs: Of a grid.
            data: `--data` of the grid.
        """
        found = {job.directory: self.of(job, data) for job in jobs if job.is_training}
        return {path: one.why for path, one in found.items() if one.status == "other"}

    def _of_evaluation(self, job: Job) -> Standing:
        assert job.evaluation is not None
        run = RunDir(job.directory)
        try:
            refuse_if_leased(run)
        except UserError as error:
            return Standing("busy", str(error))
        found = {result.name for result in self.results_of(job)}
        wanted = set(job.evaluation.results) or found
        return Standing("done" if found and wanted <= found else "new")

    def results_of(self, job: Job) -> Iterator[Result]:
        """The results of an evaluation that are there, whole, and asked for as the job does."""
        asked = self._asked(job.words)
        for file in sorted(RunDir(job.directory).results.glob(f"{job.words[0]}*.json")):
            try:
                result = Result.of_run(file)
            except SerError:
                continue  # damaged: it is evaluated anew
            some = any(asked.get(name) for name in _OF_SOME)
            if result.protocol["name"] != job.words[0] or (result.data.get("partial") and not some):
                continue
            if self._was_asked(result.command) == asked:
                yield result

    def _was_asked(self, command: Sequence[str]) -> Mapping[str, Any] | None:
        words = [word for word in command if word != "--debug"]
        try:
            return self._asked(words[1:]) if len(words) > 1 else None
        except SerError:  # of another version
            return None

    def _asked(self, words: Sequence[str]) -> Mapping[str, Any]:
        values = self._read_command(words)
        kept = {key: value for key, value in values.items() if key not in _WITHOUT_EFFECT}
        return {**kept, "": words[0]}


def _left_to_weights(resolved: Resolved) -> frozenset[str]:
    """The keys that the weights which a recipe begins from fill in, as nobody set them."""
    if resolved.recipe.model.weights is None:
        return frozenset()
    return FILLED_IN - {key for key, origin in resolved.origins.items() if origin != "default"}


def _of_training(job: Job, resolved: Resolved) -> Standing:
    if not os.path.lexists(job.directory):
        return Standing("new")
    run = RunDir.open(job.directory)
    record = run.read_run()
    if not run.recipe.is_file():
        raise UserError(f"{run.path} has no recipe.yaml", "it was not made by ser pretrain")
    changed = [
        text
        for key, text in edits(read_mapping(run.recipe), resolved.recipe)
        if key not in (WITHOUT_EFFECT - {"data.path"}) | _left_to_weights(resolved)
    ]
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        return Standing(
            "other",
            f"{run.path} is of another recipe ({'; '.join(changed[:_NAMED])}{more}); "
            "remove it, or name another --out",
        )
    status = record["status"]
    if status == "done":
        return Standing("done")
    try:
        refuse_if_leased(run)
    except UserError as error:
        return Standing("busy", str(error))
    if status == "failed":
        why = re.sub(r"\s+", " ", str(record.get("error") or "its run failed"))
        return Standing("failed", f"{why}; --retry-failed goes on with it")
    return Standing("stopped")

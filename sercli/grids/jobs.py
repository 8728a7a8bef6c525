"""From a grid to its jobs: each a command of `ser`, in the order in which they are done.

Seed by seed, so that the first seed of everything is there early; of each run the training, then
its evaluations in the grid's order.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sercli.errors import UserError
from sercli.grids.reading import suggestion
from sercli.grids.schema import Evaluation, Grid, Preparation
from sercli.recipe.files import flatten
from sercli.recipe.keys import WEIGHTS
from sercli.runs.text import parse_yaml

TRAINING = "pretrain"
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Places:
    """What a grid is made with, and where.

    Attributes:
        out: Folder of all that is made.
        data: Images of all runs; None: the recipes'.
        coco: A detection set.
        robustness: Shifted test sets, or folders that hold some.
        machine: Options that every job is given, `--device` and its value.
        nproc: Processes of a training.
    """

    out: Path
    data: str | None = None
    coco: str | None = None
    robustness: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    nproc: int = 1

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    def run(self, name: str, seed: int) -> Path:
        """The directory of a run."""
        return self.runs / f"{name}-seed{seed}"


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: Unique; "ser-3-seed0", and of its evaluations "ser-3-seed0/knn".
        kind: "pretrain", or the name of a preparation or an evaluation: such jobs take alike.
        words: What `ser` is given.
        directory: What it makes, or the run that it is of.
        needs: Jobs that must be done before.
        run: The run's name in the grid; empty for a preparation.
        seed: Its seed.
        recipe: Of a training.
        settings: `--set` of it.
        evaluation: What is measured; None for others.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    directory: Path
    needs: tuple[str, ...] = ()
    run: str = ""
    seed: int = 0
    recipe: str = ""
    settings: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    @property
    def is_training(self) -> bool:
        return bool(self.recipe)

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"{TRAINING} {self.recipe}" if self.is_training else " ".join(_leading(self.words))

    @property
    def command(self) -> str:
        """As a person types it."""
        return shlex.join(["ser", *self.words])

    def resumed(self, places: Places) -> Job:
        """The training gone on with."""
        words = (TRAINING, "--resume", str(self.directory), *_training_options(places))
        return replace(self, words=words)


@dataclass(frozen=True)
class Plan:
    """All jobs of a grid.

    Attributes:
        jobs: In their order.
        notes: What is left out, and why, a line each.
    """

    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()

    def only(self, names: Sequence[str]) -> Plan:
        """The jobs of some runs or preparations, with what those need.

        Args:
            names: Of runs ("ser-3"), of their directories ("ser-3-seed0"), or of what is prepared;
                none: all.

        Raises:
            UserError: There is nothing of that name.
        """
        if not names:
            return self
        there = {label for job in self.jobs for label in _labels(job)}
        for name in names:
            if name not in there:
                runs = ", ".join(dict.fromkeys(job.run for job in self.jobs if job.run))
                raise UserError(f"--only {name}", f"the runs are {runs}", suggestion(name, there))
        kept = [job for job in self.jobs if _labels(job) & set(names)]
        needed = {need for job in kept for need in job.needs}
        jobs = tuple(job for job in self.jobs if job in kept or job.name in needed)
        return replace(self, jobs=jobs)


def _labels(job: Job) -> set[str]:
    """What `--only` may call a job: by its run, its directory, or what it prepares."""
    return {job.run or job.kind, job.directory.name}


def plan_jobs(grid: Grid, places: Places) -> Plan:
    """All jobs of a grid.

    Raises:
        UserError: A command names something that stands for nothing.
    """
    jobs: list[Job] = []
    missing: dict[str, str] = {}
    for seed in grid.all_seeds:
        for run in grid.runs:
            if seed not in grid.seeds_of(run):
                continue
            training = _training(grid, run, seed, places)
            jobs.append(training)
            for name, evaluation in grid.evaluations.items():
                if run not in grid.runs_of(name):
                    continue
                filled = _Filled(grid, places, seed)
                words = [filled.text(word) for word in evaluation.words]
                if filled.missing:
                    missing[name] = filled.missing
                    continue
                made = {job.name for job in jobs}
                jobs += [job for job in filled.prepared if job.name not in made]
                jobs.append(
                    Job(
                        name=f"{training.name}/{name}",
                        kind=name,
                        words=(words[0], str(training.directory), *words[1:], *places.machine),
                        directory=training.directory,
                        needs=(training.name, *(job.name for job in filled.prepared)),
                        run=run,
                        seed=seed,
                        evaluation=evaluation,
                    )
                )
    notes = tuple(f"{name} is left out: {why}" for name, why in missing.items())
    return Plan(tuple(jobs), notes)


def _training(grid: Grid, run: str, seed: int, places: Places) -> Job:
    one = grid.runs[run]
    told = {**dict(flatten(grid.set)), **dict(flatten(one.set))}
    if isinstance(weights := told.get(WEIGHTS), str):
        told[WEIGHTS] = _Filled(grid, places, seed).text(weights)
    settings = tuple(f"{key}={_as_yaml(value)}" for key, value in told.items())
    directory = places.run(run, seed)
    data = () if places.data is None else ("--data", places.data)
    words = (
        *(TRAINING, "--recipe", one.recipe, "--seed", str(seed), *data),
        *(word for setting in settings for word in ("--set", setting)),
        *("--out", str(directory), *_training_options(places)),
    )
    return Job(
        name=directory.name,
        kind=TRAINING,
        words=words,
        directory=directory,
        run=run,
        seed=seed,
        recipe=one.recipe,
        settings=settings,
    )


def _training_options(places: Places) -> tuple[str, ...]:
    several = ("--nproc", str(places.nproc)) if places.nproc > 1 else ()
    return (*places.machine, *several)


def _as_yaml(value: Any) -> str:
    """A value as `--set` reads it back."""
    if isinstance(value, str):
        try:
            if parse_yaml(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)


def _leading(words: Sequence[str]) -> Iterator[str]:
    """The command among the words: what stands before paths and options."""
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            return
        yield word


class _Filled:
    """Texts of a grid with its slots filled; what that takes is collected.

    Attributes:
        prepared: Jobs that make what the texts name.
        missing: Why a slot could not be filled; empty: all were.
    """

    def __init__(self, grid: Grid, places: Places, seed: int) -> None:
        self.grid, self.places, self.seed = grid, places, seed
        self.prepared: list[Job] = []
        self.missing = ""

    def text(self, text: str) -> str:
        """The text with its slots filled.

        Raises:
            UserError: One is unknown.
        """
        return _SLOT.sub(lambda slot: self._slot(slot[1]), text)

    def _slot(self, name: str) -> str:
        whole, _, folder = name.partition("/")
        if name == "out":
            return str(self.places.out)
        if name == "seed":
            return str(self.seed)
        if name in self.grid.prepare:
            return str(self._prepare(name, self.grid.prepare[name]))
        if whole == "robustness" and folder:
            return self._folder(folder.split("|"))
        if name in ("data", "coco"):
            given = {"data": self.places.data, "coco": self.places.coco}[name]
            if given is None:
                self.missing = f"it needs --{name}"
            return given or ""
        known = ["out", "seed", *self.grid.prepare, "data", "coco", "robustness/FOLDER"]
        raise UserError(
            f"{{{name}}} in the grid stands for nothing",
            f"known: {', '.join(f'{{{one}}}' for one in known)}",
            suggestion(name, known),
        )

    def _folder(self, names: Sequence[str]) -> str:
        """A folder of that name: given itself, or below what is given."""
        for given in self.places.robustness:
            path = Path(given)
            for candidate in (path, *(path / name for name in names)):
                if candidate.name in names and os.path.isdir(candidate):
                    return str(candidate)
        wanted = " or ".join(names)
        self.missing = (
            f"there is no {wanted} below what --robustness names"
            if self.places.robustness
            else f"it needs --robustness, with {wanted}"
        )
        return ""

    def _prepare(self, name: str, preparation: Preparation) -> Path:
        own = _Filled(self.grid, self.places, self.seed)
        of_seed = "{seed}" in preparation.command
        label = f"{name}-seed{self.seed}" if of_seed else name
        directory = self.places.out / "data" / label
        words = [own.text(word) for word in preparation.words]
        self.missing = self.missing or own.missing
        leading = list(_leading(words))
        job = Job(
            name=f"data/{label}",
            kind=name,
            words=(*leading, str(directory), *words[len(leading) :]),
            directory=directory,
            needs=tuple(job.name for job in own.prepared),
            seed=self.seed,
        )
        self.prepared += [*own.prepared, job]
        return directory

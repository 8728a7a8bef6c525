"""How a run stands: running or dead, by its lease; how far it is; when it will end; no torch.

run.json says what a run was last told. Whether it still runs its lease knows: a process that was
killed cannot say so. How far it is stands in the last lines of metrics.jsonl.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from sercli.errors import SerError
from sercli.recipe.schedule import total_steps
from sercli.runs.facts import RunFacts, as_number, read_facts
from sercli.runs.finding import Found, Skipped
from sercli.runs.lease import Holder, holder_of
from sercli.runs.reading import Scalar, rows_from_end
from sercli.runs.run_dir import RunDir

RUNNING = "running"
DEAD = "dead"
UNSEEN = "unseen"
COLLECTS = "results"
_RATED_ROWS = 10  # whose images/s are averaged
MEASURED = "knn_top1"
_LONGEST = 1e12  # steps, or seconds: what is longer is no number of a run's


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Optimiser steps done, as far as they are logged; None: nothing is.
        total: Of how many; None: not known.
        images_per_s: Mean over the last rows.
        seconds_left: At that rate; None: not known. What is saved and measured comes on top.
        last: The last row of metrics.jsonl; empty where there is none.
        measured: The last row with what is measured now and then (nearest neighbours).
    """

    step: int | None = None
    total: int | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    last: Mapping[str, Scalar] = field(default_factory=dict)
    measured: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        return as_number(self.last.get("loss"))

    @property
    def knn(self) -> float | None:
        """Top-1 in percent of the nearest neighbours that are watched while training."""
        return as_number(self.measured.get(MEASURED))


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        facts: What it is.
        state: "running"; "dead": run.json says that it runs, and no process does; "unseen": the
            process of another machine has not touched its lease for a minute; "results": it only
            collects them; else what run.json says: "done", "preempted", "interrupted", "failed".
        holder: Whose it is; None: nobody's.
        progress: How far it is.
        results: Names of its results, as the files are called.
        size: Bytes of all its files.
    """

    facts: RunFacts
    state: str
    holder: Holder | None
    progress: Progress
    results: tuple[str, ...]
    size: int

    @property
    def written(self) -> bool:
        """Whether a process writes it, or could: that of another machine cannot be seen."""
        return self.state in (RUNNING, UNSEEN)


def standing_of(run: RunDir) -> Standing:
    """How a run stands.

    Raises:
        UserError: It is no run directory, or one of its files is damaged or of another version.
    """
    facts = read_facts(run)
    holder = holder_of(run)
    return Standing(
        facts=facts,
        state=state_of(facts, holder),
        holder=holder,
        progress=progress_of(facts),
        results=tuple(sorted(file.stem for file in run.results.glob("*.json"))),
        size=size_of(run.path),
    )


def standings(found: Found) -> tuple[list[Standing], list[Skipped]]:
    """How all runs stand that were found; what cannot be read of them is passed over and said.

    Raises:
        UserError: One that was named cannot be read.
    """
    read: list[Standing] = []
    skipped = list(found.skipped)
    for place in found.places:
        try:
            read.append(standing_of(place.run))
        except (SerError, OSError) as error:
            if place.named:
                raise
            skipped.append(Skipped(place.run.path, str(error)))
    return read, skipped


def state_of(facts: RunFacts, holder: Holder | None) -> str:
    """How a run stands, in a word of `Standing.state`: the one rule, of lists, tables and pages.

    Args:
        facts: What it is.
        holder: Whose it is by its lease (`holder_of`).
    """
    if holder is not None and holder.writes:
        return RUNNING
    if facts.status == RUNNING:
        return UNSEEN if holder is not None and holder.lives is None else DEAD
    return COLLECTS if "evaluates" in facts.record and not facts.recipe else facts.status


# -- How far --------------------------------------------------------------------------------------


def progress_of(facts: RunFacts) -> Progress:
    """How far the training of a run is, by the end of its metrics.jsonl.

    Raises:
        UserError: The file cannot be read.
    """
    metrics = facts.directory.metrics
    rows = list(islice(_steps(rows_from_end(metrics)), _RATED_ROWS)) if metrics.exists() else []
    last: Mapping[str, Scalar] = rows[0] if rows else {}
    steps = [as_number(last.get("step")), as_number(facts.record.get("saved_step"))]
    rates = [as_number(row.get("images_per_s")) for row in rows]
    told = [rate for rate in rates if rate is not None and rate > 0]
    measured = _steps(rows_from_end(metrics, holding=f'"{MEASURED}"')) if rows else iter(())
    progress = Progress(
        step=max((int(one) for one in steps if one is not None), default=None),
        total=_total(facts, last),
        images_per_s=sum(told) / len(told) if told else None,
        last=last,
        measured=next((row for row in measured if as_number(row.get(MEASURED)) is not None), {}),
    )
    return replace(progress, seconds_left=_seconds_left(progress, facts))


def _steps(rows: Iterator[Mapping[str, Scalar]]) -> Iterator[Mapping[str, Scalar]]:
    for row in rows:
        step = row.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _LONGEST:
            yield row


def _total(facts: RunFacts, last: Mapping[str, Scalar]) -> int | None:
    """How many steps it has: by its recipe, and how many images it has or its last row's epoch."""
    epochs, most = (as_number(facts.setting("train", key)) for key in ("epochs", "max_steps"))
    per_epoch = _steps_per_epoch(facts, last)
    if epochs is None or per_epoch is None:
        return None if most is None else int(most)
    if not 0 <= epochs * per_epoch < _LONGEST:
        return None
    return total_steps(epochs, per_epoch, None if most is None else int(most))


def _steps_per_epoch(facts: RunFacts, last: Mapping[str, Scalar]) -> int | None:
    images, batch = facts.quantity("data", "images"), _batch_size(facts)
    if images is not None and batch is not None:
        return int(images // batch)
    step, epoch = as_number(last.get("step")), as_number(last.get("epoch"))
    # A run of an earlier version does not say how many images it has.
    per_epoch = step / epoch if step and epoch else 0.0
    return round(per_epoch) if 1 <= per_epoch < _LONGEST else None


def _batch_size(facts: RunFacts) -> float | None:
    size = as_number(facts.setting("train", "batch_size"))
    return size if size is not None and size >= 1 else None


def _seconds_left(progress: Progress, facts: RunFacts) -> float | None:
    batch = _batch_size(facts)
    if progress.step is None or progress.total is None or not progress.images_per_s or not batch:
        return None
    left = max(0, progress.total - progress.step) * batch / progress.images_per_s
    return left if left < _LONGEST else None


# -- How large ------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    """Bytes of all files in a directory; what links lead to is not of it."""
    return sum(size for _, size in files_of(path))


def files_of(path: Path) -> Iterator[tuple[Path, int]]:
    """Files of a directory, and of those in it, with their sizes; what cannot be seen is left out.

    A file with several names there comes once.
    """
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            try:
                status = file.lstat()
            except OSError:
                continue
            identity = (status.st_dev, status.st_ino)
            if not stat.S_ISREG(status.st_mode) or identity in seen:
                continue
            if status.st_nlink > 1:
                seen.add(identity)
            yield file, status.st_size

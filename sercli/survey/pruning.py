"""What of a run can go: nothing that was measured, and nothing that it could go on from; no torch.

Checkpoints beyond the last that verify, which a version of before or a copy left; caches, which are
made again; the halves of probes that nobody went on with; what killed processes left. A run that
a process writes, or could, is left alone, and its lease is held while something is removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sercli.errors import SerError
from sercli.runs.files import is_left_behind, remove
from sercli.runs.lease import leased
from sercli.runs.run_dir import KEPT_CHECKPOINTS, RunDir
from sercli.survey.standing import UNSEEN, Standing, files_of, size_of

QUIET = 24 * 3600.0  # seconds that nothing was written, where no lease says whether a process lives


@dataclass(frozen=True)
class Waste:
    """What can go.

    Attributes:
        path: A file or a directory.
        what: In words: "checkpoint", "cache", "unfinished probe", "left by a killed process".
        size: Its bytes.
        beside: What goes with it: a checkpoint's hash.
    """

    path: Path
    what: str
    size: int
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What can go of a run.

    Attributes:
        run: Whose it is.
        waste: In the order of what it is, and by name.
        notes: What stays although it looks alike, and why; a line each.
    """

    run: RunDir
    waste: tuple[Waste, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(one.size for one in self.waste)


def plan_for(standing: Standing) -> Plan:
    """What can go of a run; of one that is written, nothing."""
    run = standing.facts.directory
    if standing.written:
        who = f" by {standing.holder.owner}" if standing.holder else ""
        unseen = ", which cannot be seen from here" if standing.state == UNSEEN else ""
        return Plan(run, notes=(f"{run.path} is being written{who}{unseen}: it is left alone",))
    notes: list[str] = []
    milestones = standing.facts.record.get("milestones")
    kept = {one for one in milestones if isinstance(one, int)} if milestones else set()
    waste = [
        *_checkpoints(run, kept, notes),
        *_of_detectors(run, notes),
        *_caches(run),
        *_unfinished(run, notes),
        *_left_behind(run),
    ]
    return Plan(run, tuple(waste), tuple(notes))


def drafts_in(folder: Path) -> list[Waste]:
    """Half-made run directories in a folder, whose processes have ended."""
    try:
        with os.scandir(folder) as entries:
            hidden = sorted(Path(entry.path) for entry in entries if entry.name.startswith("."))
    except OSError:
        return []
    return [_left(path) for path in hidden if is_left_behind(path)]


def carry_out(plan: Plan) -> tuple[int, list[str]]:
    """Remove what a plan says, holding the run's lease.

    Returns:
        Bytes that were freed, and what could not be removed, a line each.
    """
    if not plan.waste:
        return 0, []
    try:
        with leased(plan.run):
            return remove_all(plan.waste)
    except (SerError, OSError) as error:
        return 0, [str(error)]


def remove_all(waste: Iterable[Waste]) -> tuple[int, list[str]]:
    """Remove things; see `carry_out`."""
    freed, problems = 0, []
    for one in waste:
        for path in (one.path, *one.beside):
            remove(path)
        if os.path.lexists(one.path):
            problems.append(f"{one.path} could not be removed")
        else:
            freed += one.size
    return freed, problems


# -- What there is --------------------------------------------------------------------------------


def _checkpoints(run: RunDir, kept: set[int], notes: list[str]) -> Iterator[Waste]:
    """Checkpoints older than the last that verify, but for milestones."""
    steps = [step for step in run.checkpoint_steps() if step not in kept]
    if len(steps) <= KEPT_CHECKPOINTS or run.checkpoints.is_symlink():
        return
    good: list[int] = []
    for step in reversed(steps):  # each is read whole to find out: no more than are needed
        if run.checkpoint_verifies(step):
            good.append(step)
        if len(good) == KEPT_CHECKPOINTS:
            break
    else:
        few = "one" if good else "none"
        notes.append(f"{run.checkpoints}: of {len(steps)} checkpoints {few} verifies: all stay")
        return
    for step in steps:
        if step < good[-1]:
            path, beside = run.checkpoint(step), run.checkpoint_hash(step)
            size = _bytes(path) + _bytes(beside)
            yield Waste(path, "checkpoint", size, (beside,))


def _of_detectors(run: RunDir, notes: list[str]) -> Iterator[Waste]:
    for detector in run.detections():
        if detector.path.is_symlink() or not _is_quiet(detector.path):
            continue  # no lease says whether one is being trained
        yield from _checkpoints(detector, set(), notes)


def _caches(run: RunDir) -> Iterator[Waste]:
    if run.cache.is_dir() and not run.cache.is_symlink():
        for path, size in sorted(files_of(run.cache)):
            if not path.name.startswith("."):  # what is half made is another's to clear
                yield Waste(path, "cache", size)


def _unfinished(run: RunDir, notes: list[str]) -> Iterator[Waste]:
    for path in sorted(run.heads.glob(run.unfinished_head("*").name)):
        if not path.is_file() or path.is_symlink():
            continue
        if _is_quiet(path):
            yield Waste(path, "unfinished probe", _bytes(path))
        else:
            notes.append(f"{path} stays: a probe wrote it within a day, and can go on from it")


def _left_behind(run: RunDir) -> Iterator[Waste]:
    """What killed processes left anywhere in the directory."""
    for folder, folders, names in os.walk(run.path):
        for name in sorted((*folders, *names)):
            path = Path(folder, name)
            if name.startswith(".") and is_left_behind(path):
                yield _left(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _left(path: Path) -> Waste:
    size = size_of(path) if path.is_dir() and not path.is_symlink() else _bytes(path)
    return Waste(path, "left by a killed process", size)


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _is_quiet(path: Path) -> bool:
    """Whether nothing in it was written for a day."""
    inside = (file for file, _ in files_of(path)) if path.is_dir() else iter((path,))
    times = []
    for one in inside:
        try:
            times.append(one.lstat().st_mtime)
        except OSError:
            return False
    return bool(times) and time.time() - max(times) > QUIET

"""Run directories below a folder: found without being led in a circle, or anywhere else.

A folder may hold anything: other people's files, links to what is above it, directories that may
not be read. What is a run directory is one that has a run.json; what cannot be looked into is said
and passed over, since nobody named it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sercli.errors import UserError
from sercli.runs.places import require_place
from sercli.runs.run_dir import RunDir

_RUN = RunDir(Path()).run.name


@dataclass(frozen=True)
class Skipped:
    """What was found and could not be read.

    Attributes:
        path: Where it is.
        why: In one line; it names the file.
    """

    path: Path
    why: str


@dataclass(frozen=True)
class Place:
    """A run directory, and whether a user named it or it was found below a folder.

    Attributes:
        run: Where it is.
        named: It was named: what is wrong with it is an error.
    """

    run: RunDir
    named: bool = True


@dataclass
class Found:
    """What places hold.

    Attributes:
        places: Run directories, each once, in the order of what was named, then by name.
        skipped: What could not be looked into.
    """

    places: list[Place] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def find_runs(given: Iterable[Path]) -> Found:
    """The run directories that are named, and those below the folders that are.

    A run directory is looked into as well, but for what ser writes into one. A link is followed
    where it leads to a run directory, and nowhere else; a directory that two names lead to is
    found once.

    Args:
        given: Run directories and folders.

    Raises:
        UserError: One is not there, is a file, or holds no run directory.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()
    for path in given:
        require_place(path, "a run directory:")
        if not path.is_dir() or (path / _RUN).exists():
            _add(found, seen, Place(RunDir.open(path)))
            continue
        before = len(found.places), len(found.skipped)
        met = False
        for run in _below(path, found.skipped):
            met = True
            _add(found, seen, Place(run, named=False))
        if not met:
            hidden = found.skipped[before[1] :]
            raise UserError(
                f"{path} holds no run directory" + (f" ({hidden[0].why})" if hidden else ""),
                "a run directory has a run.json",
                "see `ser pretrain --help`",
            )
    return found


def _add(found: Found, seen: set[tuple[int, int]], place: Place) -> None:
    try:
        status = place.run.path.stat()
    except OSError as error:  # since it was seen
        found.skipped.append(Skipped(place.run.path, f"{place.run.path}: {error.strerror}"))
        return
    identity = (status.st_dev, status.st_ino)
    if identity not in seen:
        seen.add(identity)
        found.places.append(place)


def _below(folder: Path, skipped: list[Skipped]) -> Iterator[RunDir]:
    """Run directories below a folder, by name, links to others last.

    What cannot be listed is added to `skipped`.
    """
    left = [folder]
    links: list[RunDir] = []
    while left:
        here = left.pop()
        try:
            with os.scandir(here) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(here, f"{here} cannot be looked into: {error.strerror}"))
            continue
        is_run = any(entry.name == _RUN for entry in inside)
        if is_run:
            yield RunDir(here)
        deeper = []
        for entry in inside:
            # Hidden are what is half made, and what people and tools do not want looked at.
            if entry.name.startswith(".") or (is_run and entry.name in RunDir.FOLDERS):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    deeper.append(Path(entry.path))
                elif entry.is_symlink() and os.path.exists(os.path.join(entry.path, _RUN)):
                    links.append(RunDir(Path(entry.path)))
            except OSError as error:
                skipped.append(
                    Skipped(Path(entry.path), f"{entry.path} cannot be read: {error.strerror}")
                )
        left += reversed(deeper)
    yield from links

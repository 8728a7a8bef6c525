"""Makes the shards of a plan: several processes, each of them one shard after another.

A shard is written under the name X.part, and gets its own once it is whole on the disk; its
checksum follows, and says that it is finished. So whatever ends a command, the next goes on: what
is finished and has the bytes that its checksum says, stays.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sercli import signals
from sercli.data.archives.made import RECORD, is_finished
from sercli.data.class_names import CLASSES
from sercli.data.shards.arrow import write_splits, write_state
from sercli.data.shards.plan import Plan, write_record
from sercli.data.shards.processes import Task, in_processes
from sercli.data.shards.writing import Writer
from sercli.errors import RunFailed, UserError, from_os_error
from sercli.runs.files import require_writable, write_text
from sercli.runs.places import require_place

Progress = Callable[[str, int, int], object]
_LOCK = ".lock"
_LITTLE = 2**26  # bytes; to check fewer, starting processes would take longer
_FEW = 512  # images; likewise, to copy fewer
_SPARE = 1.02  # times what images take: headers, and sizes that a sample does not tell


@dataclass(frozen=True)
class Space:
    """What is to be written.

    Attributes:
        images: How many are to be copied.
        shards: Into how many shards.
        kept: Shards that are there already.
        bytes: About what they will take.
        free: Bytes of the disk that nothing takes.
    """

    images: int
    shards: int
    kept: int
    bytes: int
    free: int


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        space: What was to be.
        unreadable: Images that could not be read, and why, a line each.
    """

    space: Space
    unreadable: tuple[str, ...]


def make_shards(
    plan: Plan,
    progress: Progress,
    begins: Callable[[Space], object],
    *,
    processes: int | None = None,
    wait: bool = False,
) -> Made:
    """Make all shards that are not there.

    Args:
        plan: Which there are.
        progress: Told what is done, how much of it, and of how much.
        begins: Told what is to be written, before it is.
        processes: How many write (default: one for each core that this process may use).
        wait: Whether to wait for another process that makes the same; otherwise that is refused.

    Raises:
        UserError: The folder cannot be written, is being written, or its disk is too small.
        RunFailed: The disk is full, or a process was killed.
        Preempted, Interrupted: A signal came.
    """
    require_place(plan.out, "shards:")
    require_writable(plan.out)
    with locked(plan.out, wait=wait):
        if not (plan.out / RECORD).exists():
            write_record(plan)
        if plan.options.form == "wds" and plan.classes:
            write_text(plan.out / CLASSES, "".join(f"{name}\n" for name in plan.classes))
        missing = _missing(plan, progress, processes=processes)
        space = _space(plan, missing)
        begins(space)
        _require_space(plan, space)
        try:
            unreadable = _write(plan, missing, space, progress, processes=processes)
        except KeyboardInterrupt as error:
            ended = signals.as_stop(error, f"{plan.out} is not complete; the same command goes on")
            raise ended or error from error
        if plan.options.form == "arrow" and not (unreadable and not plan.options.skip_unreadable):
            for name, split in plan.splits.items():
                files = [Path(shard).name for shard in split.shards]
                write_state(plan.out / name, name, files, plan.classes, digest=split.digest)
            write_splits(plan.out, [*plan.splits])
        return Made(space, tuple(unreadable))


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Within it no other process that asks writes shards into a folder.

    Raises:
        UserError: One does, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK, "wb")  # noqa: SIM115  # why: held for as long as the block
    except OSError as error:
        raise from_os_error(error, f"cannot write {folder}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is being written by another process",
                "shards of a folder are made by one command",
                "wait until it has ended",
            ) from error
        except OSError:
            pass  # a file system without locks: two commands would be the user's to keep apart
        yield


# -- Steps ----------------------------------------------------------------------------------------


def _missing(plan: Plan, progress: Progress, *, processes: int | None) -> list[Task]:
    """Shards that are not there, or not as their checksums say."""
    every = [(name, n) for name, split in plan.splits.items() for n in range(len(split.shards))]
    there = {task for task in every if is_finished(_path(plan, task))}
    if there:
        what, every_one = f"checking shards in {plan.out}", len(there)
        progress(what, 0, every_one)
        checked = in_processes(
            Writer(plan).is_sound,
            sorted(there),
            processes=processes,
            few=plan.bytes < _LITTLE,
            tick=None,
        )
        for done, (task, sound) in enumerate(checked, start=1):
            progress(what, done, every_one)
            if not sound:
                there.discard(task)
    return [task for task in every if task not in there]


def _path(plan: Plan, task: Task) -> Path:
    split, number = task
    return plan.out / plan.splits[split].shards[number]


def _space(plan: Plan, missing: list[Task]) -> Space:
    images = sum(len(plan.splits[split].indices(number)) for split, number in missing)
    total = sum(len(split.source) for split in plan.splits.values())
    return Space(
        images=images,
        shards=len(missing),
        kept=plan.num_shards - len(missing),
        bytes=round(plan.bytes * images / max(1, total)),
        free=shutil.disk_usage(plan.out).free,
    )


def _require_space(plan: Plan, space: Space) -> None:
    if space.bytes * _SPARE > space.free:
        raise UserError(
            f"{plan.out}: about {in_words(space.bytes)} are to be written, and "
            f"{in_words(space.free)} are free",
            "a copy has to fit its disk",
            "free space, name another place, or make images smaller with `ser data shard --resize`",
        )


def _write(
    plan: Plan, missing: list[Task], space: Space, progress: Progress, *, processes: int | None
) -> list[str]:
    """Make shards; what could not be read, in the order of the shards."""
    if not missing:
        return []
    what = f"copying to {plan.out}"
    progress(what, 0, space.images)
    writer = Writer(plan)
    found: dict[Task, list[str]] = {}
    for task, unreadable in in_processes(
        writer.write,
        missing,
        processes=processes,
        few=space.images < _FEW,
        tick=lambda done: progress(what, min(done, space.images), space.images),
    ):
        found[task] = unreadable
    return [line for task in missing for line in found[task]]


def in_words(number: float) -> str:
    """Bytes as people say them: "1.3 GB"."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{number:,.0f} bytes"
        number /= 1000
    return f"{number:,.3g} TB" if number < 1000 else f"{number:,.0f} TB"


def unreadable_error(made: Made, name: str) -> RunFailed:
    """The error that images could not be read, and are not left out."""
    return RunFailed(
        f"{len(made.unreadable):,} of the images of {name} cannot be read; shards that hold them "
        "are not made; mend them and repeat the command, or leave them out with --skip-unreadable"
    )

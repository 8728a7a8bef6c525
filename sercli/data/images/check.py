"""Is a directory fit for use? Counts, sizes, pixel formats, and every file that cannot be read."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sercli import signals
from sercli.data.cores import cores
from sercli.data.images.decode import Header
from sercli.data.images.folder import ImageFolder, class_differences, class_names, split_folder
from sercli.data.images.listing import list_directory
from sercli.data.images.validation import FlatValidation, are_validation_images
from sercli.data.robustness.videos import UnreadableVideo
from sercli.data.source import UnreadableImage
from sercli.errors import RunFailed, UserError
from sercli.visible import counted

_CHUNK = 256  # files a task
_FEW = 2 * _CHUNK  # fewer are read here: starting processes would take longer

_RULE = "every image must be readable and every class filled in each split"

Progress = Callable[[str, int, int], object]
# What a report says under a name: a number, or numbers whose least, median and greatest are told.
Fact = int | NDArray[np.int64]


@dataclass(frozen=True)
class SplitReport:
    """What was found in one split, or in one of the robustness sets.

    Attributes:
        split: "train", "val", or the set's name.
        num_images: Files, readable or not.
        facts: What else there is to count in a set of its layout, by name.
        sizes: int32 [readable files, 2], width and height in pixels.
        modes: Files by stored pixel format, Pillow's names.
        problems: What is wrong, a line each, with the file that has it; none: all is well.
    """

    split: str
    num_images: int
    facts: Mapping[str, Fact]
    sizes: NDArray[np.int32]
    modes: Counter[str]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """What was found in a data set.

    Attributes:
        splits: Each of its splits.
        problems: Everything that is wrong with it, a line each.
        taken_as: What it was measured against; "" for an ordinary one.
        rule: What it must be to have no problems.
        notes: What is not wrong, but should be known, a line each.
    """

    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    taken_as: str = ""
    rule: str = _RULE
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How the files of a set are read for a check.

    Attributes:
        progress: Told what is read, the files read so far, and their number.
        decode: Whether all pixels are decoded; otherwise only the files' headers are read.
        processes: How many read (default: one for each core that this process may use).
    """

    progress: Progress
    decode: bool = True
    processes: int | None = None


class Readable(Protocol):
    """Files whose headers can be read; picklable."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def header(self, index: int, *, decode: bool) -> Header: ...


@dataclass(frozen=True)
class _Findings:
    sizes: NDArray[np.int32]
    modes: Counter[str]
    problems: list[tuple[int, str]]  # index in the split, and its line


def check(root: Path, reading: Reading, *, labelled: bool = True) -> CheckReport:
    """Check a data set and read every image of it.

    Args:
        root: A directory of class folders, or of train/ and val/.
        reading: How its files are read.
        labelled: Whether its folders are classes; otherwise all images below count.

    Returns:
        What was found. Problems do not raise, except those below.

    Raises:
        UserError: `root` is missing or a file.
        RunFailed: A reading process was killed (most likely for memory).
    """
    folders = {split: split_folder(root, split) for split in ("train", "val")}
    reports: list[SplitReport] = []
    problems: list[str] = []
    loose: dict[Path, int] = {}
    classes: dict[str, tuple[str, ...]] = {}
    # With splits, what stands beside them as well.
    passed = Counter[str]() if root in folders.values() else list_directory(root).passed_over
    if folders["train"] is None:
        problems.append(f"{root} has no train/ folder")
    for split, folder in folders.items():
        if folder is None:
            continue
        try:
            source = _opened(folder, split, labelled=labelled)
        except UserError as error:
            problems.append(str(error))
            continue
        facts = {}
        if labelled:
            facts = class_facts(source.labels, num_classes=len(source.classes))
            classes[split] = source.classes
            if isinstance(source, ImageFolder):
                loose[folder] = len(list_directory(folder).files)
        report = read_files(source, facts, reading, name=split)
        reports.append(report)
        problems.extend(report.problems)
        problems += [fault.said_below(str(folder)) for fault in source.faults if not fault.listed]
        passed += source.passed_over
    if labelled and folders["train"] is not None and folders["val"] is not None:
        train, val = (
            classes.get(split) or class_names(folder)
            for split, folder in folders.items()
            if folder is not None
        )
        problems.extend(class_differences(train, val))
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as="" if labelled else "images without labels",
        rule=_RULE if labelled else "every image must be readable",
        notes=(*_loose_notes(loose), *passed_over_notes(passed)),
    )


def _loose_notes(loose: Mapping[Path, int]) -> Iterator[str]:
    """On images that lie beside class folders, of which they are none."""
    for folder, number in loose.items():
        if number:
            yield (
                f"{counted(number, 'image')} beside the class folders of {folder} "
                f"{'is' if number == 1 else 'are'} left out (unlabelled:{folder} takes all, "
                "without labels)"
            )


def _opened(folder: Path, split: str, *, labelled: bool) -> ImageFolder | FlatValidation:
    if labelled and are_validation_images(folder):
        return FlatValidation(folder, name=str(folder), split=split)
    return ImageFolder(folder, split=split, labelled=labelled)


def passed_over_notes(passed: Mapping[str, int]) -> tuple[str, ...]:
    """One line on what was left out by its name, if anything was."""
    if not passed:
        return ()
    each = ", ".join(f"{number:,} {name}" for name, number in sorted(passed.items()))
    return (f"passed over, as no data: {each}",)


def class_facts(labels: NDArray[np.int64], *, num_classes: int) -> dict[str, Fact]:
    """How many classes there are, and images of each; labels int64 [N]."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    return {"classes": num_classes, "images per class": counts}


def read_files(
    source: Readable, facts: Mapping[str, Fact], reading: Reading, *, name: str
) -> SplitReport:
    """Read every file of a source, and report on them under a name, together with `facts`.

    Raises:
        RunFailed: A reading process was killed.
    """
    total, done = len(source), 0
    sizes = [np.zeros((0, 2), np.int32)]
    modes: Counter[str] = Counter()
    problems: list[tuple[int, str]] = []
    for found in _read_all(source, reading):
        sizes.append(found.sizes)
        modes += found.modes
        problems.extend(found.problems)
        done += len(found.sizes) + len(found.problems)
        reading.progress(name, done, total)
    return SplitReport(
        split=name,
        num_images=total,
        facts=facts,
        sizes=np.concatenate(sizes),
        modes=modes,
        problems=tuple(line for _, line in sorted(problems)),
    )


def _read(source: Readable, start: int, stop: int, *, decode: bool) -> _Findings:
    sizes: list[tuple[int, int]] = []
    modes: Counter[str] = Counter()
    problems: list[tuple[int, str]] = []
    for index in range(start, min(stop, len(source))):
        try:
            header = source.header(index, decode=decode)
        except (UnreadableImage, UnreadableVideo) as error:
            problems.append((index, str(error)))
        else:
            sizes.append((header.width, header.height))
            modes[header.mode] += 1
    return _Findings(np.array(sizes, np.int32).reshape(-1, 2), modes, problems)


# -- in several processes ----------------------------------------------------------------------

_source: Readable | None = None  # of a reading process: sent once, not with every task


def _start_reading(source: Readable) -> None:
    global _source
    _source = source
    signals.ignore()  # what one means is the parent's to say


def _read_task(start: int, decode: bool) -> _Findings:
    assert _source is not None
    return _read(_source, start, start + _CHUNK, decode=decode)


def _read_all(source: Readable, reading: Reading) -> Iterator[_Findings]:
    """Findings of all images, in chunks, in the order in which they are ready."""
    decode, processes = reading.decode, reading.processes or cores()
    starts = iter(range(0, len(source), _CHUNK))
    if processes == 1 or len(source) <= _FEW:
        for start in starts:
            yield _read(source, start, start + _CHUNK, decode=decode)
        return
    # Spawned, not forked: a progress bar has a thread, and forking a threaded process may hang.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_reading,
        initargs=(source,),
    )
    try:
        running: set[Future[_Findings]] = set()
        while True:
            wanted = 2 * processes - len(running)
            with signals.starting_processes("spawn"):
                new = {pool.submit(_read_task, start, decode) for start in islice(starts, wanted)}
            running |= new
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise RunFailed(
            f"checking {source.name}: a reading process was killed, most likely for lack of memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)

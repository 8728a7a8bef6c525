"""Everything of one run that fits a page: its recipe's own settings, results, files; no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sercli.errors import SerError
from sercli.families import resolve
from sercli.protocols import Protocol, contract_of
from sercli.protocols.contract import is_end
from sercli.recipe.listing import Difference, differences
from sercli.runs.facts import RunFacts
from sercli.runs.files import hash_of, verifies
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.survey.standing import Standing, files_of


@dataclass(frozen=True)
class Measured:
    """A number of a result, as its protocol's contract shows it by default.

    Attributes:
        result: Name of the result.
        metric: Name of the metric in it.
        heading: What a table's column is headed.
        value, low, high: In `unit`; None: undefined, or no interval is stored.
        unit: percent, score, ratio, duration or rate.
        images: How many were scored.
        partial: Not all of the set.
        created: When, UTC.
        protocol_id: By which rule.
    """

    result: str
    metric: str
    heading: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    images: int | None
    partial: bool
    created: str
    protocol_id: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, of the run or of one of its detectors.

    Attributes:
        path: The file.
        step: After which optimiser step it was taken.
        size: Bytes.
        state: "verifies", "damaged", "no hash", or "not read".
        milestone: Whether it stays (`train.keep_epochs`).
    """

    path: Path
    step: int
    size: int
    state: str
    milestone: bool


@dataclass(frozen=True)
class Details:
    """One run.

    Attributes:
        standing: How it stands.
        recipe_name: The recipe that it is of; None: it names none.
        differences: Settings in which it is not that recipe; None: the two cannot be compared.
        measured: Its results' default numbers.
        checkpoints: The oldest first.
        folders: Number of files and bytes of each folder in it, and of each file beside them.
        notes: What could not be read or compared, a line each.
    """

    standing: Standing
    recipe_name: str | None
    differences: tuple[Difference, ...] | None
    measured: tuple[Measured, ...]
    checkpoints: tuple[Checkpoint, ...]
    folders: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def details_of(standing: Standing, *, verify: bool = True) -> Details:
    """Everything of one run.

    Args:
        standing: How it stands.
        verify: Read the checkpoints, to say which are whole.
    """
    facts, notes = standing.facts, list[str]()
    name = facts.record.get("recipe_name")
    return Details(
        standing=standing,
        recipe_name=str(name) if name else None,
        differences=_own_settings(facts, notes),
        measured=tuple(_measured(facts.directory, notes)),
        checkpoints=tuple(_checkpoints(facts, verify=verify)),
        folders=_folders(facts.directory.path),
        notes=tuple(notes),
    )


def _own_settings(facts: RunFacts, notes: list[str]) -> tuple[Difference, ...] | None:
    """In what its recipe.yaml is not the recipe that it names."""
    name = facts.record.get("recipe_name")
    if not name or not facts.recipe:
        return None
    try:
        named = resolve(str(name), (), {}, tolerant=True)
        own = resolve(str(facts.directory.recipe), (), {}, tolerant=True)
    except (SerError, OSError) as error:
        notes.append(f"not compared with its recipe: {error}")
        return None
    return tuple(differences(named, own))


# -- Results --------------------------------------------------------------------------------------


def _measured(run: RunDir, notes: list[str]) -> Iterator[Measured]:
    results = []
    for file in sorted(run.results.glob("*.json")):
        try:
            results.append(Result.of_run(file))
        except SerError as error:
            notes.append(str(error))
    results.sort(key=lambda one: (_contract(one).place, one.name))
    for result in results:
        yield from headlines(result)


def headlines(result: Result) -> Iterator[Measured]:
    """The numbers of a result that tables show by default; of several blocks those of one."""
    protocol, variant = _contract(result), str(result.protocol.get("variant") or "")
    readings = [protocol.read(name, variant) for name in result.metrics if not is_end(name)]
    shown = [one for one in readings if one.quantity.default]
    blocks = {one.block for one in shown if one.block is not None}
    usual = protocol.default_block
    block = usual if usual in blocks else min(blocks, default=None)
    images = result.data.get("n")
    for one in shown:
        if one.block != block and one.block is not None:
            continue
        yield Measured(
            result=result.name,
            metric=one.metric,
            heading=protocol.title_of(one.heading, variant),
            value=result.metrics[one.metric],
            low=result.metrics.get(f"{one.metric}/low"),
            high=result.metrics.get(f"{one.metric}/high"),
            unit=one.quantity.unit,
            images=images if isinstance(images, int) else None,
            partial=bool(result.data.get("partial")),
            created=result.created,
            protocol_id=result.protocol_id,
        )


def _contract(result: Result) -> Protocol:
    return contract_of(str(result.protocol["name"]))


# -- Files ----------------------------------------------------------------------------------------


def _checkpoints(facts: RunFacts, *, verify: bool) -> Iterator[Checkpoint]:
    run: RunDir = facts.directory
    told: Any = facts.record.get("milestones") or ()
    for place, milestones in ((run, set(told)), *((one, set()) for one in run.detections())):
        for step in place.checkpoint_steps():
            path = place.checkpoint(step)
            try:
                size = path.stat().st_size
            except OSError:
                continue
            state = _state(path) if verify else "not read"
            yield Checkpoint(path, step, size, state, step in milestones)


def _state(path: Path) -> str:
    if not hash_of(path).is_file():
        return "no hash"
    return "verifies" if verifies(path) else "damaged"


def _folders(path: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for file, size in files_of(path):
        first, *rest = file.relative_to(path).parts
        name = f"{first}/" if rest else first
        found[name] = (found[name][0] + 1, found[name][1] + size)
    return dict(sorted(found.items()))

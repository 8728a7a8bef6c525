"""One of the paper's tables, of the runs that there are: which belong in it, and its columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sercli.data.registry import rendering_kind
from sercli.errors import UserError
from sercli.report.compare.columns import Spec, has_number
from sercli.report.compare.notes import listed
from sercli.report.compare.papers_tables import (
    ALL,
    COMPARED,
    CONTROLS,
    PAPERS_TABLES,
    TAPPED,
    PaperTable,
)
from sercli.report.compare.runs import Run, field_of

_NAMED = 4


class NothingToShow(UserError):
    """No run has a number for a table.

    Attributes:
        line: The table, and what would fill it.
    """

    def __init__(self, name: str, missing: Sequence[str]) -> None:
        lacks = "; ".join(missing) or "no run is of it"
        super().__init__(f"no number for the table {name}", f"it has {lacks}")
        self.line = f"{name}, of which no run has a number: {lacks}"


def table_named(name: str) -> PaperTable:
    """The paper's table of that name.

    Raises:
        UserError: There is none.
    """
    if name not in PAPERS_TABLES:
        known = ", ".join([*PAPERS_TABLES, ALL])
        raise UserError(f"--table {name}", f"the tables are {known}")
    return PAPERS_TABLES[name]


def belonging(runs: Sequence[Run], table: PaperTable) -> list[Run]:
    """The runs that are in a table, in their order; those without a recipe are in each."""
    varied = _varied(runs) if table.varied else frozenset()
    allowed = [
        run
        for run in runs
        if not run.recipe
        or (
            (not table.addons or run.addon in table.addons or _kind(run) in varied)
            and (table.controls or not is_control(run))
        )
    ]
    at_their_place = {_kind(run) for run in allowed if _is_placed(run, table)}
    return [run for run in allowed if _kind(run) not in at_their_place or _is_placed(run, table)]


def is_control(run: Run) -> bool:
    """Whether a run is there to explain others: λ = 0, a placebo, [CLS] joining elsewhere."""
    return any(tells(field_of(run, key)) for key, tells in CONTROLS.items())


def _kind(run: Run) -> tuple[str, str, str]:
    return run.name("method"), run.addon, run.views


def _varied(runs: Iterable[Run]) -> frozenset[tuple[str, str, str]]:
    """The add-ons that were run at several layers, by method and views."""
    layers: dict[tuple[str, str, str], set[int | None]] = {}
    for run in runs:
        layers.setdefault(_kind(run), set()).add(run.tapped_layer)
    return frozenset(kind for kind, of_kind in layers.items() if len(of_kind) > 1)


def _is_placed(run: Run, table: PaperTable) -> bool:
    return run.addon in table.layers and run.tapped_layer == table.layers[run.addon]


# -- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """A table's columns.

    Attributes:
        specs: Those that some run has a number for.
        missing: What the paper's table has besides, as "words (command)".
    """

    specs: Sequence[Spec]
    missing: Sequence[str]


def filled(
    table: PaperTable,
    specs: Sequence[Spec],
    runs: Sequence[Run],
    *,
    asked: int | None,
    block: int | None,
) -> Filled:
    """The columns of a table that these runs fill.

    Args:
        table: Which.
        specs: The catalogue of all that some run has.
        runs: In the table.
        asked: The block that a user named.
        block: The one that is compared; None: open, or there is none.
    """
    tapped = {run.tapped_layer for run in runs} - {None}
    slots = {TAPPED: tapped if asked is None else {asked}, COMPARED: {block} - {None}}
    own_world = any(_is_rendered(run) for run in runs)
    chosen: dict[str, Spec] = {}
    missing: dict[str, list[str]] = {}
    for wanted in table.columns:
        found = _fitting(specs, _patterns(wanted.pattern, slots))
        if not found:
            missing.setdefault(wanted.fill, []).append(wanted.words)
        if not found or own_world:
            found += _fitting(specs, wanted.beside)
        chosen.update({spec.column.key: spec for spec in found})
    lines = [f"{listed(words)} (`{fill}`)" for fill, words in missing.items()]
    return Filled(list(chosen.values()), lines)


def _patterns(pattern: str, slots: Mapping[str, Collection[int | None]]) -> list[str]:
    for slot, blocks in slots.items():
        if slot in pattern:
            return [pattern.replace(slot, f"{one:02d}") for one in sorted(filter(None, blocks))]
    return [pattern]


def _fitting(specs: Sequence[Spec], patterns: Iterable[str]) -> list[Spec]:
    return [one for pattern in patterns for one in specs if fits(one.column.key, pattern)]


def fits(key: str, pattern: str) -> bool:
    """Whether a key is of a pattern, whose wildcards stand for no slash."""
    parts, asked = key.split("/"), pattern.split("/")
    return len(parts) == len(asked) and all(map(fnmatchcase, parts, asked))


def _is_rendered(run: Run) -> bool:
    return any(
        rendering_kind(str(result.data.get("path"))) is not None for result in run.results.values()
    )


def without_numbers(runs: Sequence[Run], specs: Sequence[Spec]) -> list[Run]:
    """The runs of which nothing was measured for any of these columns."""
    told = [spec for spec in specs if spec.of_run is None or spec.of_run.measured]
    return [run for run in runs if not any(has_number(run, spec) for spec in told)]


def remarks_on(found: Filled, elsewhere: Sequence[Run], bare: Sequence[Run]) -> list[str]:
    """What a table lacks: columns of the paper's, and runs that are not in it.

    Args:
        found: Its columns.
        elsewhere: Runs that belong in others.
        bare: Runs that would be in it and have no number for it.
    """
    lines = []
    if found.missing:
        lines.append(
            f"The paper's table also has what no run here has: {'; '.join(found.missing)}."
        )
    if elsewhere:
        lines.append(f"Not of this table: {_named(elsewhere)}.")
    if bare:
        lines.append(f"Without a number for it: {_named(bare)}.")
    return lines


def _named(runs: Sequence[Run]) -> str:
    more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
    return ", ".join(run.path for run in runs[:_NAMED]) + more

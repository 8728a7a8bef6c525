"""What a grid comes to at its end: tables, the page, and the outcome in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli.errors import UserError
from sercli.grids.claims import LEVEL, Decided
from sercli.grids.jobs import Places
from sercli.grids.schema import Grid
from sercli.report.compare.comparison import Options, compare_read
from sercli.report.compare.differences import PairedTests
from sercli.report.compare.entries import grouped_entries, single_entries
from sercli.report.compare.named import NothingToShow
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES
from sercli.report.compare.runs import SEED, open_runs
from sercli.report.compare.tables import Table
from sercli.report.compare.values import OF_RUN
from sercli.report.formats.tidy import tidy_csv
from sercli.report.frame import tidy
from sercli.runs.files import write_json, write_text
from sercli.runs.run_dir import RunDir
from sercli.visible import visible

_FORMATS = {"markdown": "md", "latex": "tex"}  # beside the terminal's


def runs_there(grid: Grid, places: Places, *, foreign: Collection[Path] = ()) -> list[Path]:
    """The run directories of a grid that there are, in its order.

    Args:
        grid: With the runs.
        places: Where they are.
        foreign: Directories that hold something else.
    """
    paths = [places.run(run, seed) for run in grid.runs for seed in grid.seeds_of(run)]
    return [path for path in paths if path not in foreign and RunDir(path).run.is_file()]


@dataclass(frozen=True)
class Made:
    """A table that was written.

    Attributes:
        name: As `ser compare --table` has it.
        table: None: no run has a number for it.
        why: In this case, what would fill it.
    """

    name: str
    table: Table | None
    why: str = ""


def write_tables(grid: Grid, places: Places, runs: Sequence[Path]) -> Iterator[Made]:
    """Write the tables of a grid, a file for each and format, and all numbers as tidy CSV.

    What runs took has files of its own (the table of costs, `costs.csv`): no repetition gives it
    again, while all others are the same to the byte, however often the runs were stopped.

    Raises:
        UserError: A run cannot be read, or results do not fit together.
    """
    folder = places.out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    read = open_runs(runs)
    kinds: dict[str, Callable[[str, str], bool]] = {
        "results": lambda source, _metric: source != OF_RUN,
        "costs": lambda source, _metric: source == OF_RUN,
    }
    for name, wanted in kinds.items():
        write_text(folder / f"{name}.csv", tidy_csv(tidy(read, wanted=wanted)))
    grouped = len(grid.all_seeds) > 1
    tests = PairedTests()
    for name in _names(grid):
        try:
            table = compare_read(read, Options(table=name, group_seeds=grouped), tests=tests)
        except NothingToShow as nothing:
            yield Made(name, None, nothing.line)
            continue
        for form, suffix in _FORMATS.items():
            write_text(folder / f"{name}.{suffix}", table.render(form))
        yield Made(name, table)


def _names(grid: Grid) -> list[str]:
    asked = [PAPERS_TABLES if name == ALL else (name,) for name in grid.tables]
    return list(dict.fromkeys(name for names in asked for name in names))


def page_command(
    grid: Grid, places: Places, runs: Sequence[Path], outcome: Path | None
) -> tuple[str, ...]:
    """What `ser` is given for the page."""
    grouped = ("--group-seeds",) if len(grid.all_seeds) > 1 else ()
    claims = () if outcome is None else ("--outcome", str(outcome))
    page = str(places.out / "report.html")
    return ("report", *map(str, runs), *grouped, *claims, "--out", page)


def names_in_tables(
    grid: Grid, places: Places, decided: Sequence[Decided], runs: Sequence[Path]
) -> dict[str, str]:
    """What tables call the runs that claims compare, by their names in the grid.

    Args:
        grid: With the runs.
        places: Where they are.
        decided: The claims.
        runs: The directories that tables are made of.
    """
    read = open_runs(runs)
    try:
        grouped = len(grid.all_seeds) > 1
        entries = grouped_entries(read, [SEED]) if grouped else single_entries(read)
    except UserError:  # then there are no tables
        return {}
    rows = {run.path: entry.name for entry in entries for run in entry.runs}
    compared = (part.comparison for one in decided for part in one.compared)
    names = dict.fromkeys(name for one in compared for name in (one.of, one.other))
    found = {}
    for name in names:
        paths = (str(places.run(name, seed)) for seed in grid.seeds_of(name))
        row = next((rows[path] for path in paths if path in rows), None)
        if row is not None:
            found[name] = row
    return found


def in_words(decided: Sequence[Decided], names: Mapping[str, str] | None = None) -> list[str]:
    """A claim a line, its comparisons below it; and how they were decided.

    Args:
        decided: The claims.
        names: As `names_in_tables` has them.
    """
    lines = [
        line
        for one in decided
        for line in (one.headline, *(f"  {compared}" for compared in one.compared))
    ]
    return [*lines, _rule(decided, names)] if lines else []


def _rule(decided: Sequence[Decided], names: Mapping[str, str] | None) -> str:
    tested = sum(one.p_value is not None for one in decided)
    rows = "; ".join(f"{name} is {row}" for name, row in (names or {}).items())
    return (
        f"{f'In tables {rows}. ' if rows else ''}"
        "Tests: paired t over seeds; where there is one seed, McNemar's over images, or the "
        "jackknife's t for ratios of sums over them, which tell nothing of other seeds. Brackets: "
        "95 % intervals, not corrected. A claim is confirmed, or refuted, where its p, corrected "
        "by Holm over all claims that could be tested "
        f"({tested} of {len(decided)}), is below {LEVEL:g}; else it is open: these "
        "runs do not decide it."
    )


def write_outcome(
    places: Places, decided: Sequence[Decided], names: Mapping[str, str] | None = None
) -> list[Path]:
    """Write the outcome, for people and as data.

    Args:
        places: Where.
        decided: The claims.
        names: As `names_in_tables` has them.

    Returns:
        The files; none where there are no claims.
    """
    if not decided:
        return []
    rule = _rule(decided, names)
    page, data = places.out / "outcome.md", places.out / "outcome.json"
    sentences = (f"- {visible(str(one))}" for one in decided)
    lines = ["# Outcome", "", *sentences, "", visible(rule), ""]
    write_text(page, "\n".join(lines))
    write_json(data, {"claims": [one.to_json() for one in decided], "rule": rule})
    return [page, data]

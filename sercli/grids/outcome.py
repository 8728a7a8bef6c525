"""What a grid comes to at its end: tables, the page, and the outcome in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli.grids.claims import LEVEL, Decided
from sercli.grids.jobs import Places
from sercli.grids.schema import Grid
from sercli.report.compare.comparison import Options, compare_read
from sercli.report.compare.differences import PairedTests
from sercli.report.compare.named import NothingToShow
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES
from sercli.report.compare.runs import open_runs
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


def in_words(decided: Sequence[Decided]) -> list[str]:
    """A claim a line, its comparisons below it; and how they were decided."""
    lines = [
        line
        for one in decided
        for line in (one.headline, *(f"  {compared}" for compared in one.compared))
    ]
    return [*lines, _rule(decided)] if lines else []


def _rule(decided: Sequence[Decided]) -> str:
    tested = sum(one.p_value is not None for one in decided)
    return (
        "Tests: paired t over seeds; where there is one seed, McNemar's over images, or the "
        "jackknife's t for ratios of sums over them, which tell nothing of other seeds. Brackets: "
        "95 % intervals, not corrected. A claim is confirmed, or refuted, where its p, corrected "
        "by Holm over all claims that could be tested "
        f"({tested} of {len(decided)}), is below {LEVEL:g}; else it is open: these "
        "runs do not decide it."
    )


def write_outcome(places: Places, decided: Sequence[Decided]) -> list[Path]:
    """Write the outcome, for people and as data.

    Returns:
        The files; none where there are no claims.
    """
    if not decided:
        return []
    page, data = places.out / "outcome.md", places.out / "outcome.json"
    sentences = (f"- {visible(str(one))}" for one in decided)
    lines = ["# Outcome", "", *sentences, "", _rule(decided), ""]
    write_text(page, "\n".join(lines))
    write_json(data, {"claims": [one.to_json() for one in decided], "rule": _rule(decided)})
    return [page, data]

"""What a grid comes to at its end: tables, the page, and the outcome in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sercli.grids.claims import Decided
from sercli.grids.jobs import Places
from sercli.grids.schema import Grid
from sercli.runs.files import write_json, write_text
from sercli.runs.run_dir import RunDir
from sercli.visible import counted, visible

_FORMATS = {"markdown": "md", "latex": "tex"}  # beside the terminal's


def runs_there(grid: Grid, places: Places) -> list[Path]:
    """The run directories of a grid that there are, in its order."""
    paths = [places.run(run, seed) for run in grid.runs for seed in grid.seeds_of(run)]
    return [path for path in paths if RunDir(path).run.is_file()]


def commands(
    grid: Grid, places: Places, runs: Sequence[Path]
) -> Iterator[tuple[tuple[str, ...], bool]]:
    """What `ser` is given for the tables and the page, and whether a person is to see it."""
    paths = tuple(map(str, runs))
    grouped = ("--group-seeds",) if len(grid.all_seeds) > 1 else ()
    tables = places.out / "tables"
    for table in grid.tables:
        asked = ("compare", *paths, *grouped, "--table", table)
        yield asked, True
        for form, suffix in _FORMATS.items():
            yield (*asked, "--format", form, "--out", str(tables / f"{table}.{suffix}")), False
    whole = str(tables / "results.csv")
    yield ("compare", *paths, "--format", "tidy-csv", "--out", whole), False
    yield ("report", *paths, *grouped, "--out", str(places.out / "report.html")), False


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
        "Paired t tests over seeds (with one seed: McNemar's over images, which tell nothing of "
        "other seeds); brackets: 95 % intervals, not corrected; confirmed or refuted where the "
        f"claim's p, corrected by Holm over {counted(tested, 'tested claim')}, is below 0.05."
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
    write_json(data, {"claims": [one.to_json() for one in decided]})
    return [page, data]

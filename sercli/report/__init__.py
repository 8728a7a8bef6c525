"""What runs have measured, as tables and figures; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sercli.report.compare.tables import Table


def compare_runs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    table: str | None = None,
    baseline: str | os.PathLike[str] | None = None,
    block: int | None = None,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    group_by: Sequence[str] = (),
    sort: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    allow_mixed: bool = False,
    published: bool = False,
    group_seeds: bool = False,
) -> Table:
    """Compare run directories as `ser compare` does; `.render("markdown")` gives its text.

    Rows (`.rows`) hold a cell for each of the `.columns`, by its key; values are in the unit of
    the column: percent, scores in 0…1, seconds, images/s.

    Args:
        paths: Run directories, in any order; the rows come in the paper's order.
        table: One of the paper's tables, as `--table` of the command has them; None: what the runs
            have.
        baseline: Run directory that all others are compared with; None finds each its own.
        block: Block whose equivariance is shown; None is 3, or the only one there is.
        columns: Keys, beginnings of keys or wildcards (`["*/top1"]`); none is the default choice.
            A field of runs among them splits each column into one for every value.
        rows: Fields (`run`, `method`, `addon`, `layer`, `views`, `seed`, or keys of recipes such
            as `addon.weight`): runs that agree in them are one row, the mean over their seeds.
            `FIELD=VALUE` keeps runs with that value.
        group_by: Fields: one row for all runs that differ in these only, their mean with its 95 %
            interval (Student's t).
        sort: Keys of columns, best first, or fields; with `-` before it the other way round.
        labels: Texts for rows, by a run directory or its name, and for columns, by their key.
        allow_mixed: Give different protocols a column each instead of refusing.
        published: Add the paper's matching rows.
        group_seeds: The same as `group_by=["seed"]`.

    Raises:
        UserError: A path is no run directory, no run has a number, a column, table, field or
            block does not exist, or one column would mix protocols.
    """
    from sercli.report.compare import comparison

    options = comparison.Options(
        table=table,
        baseline=None if baseline is None else Path(baseline),
        block=block,
        columns=tuple(columns),
        rows=tuple(rows),
        group_by=tuple(group_by),
        sort=tuple(sort),
        labels=labels or {},
        allow_mixed=allow_mixed,
        published=published,
        group_seeds=group_seeds,
    )
    return comparison.compare_runs([Path(path) for path in paths], options)

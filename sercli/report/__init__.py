"""What runs have measured, as tables and figures; no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sercli.report.compare.tables import Table


def compare_runs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    baseline: str | os.PathLike[str] | None = None,
    block: int | None = None,
    columns: Sequence[str] = (),
    allow_mixed: bool = False,
    published: bool = False,
    group_seeds: bool = False,
) -> Table:
    """Compare run directories as `ser compare` does; `.render("markdown")` gives its text.

    Rows (`.rows`) hold a cell for each of the `.columns`, by its key; values are in the unit of
    the column: percent, scores in 0…1, seconds, images/s.

    Args:
        paths: Run directories, in any order; the rows come in the paper's order.
        baseline: Run directory that all others are compared with; None finds each its own.
        block: Block whose equivariance is shown; None is 3, or the only one there is.
        columns: Keys, beginnings of keys or wildcards (`["*/top1"]`); none is the default choice.
        allow_mixed: Give different protocols a column each instead of refusing.
        published: Add the paper's matching rows.
        group_seeds: One row for all seeds of a recipe, mean ± sample standard deviation.

    Raises:
        UserError: A path is no run directory, no run has a number, a column or block does not
            exist, or one column would mix protocols.
    """
    from sercli.report.compare import comparison

    options = comparison.Options(
        baseline=None if baseline is None else Path(baseline),
        block=block,
        columns=tuple(columns),
        allow_mixed=allow_mixed,
        published=published,
        group_seeds=group_seeds,
    )
    return comparison.compare_runs([Path(path) for path in paths], options)

"""What run directories hold, as pandas data frames: a row a number, and a row a logged step.

Importing this imports no pandas; whoever asks for a frame waits for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sercli.errors import UserError
from sercli.protocols import contract_of
from sercli.protocols.contract import ENDS
from sercli.report.compare.runs import Run, field_of, open_runs, without_collecting
from sercli.report.compare.values import OF_RUN, RUN_QUANTITIES, interval_of

if TYPE_CHECKING:
    import pandas as pd

_LARGEST = 2**63  # of int64, which a nullable whole number is
_PLACE = ("run", "step", "epoch")


_TEXT = ("run", "method", "addon", "views", "protocol", "variant", "metric", "protocol_id")
COLUMNS = (
    *("run", "method", "addon", "layer", "views", "seed", "protocol", "variant", "metric"),
    *("value", "low", "high", "n", "partial", "protocol_id"),
)
_DTYPES: Mapping[str, str] = {
    **dict.fromkeys(COLUMNS, "float64"),
    **dict.fromkeys(_TEXT, "text"),
    **dict.fromkeys(("layer", "seed", "n"), "Int64"),
    "partial": "boolean",
}


def results(*runs: str | os.PathLike[str], settings: Sequence[str] = ()) -> pd.DataFrame:
    """All numbers of run directories, tidy: a row a metric of a result, as evaluators wrote it.

    Columns, with their dtypes:

    - `run` (string): the directory, as given.
    - `method`, `addon`, `views` (string): as in recipes; `<NA>` where there is no recipe.
    - `layer`, `seed` (Int64): the block that the add-on taps; `<NA>` without one.
    - `protocol`, `variant`, `metric` (string): the variant is `<NA>` where there is none. Numbers
      of the run itself (`train_seconds`, `flops_ratio_none`, …) have the protocol `run`.
    - `value` (float64): in the metric's unit. NaN: measured, and found to be undefined. What was
      not measured has no row.
    - `low`, `high` (float64): 95 % interval over images, the stored one or Wilson's; NaN without.
    - `n` (Int64), `partial` (boolean): images scored, and whether the set has more.
    - `protocol_id` (string): values with different ones are not comparable.

    Args:
        runs: Run directories, and folders that are searched for them; each counts once. What cannot
            be read below a folder is a warning.
        settings: Keys of recipes, such as `addon.weight`: a column each, after the others.

    Raises:
        UserError: A path is no run directory, a file in it cannot be read, or a setting has the
            name of another column.
    """
    return tidy(open_runs([Path(run) for run in runs]), settings=settings)


def tidy(
    runs: Sequence[Run],
    *,
    settings: Sequence[str] = (),
    wanted: Callable[[str, str], bool] | None = None,
) -> pd.DataFrame:
    """The frame of `results`, of runs that were read.

    Args:
        runs: In the order of the rows.
        settings: Keys of recipes: a column each.
        wanted: Asked for the name of a result (or "run") and a metric; None: all.
    """
    import pandas as pd

    if clash := next((key for key in settings if key in COLUMNS), None):
        raise UserError(
            f"settings {clash!r}", f"the frame has {', '.join(COLUMNS)} anyway", "leave it out"
        )
    told = [[_plain(field_of(run, key)) for key in settings] for run in runs]
    with without_collecting():
        rows = [
            (*row, *own)
            for run, own in zip(runs, told, strict=True)
            for row in _rows(run, wanted or (lambda _name, _metric: True))
        ]
    dtypes = dict(_DTYPES)
    for place, key in enumerate(settings):
        dtypes[key] = _dtype([own[place] for own in told])
    values = list(zip(*rows, strict=True)) or [()] * len(dtypes)
    return pd.DataFrame(
        {name: _series(one, dtypes[name]) for name, one in zip(dtypes, values, strict=True)}
    )


def _rows(run: Run, wanted: Callable[[str, str], bool]) -> Iterator[tuple[Any, ...]]:
    """The rows of a run, in the order of `COLUMNS`."""
    addon = run.addon if run.recipe else None
    seed, layer = _whole(run.seed), _whole(run.tapped_layer)
    own = (run.path, run.name("method") or None, addon, layer, run.views or None, seed)
    for name, result in run.results.items():
        protocol, variant = contract_of(str(result.protocol["name"])), name.partition("--")[2]
        images, partial = _whole(result.data.get("n")), bool(result.data.get("partial"))
        of_result = (images, partial, result.protocol_id)
        metrics = result.metrics
        for metric, value in metrics.items():
            if metric.endswith(ENDS) and metric.rpartition("/")[0] in metrics:
                continue  # it stands beside another's value
            if not wanted(name, metric):
                continue
            low, high = interval_of(result, protocol.read(metric, variant))
            measured = (protocol.name, variant or None, metric, value, low, high)
            yield (*own, *measured, *of_result)
    for one in filter(lambda one: one.measured, RUN_QUANTITIES):
        metric = one.quantity.pattern
        if wanted(OF_RUN, metric) and (number := one.of(run)) is not None:
            yield (*own, OF_RUN, None, metric, number, None, None, None, None, None)


def curves(*runs: str | os.PathLike[str]) -> pd.DataFrame:
    """What run directories logged while training: a row a logged step.

    Columns are `run` (string), `step` (Int64), `epoch` (float64) and each quantity of
    metrics.jsonl, in the order in which they were first logged: float64, with NaN where a row
    lacks it or it was not finite; flags such as `skipped` are boolean, `<NA>` where a row lacks
    them.

    Args:
        runs: As of `results`. One without a logged step has no row.

    Raises:
        UserError: A path is no run directory, or a file in it cannot be read.
    """
    import pandas as pd

    rows = [
        {**row, "run": run.path}
        for run in open_runs([Path(run) for run in runs])
        for row in run.directory.read_metrics()
    ]
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _PLACE and (value is None or isinstance(value, bool | int | float)):
                kinds.setdefault(name, set()).add(type(value))
    columns = {
        "run": _series([row["run"] for row in rows], "text"),
        "step": _series([_whole(row["step"]) for row in rows], "Int64"),
        "epoch": _series([_number(row.get("epoch")) for row in rows], "float64"),
    }
    for name, found in kinds.items():
        if found <= {bool, type(None)} and bool in found:
            told = [value if isinstance(value := row.get(name), bool) else None for row in rows]
            columns[name] = _series(told, "boolean")
        else:
            columns[name] = _series([_number(row.get(name)) for row in rows], "float64")
    return pd.DataFrame(columns)


def _whole(value: object) -> int | None:
    """A whole number that int64 holds; None for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _LARGEST:
        return None
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def _plain(value: Any) -> Any:
    """A setting as a cell: what is nested as JSON."""
    return json.dumps(value, default=str) if isinstance(value, Mapping | list) else value


def _dtype(values: Sequence[Any]) -> str:
    """Of a setting's values: the narrowest that holds all of them."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return "boolean"
    if kinds <= {int} and all(value is None or abs(value) < _LARGEST for value in values):
        return "Int64"
    return "float64" if kinds <= {int, float} else "text"


def _series(values: Sequence[Any], dtype: str) -> pd.Series[Any]:
    import pandas as pd

    if dtype == "text":
        # Not Arrow's text: a path may hold bytes that are no UTF-8.
        plain = [None if value is None else str(value) for value in values]
        return pd.Series(plain, dtype=pd.StringDtype("python"))
    return pd.Series(values, dtype=dtype)

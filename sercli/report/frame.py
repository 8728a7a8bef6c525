"""What run directories hold, as pandas data frames: a row a number, and a row a logged step.

Importing this imports no pandas; whoever asks for a frame waits for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sercli.errors import UserError
from sercli.protocols import Reading, contract_of
from sercli.protocols.contract import ENDS
from sercli.report.compare.runs import Run, field_of, open_runs, without_collecting
from sercli.report.compare.values import OF_RUN, RUN_QUANTITIES, interval_of
from sercli.runs.result import Result

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
    with without_collecting():
        parts = [
            (run, part) for run in runs for part in _parts(run, wanted or (lambda _n, _m: True))
        ]
    settled = {run.path: [_plain(field_of(run, key)) for key in settings] for run in runs}
    counts = np.array([len(part.metrics) for _, part in parts], dtype=np.int64)
    place = np.repeat(np.arange(len(parts)), counts)
    columns: dict[str, pd.Series[Any]] = {}
    for name, told in _of_parts(parts).items():
        columns[name] = _series(told, _DTYPES[name]).take(place).reset_index(drop=True)
    columns["metric"] = _repeated([metric for _, part in parts for metric in part.metrics])
    for name in ("value", "low", "high"):
        columns[name] = _series(
            [one for _, part in parts for one in getattr(part, name)], "float64"
        )
    columns = {name: columns[name] for name in COLUMNS}
    for index, key in enumerate(settings):
        dtype = _dtype([own[index] for own in settled.values()])
        told = [settled[run.path][index] for run, _ in parts]
        columns[key] = _series(told, dtype).take(place).reset_index(drop=True)
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class _Part:
    """The rows of a result, or of a run itself: what is the same in all, and a column each.

    Attributes:
        protocol, variant, images, partial, protocol_id: As the frame's columns.
        metrics, value, low, high: Of each row.
    """

    protocol: str
    variant: str | None
    images: int | None
    partial: bool | None
    protocol_id: str | None
    metrics: Sequence[str]
    value: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


def _of_parts(parts: Sequence[tuple[Run, _Part]]) -> dict[str, list[Any]]:
    """The columns that are the same in all rows of a part, an entry a part."""
    return {
        "run": [run.path for run, _ in parts],
        "method": [run.name("method") or None for run, _ in parts],
        "addon": [run.addon if run.recipe else None for run, _ in parts],
        "layer": [_whole(run.tapped_layer) for run, _ in parts],
        "views": [run.views or None for run, _ in parts],
        "seed": [_whole(run.seed) for run, _ in parts],
        "protocol": [part.protocol for _, part in parts],
        "variant": [part.variant for _, part in parts],
        "n": [part.images for _, part in parts],
        "partial": [part.partial for _, part in parts],
        "protocol_id": [part.protocol_id for _, part in parts],
    }


def _repeated(texts: Sequence[str]) -> pd.Series[Any]:
    """A column of texts of which many are the same: each is made one of pandas' once."""
    codes: dict[str, int] = {}
    place = [codes.setdefault(text, len(codes)) for text in texts]
    return _series(list(codes), "text").take(place).reset_index(drop=True)


@dataclass(frozen=True)
class _Row:
    """A metric with an interval, and where its ends are."""

    reading: Reading
    low: str
    high: str

    @property
    def metric(self) -> str:
        return self.reading.metric


@lru_cache(maxsize=256)
def _rows(protocol: str, variant: str, metrics: tuple[str, ...]) -> tuple[_Row, ...]:
    """The rows of a result with these metrics, which thousands have: ends are no rows."""
    contract, there = contract_of(protocol), set(metrics)
    return tuple(
        _Row(contract.read(metric, variant), *(f"{metric}{end}" for end in ENDS))
        for metric in metrics
        if not (metric.endswith(ENDS) and metric.rpartition("/")[0] in there)
    )


def _parts(run: Run, wanted: Callable[[str, str], bool]) -> Iterator[_Part]:
    """What a run measured: a part a result, and one of its own numbers."""
    for name, result in run.results.items():
        protocol, variant = contract_of(str(result.protocol["name"])), name.partition("--")[2]
        rows = [
            row
            for row in _rows(str(result.protocol["name"]), variant, tuple(result.metrics))
            if wanted(name, row.metric)
        ]
        ends = [_ends(result, row) for row in rows]
        yield _Part(
            protocol=protocol.name,
            variant=variant or None,
            images=_whole(result.data.get("n")),
            partial=bool(result.data.get("partial")),
            protocol_id=result.protocol_id,
            metrics=[row.metric for row in rows],
            value=[result.metrics[row.metric] for row in rows],
            low=[low for low, _ in ends],
            high=[high for _, high in ends],
        )
    own = [
        (one.quantity.pattern, number)
        for one in RUN_QUANTITIES
        if one.measured
        and wanted(OF_RUN, one.quantity.pattern)
        and (number := one.of(run)) is not None
    ]
    none = [None] * len(own)
    names, values = [name for name, _ in own], [number for _, number in own]
    yield _Part(OF_RUN, None, None, None, None, names, values, none, none)


def _ends(result: Result, row: _Row) -> tuple[float | None, float | None]:
    """The interval of a metric: the stored one at once, any other as tables have it."""
    if row.reading.quantity.interval is None:
        return None, None
    low, high = result.metrics.get(row.low), result.metrics.get(row.high)
    if low is None or high is None:
        return interval_of(result, row.reading)
    return low, high


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

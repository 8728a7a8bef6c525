"""Runs that differ in their seed only: their numbers, row by row, from the tidy frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import Entry, Run
from sercli.report.frame import tidy

if TYPE_CHECKING:
    import pandas as pd


class Repeats:
    """The numbers of all runs of a table, by run and column."""

    def __init__(self, entries: Sequence[Entry], specs: Sequence[Spec]) -> None:
        wanted = {(spec.source, spec.metric) for spec in specs}
        frame = tidy(
            [run for entry in entries for run in entry.runs],
            wanted=lambda name, metric: (name, metric) in wanted,
        )
        rules = frame[["protocol", "variant", "metric", "protocol_id"]].fillna("")
        keys = [_key(*rule) for rule in rules.itertuples(index=False, name=None)]
        self._wide = frame.assign(key=keys).pivot(index="run", columns="key", values="value")

    def of(self, entry: Entry, spec: Spec) -> pd.Series[Any]:
        """The values of a row in a column, by what tells its runs apart: their seed."""
        import pandas as pd

        protocol, _, variant = spec.source.partition("--")
        key = _key(protocol, variant, spec.metric, spec.column.protocol_id or "")
        names = [entry.repeat_of(run) for run in entry.runs]
        if key not in self._wide:
            return pd.Series([], index=names[:0], dtype="float64")
        values = self._wide[key].reindex([run.path for run in entry.runs])
        found: pd.Series[Any] = values.set_axis(names).dropna()
        return found

    def shared(self, first: Entry, second: Entry, spec: Spec) -> pd.DataFrame:
        """The values of two rows with the same seeds: a row a seed, `first` and `second`."""
        import pandas as pd

        both = {"first": self.of(first, spec), "second": self.of(second, spec)}
        return pd.concat(both, axis="columns", join="inner")

    @staticmethod
    def runs_shared(first: Entry, second: Entry, repeats: Iterable[str]) -> list[tuple[Run, Run]]:
        """The runs of two rows with these seeds."""
        one, two = ({entry.repeat_of(run): run for run in entry.runs} for entry in (first, second))
        return [(one[name], two[name]) for name in repeats]


def _key(protocol: str, variant: str, metric: str, protocol_id: str) -> str:
    return f"{protocol}--{variant}/{metric}@{protocol_id}"

"""What a benchmark found: numbers with units, as cells for people, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sercli.statistics import CONFIDENCE, Ratio

Value = float | int | str | Ratio | None
Row = Mapping[str, Value]


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of texts.

    Attributes:
        key: What JSON calls it.
        heading: What people read.
        unit: Of the numbers in JSON: "s", "bytes", "FLOP", …; "" for counts, ratios and texts.
        form: How a number is shown (a format specification); None: a column of texts.
        per: What numbers are divided by to be shown: 1e-3 shows seconds as ms.
        printed: Whether tables for people have it; JSON does.
    """

    key: str
    heading: str
    unit: str = ""
    form: str | None = None
    per: float = 1.0
    printed: bool = True

    def cell(self, value: Value) -> str:
        """A value as text; what there is not is "-"."""
        if value is None:
            return "-"
        if isinstance(value, str):
            return value
        if isinstance(value, Ratio):
            middle = self._number(value.value)
            if value.interval is None or value.interval.low == value.interval.high:
                return middle  # too few rounds, or the reference itself
            low, high = self._number(value.interval.low), self._number(value.interval.high)
            held = value.interval.confidence
            other = "" if held == CONFIDENCE else f"; {100 * held:.0f} %"  # few rounds
            return f"{middle} [{low}, {high}{other}]"
        return self._number(value)

    def _number(self, value: float) -> str:
        return format(value if self.per == 1 else value / self.per, self.form or "")


@dataclass(frozen=True)
class Table:
    """One table of a benchmark.

    Attributes:
        benchmark: Its command: "loss" for `ser bench loss`.
        title: What was measured, on what.
        columns: In order.
        rows: The values of each row by the columns' keys; a missing one is None.
        notes: Lines below: what the columns mean, and what was not measured but derived.
    """

    benchmark: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def printed(self) -> list[Column]:
        """The columns that people see."""
        return [one for one in self.columns if one.printed]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as texts, of the columns that are printed."""
        return [[one.cell(row.get(one.key)) for one in self.printed] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Plain values: a ratio has its `value`, `low`, `high` and number of `rounds`."""
        return {
            "benchmark": self.benchmark,
            "title": self.title,
            "units": {one.key: one.unit for one in self.columns if one.unit},
            "rows": [
                {one.key: _plain(row.get(one.key)) for one in self.columns} for row in self.rows
            ],
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """The table below its title, and the notes."""
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in self.cells]
        rule = [":--" if one.form is None else "--:" for one in self.printed]
        lines = [[one.heading for one in self.printed], rule, *escaped]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"### {self.title}\n\n{table}\n{notes}\n"


def rows_of(columns: Sequence[Column], found: Sequence[object]) -> list[Row]:
    """Rows of what has an attribute for each column, by its key."""
    return [{one.key: getattr(row, one.key) for one in columns} for row in found]


def _plain(value: Value) -> Any:
    if not isinstance(value, Ratio):
        return value
    ends = value.interval
    return {
        "value": value.value,
        "low": None if ends is None else ends.low,
        "high": None if ends is None else ends.high,
        "confidence": None if ends is None else ends.confidence,
        "rounds": value.rounds,
    }

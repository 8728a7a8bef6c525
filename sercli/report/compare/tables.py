"""The table that `ser compare` builds once and every format renders: columns, rows, cells.

Nothing here knows where numbers come from; nothing in `formats` computes any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sercli.errors import UserError
from sercli.protocols.contract import Unit

Direction = Literal["up", "down", "none"]

ARROWS: dict[Direction, str] = {"up": "↑", "down": "↓", "none": ""}
PARTIAL = "†"
_DECIMALS: dict[Unit, int] = {
    "percent": 2,
    "score": 3,
    "ratio": 3,
    "duration": 0,
    "rate": 1,
    "count": 0,
    "memory": 2,
}
_PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}
_SPELLED_OUT = 10_000
_FLOOR_DECIMALS = 2


@dataclass(frozen=True)
class Column:
    """One quantity.

    Attributes:
        key: Stable name, `<result>/<metric>` or `run/<quantity>`.
        heading: What a reader sees, without the arrow.
        kind: Unit and precision: percent (2 decimals), score 0…1 (3), ratio (3), duration in
            seconds, rate in images/s (1), count (four digits and a prefix), memory in GiB (2).
        direction: Which way is better.
        explanation: One sentence on what was measured.
        ranked: Whether "best of the column" means something.
        protocol_id: Of the results in it; None for quantities of the run itself.
    """

    key: str
    heading: str
    kind: Unit
    direction: Direction = "none"
    explanation: str = ""
    ranked: bool = False
    protocol_id: str | None = None

    @property
    def title(self) -> str:
        """The heading with its arrow."""
        return f"{self.heading} {ARROWS[self.direction]}".rstrip()

    def text(self, value: float) -> str:
        """`value` at the printed precision of this column."""
        if self.kind == "duration":
            return duration(value)
        if self.kind == "count":
            return _count(value)
        if self.kind == "memory":
            return f"{value:.2f} GiB"
        return f"{value:.{_DECIMALS[self.kind]}f}"

    def signed(self, value: float) -> str:
        """A difference at the printed precision, with its sign; never a negative zero."""
        decimals = _DECIMALS[self.kind]
        return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def _count(value: float) -> str:
    """A count as people read it: 12, 747.3 k, 25.86 G."""
    for size, prefix in _PREFIXES.items():
        if abs(value) >= max(size, _SPELLED_OUT):
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g}" if value % 1 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time as people read it: 98 s, 12.5 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Difference:
    """A cell's distance to the baseline, in the cell's unit.

    Attributes:
        value: This minus the baseline.
        low, high: 95 % interval: Tango's over images, where predictions of both exist, or
            Student's t over seeds that both rows have.
        p_value: Of the same pair: McNemar's mid-p test across images, or paired t test over seeds.
        adjusted_p: After Holm's correction over all paired tests of the table.
        images: Images in the pair, of a test across images.
        discordant: Of these, images that only one of the two has right.
        seeds: Seeds in the pair, of one over seeds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    images: int | None = None
    discordant: int | None = None
    seeds: int | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p < 0.05


@dataclass(frozen=True)
class Scored:
    """The images a number was measured on.

    Attributes:
        path: Data set, as the evaluator was given it.
        images: Their number, where the evaluator says; of several runs, where it is the same.
        partial: Fewer than the set has.
        other: What else the evaluator says of them, such as "split val".
        mixed: It is of several runs, which scored different numbers of images.
    """

    path: str
    images: int | None
    partial: bool = False
    other: str = ""
    mixed: bool = False

    def __str__(self) -> str:
        number = "n differs" if self.mixed else f"n = {self.images}"
        return f"{self.path}{f', {self.other}' if self.other else ''} ({number})"


@dataclass(frozen=True)
class Cell:
    """One measured (or published) number; `Cell()` is "not measured".

    Attributes:
        value: None where not measured, undefined, or only a difference is known.
        undefined: The evaluator measured and found the quantity undefined.
        low, high: 95 % interval: over images, or Student's t over the runs that are averaged.
        std: Sample standard deviation over these runs.
        seeds: Runs averaged, where they are fewer than the row has.
        averaged: Runs averaged; None: one run's number, and its interval is over images.
        floor: The same score of a randomly initialised twin.
        difference: How far it is from the baseline's number; None: not compared.
        marks: Footnote marks, in order.
        data: What it was measured on, to tell what may be ranked or subtracted.
        weights: Which of a run's weights were scored, for instance student.
        loaded: "150 of 152", where tensors of the encoder were missing.
        warnings: What the evaluator warned of.
        precision: "fp32" or "bf16", in which the encoder ran; None: an earlier version's result.
        best: Best of its column.
    """

    value: float | None = None
    undefined: bool = False
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int | None = None
    averaged: int | None = None
    floor: float | None = None
    difference: Difference | None = None
    marks: tuple[str, ...] = ()
    data: Scored | None = None
    weights: str | None = None
    loaded: str | None = None
    warnings: tuple[str, ...] = ()
    precision: str | None = None
    best: bool = False

    @property
    def partial(self) -> bool:
        return self.data is not None and self.data.partial


_EMPTY = Cell()


@dataclass(frozen=True)
class Row:
    """One run, one group of seeds, or one published row."""

    label: str
    views: str
    cells: Mapping[str, Cell]
    published: bool = False
    baseline: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def cell(self, column: Column) -> Cell:
        return self.cells.get(column.key, _EMPTY)


@dataclass(frozen=True)
class Note:
    """A line under the table; `mark` ties it to cells or headings, None is for all."""

    mark: str | None
    text: str


@dataclass(frozen=True)
class Table:
    """Everything a format needs.

    Attributes:
        comparisons: The paired tests, one sentence each.
        provenance: ser's version and one entry a run directory.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[Note]
    comparisons: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def render(self, form: str = "terminal") -> str:
        """The table as text, as `ser compare --format` writes it.

        Args:
            form: terminal (100 columns, no colours), markdown, latex, csv, html or json.

        Raises:
            UserError: There is no such format.
        """
        # Formats lay out tables; a table knows of them only here.
        from sercli.report.formats.renderers import RENDERERS

        if form not in RENDERERS:
            raise UserError(f"format {form!r}", f"known: {', '.join(RENDERERS)}")
        return RENDERERS[form](self)

    def with_texts(self, change: Callable[[str], str]) -> Table:
        """The table with every text that may come from outside changed, for a format to show.

        Keys of columns stay: cells are found by them; and so does provenance, which is for
        machines.
        """
        return replace(
            self,
            title=change(self.title),
            columns=[
                replace(one, heading=change(one.heading), explanation=change(one.explanation))
                for one in self.columns
            ],
            rows=[
                replace(
                    row,
                    label=change(row.label),
                    views=change(row.views),
                    baseline=None if row.baseline is None else change(row.baseline),
                )
                for row in self.rows
            ],
            notes=[replace(note, text=change(note.text)) for note in self.notes],
            comparisons=[change(sentence) for sentence in self.comparisons],
        )

    @property
    def has_views(self) -> bool:
        return any(row.views for row in self.rows)

    @property
    def has_best(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells.values())


@dataclass(frozen=True)
class CellText:
    """A cell as text, in the parts that a format arranges.

    Attributes:
        value: "31.20", "undefined", "—", or empty when only a difference is known.
        spread: "± 1.40" or empty.
        seeds: "(n=2)" or empty.
        difference: "+0.84" or empty.
        star: The difference is significant.
        floor: "0.61" or empty.
        marks: Footnote marks.
    """

    value: str
    spread: str = ""
    seeds: str = ""
    difference: str = ""
    star: bool = False
    floor: str = ""
    marks: tuple[str, ...] = ()
    best: bool = False


def cell_text(column: Column, cell: Cell) -> CellText:
    """The printed parts of a cell."""
    change = cell.difference
    difference = column.signed(change.value) if change is not None else ""
    if cell.value is None:
        missing = "undefined" if cell.undefined else "" if difference else "—"
        return CellText(missing, difference=difference, marks=cell.marks)
    spread = ""
    if cell.low is not None and cell.high is not None:
        spread = f"± {column.text((cell.high - cell.low) / 2)}"
    return CellText(
        value=column.text(cell.value),
        spread=spread,
        seeds=f"(n={cell.seeds})" if cell.seeds is not None else "",
        difference=difference,
        star=change is not None and change.significant,
        floor=f"{cell.floor:.{_FLOOR_DECIMALS}f}" if cell.floor is not None else "",
        marks=cell.marks,
        best=cell.best,
    )


def best_labels(column: Column, rows: Sequence[Row]) -> set[int]:
    """Positions of the rows that hold the best value of a column.

    Only own, fully measured values on equally many images compete (partial ones compete where
    all are partial); fewer than two competitors have no best. Values equal at the printed
    precision share it.
    """
    if not column.ranked or column.direction == "none":
        return set()
    cells = {
        index: cell
        for index, row in enumerate(rows)
        if not row.published and (cell := row.cell(column)).value is not None
        if not (cell.data and cell.data.mixed)
    }
    whole = {index: cell for index, cell in cells.items() if not cell.partial}
    rivals = whole or cells
    counts = {cell.data.images for cell in rivals.values() if cell.data}
    if len(rivals) < 2 or len(counts) > 1:
        return set()
    values = {index: cell.value for index, cell in rivals.items() if cell.value is not None}
    best = max(values.values()) if column.direction == "up" else min(values.values())
    return {index for index, value in values.items() if column.text(value) == column.text(best)}

"""The lines under a comparison: how to read it, and what its numbers stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median_high

from sercli.data.registry import rendering_kind
from sercli.protocols import PROTOCOLS
from sercli.report.compare import published as paper
from sercli.report.compare.baselines import Pair
from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import SEED, Entry, Run
from sercli.report.compare.tables import PARTIAL, Cell, Column, Note, Row, Table
from sercli.statistics import smallest_difference
from sercli.visible import counted

_PLURALS = {SEED: "seeds", "layer": "layers", "method": "methods", "addon": "add-ons"}
_MANY = 6  # columns; more are hard to read
_ALIKE = 100  # pairs; of more no one share of discordant images tells anything


def reading_notes(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    entries: Sequence[Entry],
    comparisons: Sequence[str],
) -> list[Note]:
    """How to read a cell: intervals over images or seeds, differences, stars."""
    own = [cell for row in rows if not row.published for cell in row.cells.values()]
    texts = list(_interval_texts(own, entries))
    changes = [cell.difference for cell in own if cell.difference]
    if changes:
        bases = list(dict.fromkeys(entries[pair.baseline].name for pair in pairs))
        texts.append(
            f"Signed numbers are differences to the baseline, {bases[0]}."
            if len(bases) == 1
            else "Signed numbers are differences to the run without add-on of the same method, "
            "views, data, model and seed."
        )
    tests = {
        "paired t test over the seeds that both rows have": any(one.seeds for one in changes),
        "McNemar's mid-p test on the images that both runs scored": any(
            one.images and one.discordant is not None for one in changes
        ),
        "Student's t test of the jackknife over the images that both runs scored": any(
            one.images and one.discordant is None for one in changes
        ),
    }
    if comparisons:
        many = len(comparisons) > 1
        correction = (
            f" after Holm's correction for the {len(comparisons)} paired tests of the table"
        )
        made = ", or ".join(name for name, any_made in tests.items() if any_made)
        texts.append(
            f"* the difference is significant: {made}, p < 0.05{correction if many else ''}."
        )
    return [Note(None, text) for text in texts]


def _interval_texts(cells: Sequence[Cell], entries: Sequence[Entry]) -> Iterator[str]:
    """What ± is, which depends on whether rows are means."""
    averaged = {entry.over for entry in entries} - {()}
    if not averaged:
        if any(cell.low is not None for cell in cells):
            yield (
                "± is half the width of the 95 % interval over images (the evaluator's, or "
                "Wilson's where it stored none); low and high are in the csv and json formats."
            )
        return
    (over,) = averaged
    what = " and ".join(_PLURALS.get(name, name) for name in over)
    one = " A row of one has no interval." if any(len(e.runs) == 1 for e in entries) else ""
    yield (
        f"Values are means over {what}, ± half the width of their 95 % interval (Student's t over "
        f"the runs of a row); csv and json have its ends and the sample standard deviation.{one}"
    )


def power_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[Note]:
    """Which difference the paired test across images can find, in the first column that has one.

    Pairs differ in their share of discordant images, on which it depends: the median pair's counts.
    """
    for column in columns:
        changes = [row.cell(column).difference for row in rows if not row.published]
        pairs = [
            (change.discordant / change.images, change.images)
            for change in changes
            if change and change.images and change.discordant is not None
        ]
        if pairs:
            return _power_note(column, pairs) if len(pairs) <= _ALIKE else []
    return []


def _power_note(column: Column, pairs: Sequence[tuple[float, int]]) -> list[Note]:
    """The note of one column; none where no image is discordant, so that nothing is to be found."""
    share, images = median_high(pairs)
    if not share:
        return []
    smallest = smallest_difference(discordant=share, images=images)
    found = "no difference" if smallest is None else f"a difference of {100 * smallest:.2f} points"
    middle = f", the median of {len(pairs)} pairs" if len(pairs) > 1 else ""
    text = (
        f"{column.heading}: with {counted(images, 'image')} and {100 * share:.2g} % discordant "
        f"(right in one of two runs only{middle}) {found} is found with 80 % power "
        "(McNemar's mid-p test, p < 0.05 before any correction)."
    )
    return [Note(None, text)]


def untested_notes(specs: Sequence[Spec], pairs: int) -> list[Note]:
    """Which columns have no test, as too many runs would have to be read for it."""
    columns = [spec.column.heading for spec in specs if spec.quantity.per_image is not None]
    if not columns:
        return []
    text = (
        f"{', '.join(columns)}: not tested across images, as {pairs} pairs of runs have some MB of "
        "sums each; --baseline RUN reads them."
    )
    return [Note(None, text)]


def width_notes(columns: Sequence[Column]) -> list[Note]:
    """How to have fewer columns, where they are many."""
    if len(columns) <= _MANY:
        return []
    text = f"{len(columns)} columns: --columns KEY,... shows fewer, such as --columns "
    return [Note(None, f"{text}{','.join(column.key for column in columns[:2])}.")]


def with_notes_once(tables: Mapping[str, Table]) -> list[Table]:
    """Tables that are shown together: what stands under several of them stands under the last.

    Notes of marked cells stay where the marks are.

    Args:
        tables: By what a note calls them, in their order.
    """
    under: dict[str, list[str]] = {}
    for name, table in tables.items():
        for text in dict.fromkeys(note.text for note in table.notes if note.mark is None):
            under.setdefault(text, []).append(name)
    shared = {text: names for text, names in under.items() if len(names) > 1}
    shown = [
        replace(table, notes=[one for one in table.notes if one.mark or one.text not in shared])
        for table in tables.values()
    ]
    if shared:
        notes = [
            Note(None, f"{'All tables' if len(names) == len(tables) else listed(names)}: {text}")
            for text, names in shared.items()
        ]
        shown[-1] = replace(shown[-1], notes=[*shown[-1].notes, *notes])
    return shown


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "main", "main and cost", "main, transfer and cost"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def changed_notes(entries: Sequence[Entry]) -> list[Note]:
    """Which runs are no longer what their recipe says."""
    return [
        Note(
            None,
            f"{run.path} was gone on with as another run (--allow-changed): "
            f"{'. '.join(run.changes)}. Its numbers are of both.",
        )
        for entry in entries
        for run in entry.runs
        if run.changes
    ]


def precision_notes(rows: Sequence[Row], specs: Sequence[Spec]) -> list[Note]:
    """Which results are of an encoder in bf16 in all rows; where rows differ, cells have marks."""
    halves = {
        spec.source: None
        for spec in specs
        if {cell.precision for row in rows if (cell := row.cell(spec.column)).precision} == {"bf16"}
    }
    return [Note(None, f"The encoder ran in bf16: {', '.join(halves)}.")] if halves else []


def data_notes(specs: Sequence[Spec], runs: Sequence[Run]) -> list[Note]:
    """Which images the shown results are of."""
    sources: dict[str, dict[str, None]] = {}
    for spec in specs:
        for run in runs:
            if spec.source in run.results:
                path = str(run.results[spec.source].data.get("path"))
                sources.setdefault(path, {})[spec.source] = None
    kinds = {path: rendering_kind(path) for path in sources}
    shown = [
        f"{', '.join(names)} on {path}{f' ({kind.title})' if (kind := kinds[path]) else ''}"
        for path, names in sources.items()
    ]
    return [Note(None, f"Scored: {'; '.join(shown)}.")] if shown else []


def context_notes(
    rows: Sequence[Row],
    specs: Sequence[Spec],
    runs: Sequence[Run],
    *,
    open_block: bool,
    published: bool,
) -> list[Note]:
    """What the numbers stand on: partial data, floors, devices, the paper.

    Args:
        rows: With their cells.
        specs: The columns of the table and where their numbers come from.
        runs: All that are compared.
        open_block: Columns of blocks are left out where there are several to choose from.
        published: Rows of the paper were asked for.
    """
    cells = [cell for row in rows for cell in row.cells.values()]
    notes = []
    if any(cell.floor is not None for cell in cells):
        notes.append(
            "floor: the score of a randomly initialised twin; what counts is the rise above it."
        )
    examples = [one.undefined_if for one in PROTOCOLS.values() if one.undefined_if]
    if any(cell.undefined for cell in cells):
        notes.append(
            f"undefined: the evaluator found no value, for instance {' or '.join(examples)}."
        )
    if open_block:
        notes += [
            f"{title.capitalize()} was scored after several blocks; choose one with --block."
            for title in _titles_with_blocks(runs)
        ]
    notes += dict.fromkeys(
        spec.protocol.untested
        for spec in specs
        if spec.protocol is not None
        and spec.protocol.untested
        and any(
            (change := row.cell(spec.column).difference) and change.p_value is None for row in rows
        )
    )
    devices = {str(run.record["device"]) for run in runs if run.record.get("device")}
    if len(devices) > 1 and "run/train_seconds" in rows[0].cells:
        notes.append(f"Times and rates come from different devices: {', '.join(sorted(devices))}.")
    if any(row.published for row in rows):
        notes.append(
            f"[published] rows are the paper's ({paper.PAPER}): for orientation, not comparable "
            "with runs on other data, never ranked"
            f"{'' if all(row.views for row in rows if row.published) else _NO_VIEWS}."
        )
    elif published:
        notes.append("No published number belongs to these runs and columns.")
    partial = any(PARTIAL in cell.marks for cell in cells)
    return [
        *(Note(None, text) for text in notes),
        *([Note(PARTIAL, _PARTIAL_TEXT)] if partial else []),
    ]


def _titles_with_blocks(runs: Sequence[Run]) -> list[str]:
    """What the runs scored block by block."""
    names = {result.protocol["name"] for run in runs for result in run.results.values()}
    return [one.title for one in PROTOCOLS.values() if one.has_blocks and one.name in names]


_NO_VIEWS = "; empty views were not stated"
_PARTIAL_TEXT = (
    "Partial result: not all images of the set were scored (--limit or --allow-partial); not "
    "comparable with a whole one."
)

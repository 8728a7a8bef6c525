"""The lines under a comparison: how to read it, and what its numbers stand on."""

from __future__ import annotations

from collections.abc import Sequence

from sercli.data.registry import rendering_kind
from sercli.protocols import PROTOCOLS
from sercli.report.compare import published as paper
from sercli.report.compare.cells import Pair
from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import Entry, Run
from sercli.report.compare.tables import PARTIAL, Note, Row


def reading_notes(
    rows: Sequence[Row], pairs: Sequence[Pair], entries: Sequence[Entry], num_tests: int
) -> list[Note]:
    """How to read a cell: intervals, spreads, differences, stars."""
    cells = [cell for row in rows for cell in row.cells.values()]
    texts = []
    if any(cell.low is not None and cell.std is None for cell in cells):
        texts.append(
            "± is half the width of the 95 % interval over images (the evaluator's, or Wilson's "
            "where it stored none); low and high are in the csv and json formats."
        )
    if any(cell.std is not None for cell in cells):
        texts = [
            "Rows that name a number of seeds are mean ± sample standard deviation over seeds; "
            "in other rows ± is half the width of the 95 % interval over images. Grouped rows "
            "have no paired test."
        ]
    own = [row.cells.values() for row in rows if not row.published]
    if any(cell.difference for group in own for cell in group):
        bases = list(dict.fromkeys(entries[pair.baseline].name for pair in pairs))
        texts.append(
            f"Signed numbers are differences to the baseline, {bases[0]}."
            if len(bases) == 1
            else "Signed numbers are differences to the run without add-on of the same method, "
            "views, data, model and seed."
        )
    if num_tests:
        correction = f" after Holm's correction for the {num_tests} paired tests below"
        texts.append(
            "* the difference is significant: exact McNemar test on the images that both runs "
            f"scored, p < 0.05{correction if num_tests > 1 else ''}; with the bootstrap 95 % "
            "interval over images below."
        )
    return [Note(None, text) for text in texts]


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
        and any(row.cell(spec.column).difference for row in rows)
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

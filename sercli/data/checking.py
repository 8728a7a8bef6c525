"""Checking a data set: what kind it is taken as, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from sercli.data.images.check import CheckReport, Reading
from sercli.data.registry import DataKind, find_kind, kind_of, kinds
from sercli.errors import UserError
from sercli.runs.places import require_place

_FEW_LAYOUTS = 2


def check_data(
    path: Path,
    reading: Reading,
    *,
    layout: str | None = None,
    classes_of: Path | None = None,
) -> CheckReport:
    """Check a data set of any kind and read every image of it.

    Args:
        path: Directory of the data set; its kind is told by what is there.
        reading: How its files are read.
        layout: One of a kind's `layouts`; None: told by what is there.
        classes_of: A data set whose classes a robustness set must have; None: see `check_set`.

    Returns:
        What was found. Problems do not raise, except those below.

    Raises:
        UserError: `path` is missing or a file or rendered, `layout` is unknown, or `classes_of` is
            given for a kind that is not measured against other classes.
        RunFailed: A reading process was killed (most likely for memory).
    """
    kind = _checked_as(path, layout)
    if classes_of is not None and not kind.measured_against_classes:
        raise UserError(
            f"--classes {classes_of} for {path}, {kind.title}",
            "only robustness sets are measured against other classes",
            "leave it out, or name the --layout",
        )
    return kind.check(path, reading, layout=layout, classes_of=classes_of)


def _checked_as(path: Path, layout: str | None) -> DataKind:
    """The kind of a layout, or of what is there; a directory hides what is rendered by its name."""
    if layout is None and (kind := find_kind(str(path))) is not None and kind.asked_first:
        return kind
    require_place(path, "data")
    there = path.exists()
    for kind in kinds():
        if layout in kind.layouts:
            return kind
        if layout is None and not (there and kind.rendered) and kind.recognises(str(path)):
            return kind
    if layout is None:
        return kind_of(str(path))
    raise UserError(f"layout {layout}", f"it must be {_known_layouts()}")


def _known_layouts() -> str:
    """E.g. "folder, coco or one of imagenet-r, imagenet-a": kinds of few layouts go first."""
    several = [kind.layouts for kind in kinds() if len(kind.layouts) > _FEW_LAYOUTS]
    few = [one for kind in reversed(kinds()) for one in kind.layouts if kind.layouts not in several]
    return " or one of ".join([", ".join(few), *map(", ".join, several)])

"""Is a set of images and masks fit for use? Every pair of them, its sizes, and the indices."""

from __future__ import annotations

from pathlib import Path

from sercli.data.images.check import CheckReport, Fact, Reading, SplitReport, read_files
from sercli.data.images.folder import require_directory
from sercli.data.masks.folder import MaskFiles
from sercli.data.masks.layouts import LAYOUTS, require_layout


def check_masks(root: Path, reading: Reading, *, layout: str | None = None) -> CheckReport:
    """Read every image of both splits, and its mask.

    Args:
        root: The directory.
        reading: How its files are read; without decoding, indices are not looked at.
        layout: A name in `LAYOUTS`; None: told by what is there.

    Returns:
        What was found. What is missing is a problem, and left out of what is read.

    Raises:
        UserError: `root` is missing, a file, in no layout, or its list of classes is damaged.
        RunFailed: A reading process was killed.
    """
    require_directory(root)
    chosen = require_layout(root) if layout is None else LAYOUTS[layout]
    reports: list[SplitReport] = []
    problems: list[str] = []
    facts: dict[str, Fact] = {"classes": len(chosen.classes(root))}
    for split in ("train", "val"):
        files, missing = MaskFiles.of(root, chosen, split)
        problems += missing
        report = read_files(files, facts, reading, name=split)
        reports.append(report)
        problems += report.problems
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as=chosen.title,
        rule="every image must have a mask of its size, with indices of its classes",
    )

"""ImageNet-R, -A, -Sketch, -V2, -C and -P, which are measured against what was published.

`ser robustness` opens them by its own rules, for the classes of a head (`data/robustness/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sercli.data.images.check import CheckReport, Reading
from sercli.data.kinds.class_folders import ClassFolders
from sercli.data.registry import register
from sercli.data.robustness.check import LAYOUTS, check_set, recognise


@register
class RobustnessSet(ClassFolders):
    """A folder that is or holds one of the published sets."""

    name = "robustness set"
    title = "a robustness set"
    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    only_checked = True
    asked_last = False
    measured_against_classes = True

    def recognises(self, path: str) -> bool:
        return Path(path).is_dir() and recognise(Path(path)) is not None

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        layout = layout or recognise(path)
        assert layout is not None  # or it would not have been recognised
        return check_set(path, layout, reading, classes_of=classes_of)

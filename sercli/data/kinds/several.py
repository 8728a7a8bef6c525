"""Several sets as one: `--data A --data B`, or `data.path: [A, B]` of a recipe."""

from __future__ import annotations

import os
from pathlib import Path

from sercli.data.checking import check_data
from sercli.data.images.check import CheckReport, Reading, SplitReport
from sercli.data.images.folder import class_differences
from sercli.data.images.splits import split_told
from sercli.data.registry import SPLITS, DataKind, kind_of, register
from sercli.data.several import called_by, classes_of, require_alike, several
from sercli.data.source import ImageSource
from sercli.errors import UserError
from sercli.runs.places import parted


@register
class SeveralSets(DataKind):
    """Sets of any kinds whose images are in files; files by their names where these tell splits."""

    name = "several"
    title = "several sets"
    given_as = ""
    asked_first = True

    def recognises(self, path: str) -> bool:
        return len(parted(path)) > 1

    def has_split(self, path: str, split: str) -> bool:
        return bool(_holding(path, split))

    def has_labels(self, path: str) -> bool:
        return all(kind_of(one).has_labels(one) for one in parted(path))

    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        del num_images

        def opened(which: str) -> dict[str, ImageSource]:
            return {
                called: kind_of(one).open(
                    one, own, image_size=image_size, num_images=None, seed=seed
                )
                for called, (one, own) in _holding(path, which).items()
            }

        sources = opened(split)
        if not sources:
            raise UserError(f"none of {path} has {split} images", f"{split} images are needed here")
        require_alike([*sources.values()])
        classes = classes_of([*sources.values()])
        if split == "val":
            train = [*opened("train").values()]
            require_alike([*train, *sources.values()])
            known = classes_of(train)
            if strange := [line for line in class_differences(known, classes) if "in val" in line]:
                raise UserError(f"{path}: {strange[0]}", "train must hold every class of val")
            classes = known
        return several(sources, name=path, split=split, classes=classes)

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        del layout, classes_of
        reports = {
            called: check_data(Path(one), reading)
            for called, one in called_by(parted(str(path))).items()
        }
        problems = [line for report in reports.values() for line in report.problems]
        for split in SPLITS:
            try:
                if not problems and self.has_split(str(path), split):
                    self.open(str(path), split, image_size=1, num_images=None, seed=0)
            except UserError as error:
                problems.append(str(error))
        splits = [
            SplitReport(
                f"{called}: {one.split}",
                one.num_images,
                one.facts,
                one.sizes,
                one.modes,
                one.problems,
            )
            for called, report in reports.items()
            for one in report.splits
        ]
        notes = [note for report in reports.values() for note in report.notes]
        return CheckReport(tuple(splits), tuple(problems), taken_as=self.title, notes=tuple(notes))


def _holding(path: str, split: str) -> dict[str, tuple[str, str]]:
    """What each set is called that holds a split → its path, and what the split is called in it.

    Files have one split; where the names of some say train, those that say val are val.

    Raises:
        UserError: One is no set, or is rendered, or they overlap.
    """
    places = called_by(parted(path))
    kinds = {called: kind_of(one) for called, one in places.items()}
    for called, kind in kinds.items():
        if kind.rendered:
            raise UserError(
                f"{places[called]} is {kind.title}", "only images in files can be taken together"
            )
    told = {
        called: split_told(os.path.basename(one)) for called, one in places.items()
        if os.path.isfile(one)
    }  # fmt: skip
    by_name = len(told) == len(places) and "train" in told.values()
    held: dict[str, tuple[str, str]] = {}
    for called, one in places.items():
        if by_name:
            if (told[called] or "train") == split:
                held[called] = (one, "train")
        elif kinds[called].has_split(one, split):
            held[called] = (one, split)
    return held

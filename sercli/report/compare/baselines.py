"""Who a row is compared with: the one without add-on that was trained alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.report.compare.entries import share_of_images
from sercli.report.compare.runs import Entry, Run
from sercli.runs.facts import NO_ADDON


@dataclass(frozen=True)
class Pair:
    """A row with its baseline, as positions in the table."""

    row: int
    baseline: int


def find_pairs(entries: Sequence[Entry], baseline: Path | None) -> tuple[list[Pair], list[str]]:
    """Who is compared with whom, and remarks on pairs that were not or hardly comparable."""
    if baseline is not None:
        place = os.path.realpath(baseline)
        base = next(
            index
            for index, entry in enumerate(entries)
            if any(os.path.realpath(run.directory.path) == place for run in entry.runs)
        )
        pairs = [Pair(row, base) for row in range(len(entries)) if row != base]
        return pairs, _training_remarks(entries, pairs)
    pairs, remarks = [], []
    trained = [_Trained(entry) for entry in entries]
    places = {id(entry): place for place, entry in enumerate(entries)}
    for row, entry in enumerate(entries):
        candidates = _candidates(trained[row], trained)
        if len(candidates) == 1:
            pairs.append(Pair(row, places[id(candidates[0])]))
        elif candidates:
            listed = ", ".join(candidate.run.path for candidate in candidates)
            remarks.append(
                f"{entry.name} has several possible baselines ({listed}) and no difference is "
                "shown; name one with --baseline."
            )
    return pairs, [*remarks, *_training_remarks(entries, pairs)]


def _training_remarks(entries: Sequence[Entry], pairs: Sequence[Pair]) -> list[str]:
    remarks = []
    for pair in pairs:
        entry, base = entries[pair.row], entries[pair.baseline]
        if entry.run.recipe and base.run.recipe:
            differences = training_differences(base.run, entry.run)
            if differences:
                remarks.append(
                    f"{base.name} (baseline) and {entry.name} were trained differently: "
                    f"{', '.join(differences)}."
                )
    return remarks


def baseline_candidates(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """The entries without add-on that `entry` can be compared with; one is an answer.

    Method, views, data set, the part of it, image size, model and seeds must agree; of several
    such entries those with equal training settings are preferred. Where [CLS] joins late without
    an add-on, that is a control: a baseline only where there is no other, and itself compared.
    """
    return _candidates(_Trained(entry), [_Trained(other) for other in entries])


class _Trained:
    """A row and what decides with whom it can be compared, looked up once."""

    def __init__(self, entry: Entry) -> None:
        run = entry.run
        self.entry = entry
        self.without_addon = run.addon == NO_ADDON and bool(run.recipe)
        self.plain = self.without_addon and run.setting("model", "cls_after") is None
        # Not the whole model section: where [CLS] enters follows from the add-on's layer.
        settings = [str(run.setting(section, key)) for section, key in _CIRCUMSTANCES]
        self.circumstances = (*settings, share_of_images(run))
        self.seeds = {str(one.seed) for one in entry.runs}
        self.settings = _trained_with(run)

    def alike(self, other: _Trained) -> bool:
        grouped = max(len(self.entry.runs), len(other.entry.runs)) > 1
        return self.circumstances == other.circumstances and (grouped or self.seeds == other.seeds)


_CIRCUMSTANCES = (
    ("method", "name"),
    ("views", "setting"),
    ("data", "path"),
    ("data", "image_size"),
    ("data", "classes"),
    ("model", "name"),
    ("model", "patch_size"),
)


def _candidates(one: _Trained, others: Sequence[_Trained]) -> list[Entry]:
    # A row of several methods or add-ons has none.
    if not one.entry.run.recipe or one.plain or {"method", "addon"} & {*one.entry.spread}:
        return []
    rivals = [
        other
        for other in others
        if other.without_addon and other.entry is not one.entry and one.alike(other)
    ]
    if any(other.plain for other in rivals):
        rivals = [other for other in rivals if other.plain]
    elif one.without_addon:
        return []
    alike = [other for other in rivals if other.settings == one.settings]
    return [other.entry for other in alike or rivals]


def training_differences(one: Run, other: Run) -> list[str]:
    """Settings that two runs were trained with, where they differ: `train.epochs 100 vs 50`.

    Left out is what changes no number, such as how often something was saved.
    """
    first, second = _trained_with(one), _trained_with(other)
    return [
        f"{key} {first.get(key)} vs {second.get(key)}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _trained_with(run: Run) -> dict[str, Any]:
    section = run.recipe.get("train")
    train = section if isinstance(section, Mapping) else {}
    classes = run.setting("data", "classes")
    return {
        **{
            name: value
            for key, value in train.items()
            if (name := f"train.{key}") not in WITHOUT_EFFECT
        },
        **{f"data.{key}": run.setting("data", key) for key in ("path", "image_size", "num_train")},
        "data.classes": ", ".join(map(str, classes)) if isinstance(classes, list) else "all",
        "data.share": share_of_images(run),
    }

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
    for row, entry in enumerate(entries):
        candidates = baseline_candidates(entry, entries)
        if len(candidates) == 1:
            pairs.append(Pair(row, entries.index(candidates[0])))
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
    if not entry.run.recipe or _is_plain(entry):
        return []
    rivals = [
        other
        for other in entries
        if other is not entry
        and other.run.addon == NO_ADDON
        and other.run.recipe
        and _circumstances(other, entry)
    ]
    if any(map(_is_plain, rivals)):
        rivals = [other for other in rivals if _is_plain(other)]
    elif entry.run.addon == NO_ADDON:
        return []
    alike = [other for other in rivals if not training_differences(other.run, entry.run)]
    return alike or rivals


def _is_plain(entry: Entry) -> bool:
    return entry.run.addon == NO_ADDON and entry.run.setting("model", "cls_after") is None


def _circumstances(one: Entry, other: Entry) -> bool:
    # Not the whole model section: where [CLS] enters follows from the add-on's layer.
    alike = (
        ("method", "name"),
        ("views", "setting"),
        ("data", "path"),
        ("data", "image_size"),
        ("data", "classes"),
        ("model", "name"),
        ("model", "patch_size"),
    )
    seeds = [{str(run.seed) for run in entry.runs} for entry in (one, other)]
    grouped = max(len(one.runs), len(other.runs)) > 1
    same = all(str(one.run.setting(*key)) == str(other.run.setting(*key)) for key in alike)
    same = same and share_of_images(one.run) == share_of_images(other.run)
    return same and (grouped or seeds[0] == seeds[1])


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

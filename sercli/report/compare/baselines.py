"""Who a row is compared with: the one without add-on that was trained alike."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.report.compare.entries import flat, share_of_images
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
    pairs, remarks, rivals = [], [], _Rivals(entries)
    for row, entry in enumerate(entries):
        candidates = rivals.of(entry)
        if len(candidates) == 1:
            pairs.append(Pair(row, candidates[0]))
        elif candidates:
            listed = ", ".join(entries[candidate].run.path for candidate in candidates)
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
    return [entries[index] for index in _Rivals(entries).of(entry)]


class _Rivals:
    """The entries without add-on, by what those that are compared with them must share."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._alike: dict[Hashable, list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            if entry.run.addon == NO_ADDON and entry.run.recipe:
                self._alike[_circumstances(entry)].append(index)

    def of(self, entry: Entry) -> list[int]:
        """`baseline_candidates`, by their places."""
        # A row of several methods or add-ons has none.
        if not entry.run.recipe or _is_plain(entry) or {"method", "addon"} & {*entry.spread}:
            return []
        rivals = [
            index
            for index in self._alike.get(_circumstances(entry), ())
            if self._entries[index] is not entry and _share_seeds(self._entries[index], entry)
        ]
        plain = [index for index in rivals if _is_plain(self._entries[index])]
        if not plain and entry.run.addon == NO_ADDON:
            return []
        rivals = plain or rivals
        alike = [
            index
            for index in rivals
            if not training_differences(self._entries[index].run, entry.run)
        ]
        return alike or rivals


def _is_plain(entry: Entry) -> bool:
    return entry.run.addon == NO_ADDON and entry.run.setting("model", "cls_after") is None


def _circumstances(entry: Entry) -> Hashable:
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
    told = (str(entry.run.setting(*key)) for key in alike)
    return (*told, share_of_images(entry.run))


def _share_seeds(one: Entry, other: Entry) -> bool:
    if max(len(one.runs), len(other.runs)) > 1:
        return True
    return str(one.run.seed) == str(other.run.seed)


def training_differences(one: Run, other: Run) -> list[str]:
    """Settings that two runs were trained with, where they differ: `train.epochs 100 vs 50`.

    Left out is what changes no number, such as how often something was saved; and of model, method
    and views what only one of them says, as a run of another version does.
    """
    first, second = _trained_with(one), _trained_with(other)
    own, others = _built_with(one), _built_with(other)
    for key in own.keys() & others.keys():
        first[key], second[key] = own[key], others[key]
    return [
        f"{key} {first.get(key)} vs {second.get(key)}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _built_with(run: Run) -> dict[str, Any]:
    """Settings of model, method and views; where [CLS] enters follows from the add-on's layer."""
    sections = {key: run.recipe.get(key) for key in ("model", "method", "views")}
    return {key: value for key, value in flat(sections).items() if key != "model.cls_after"}


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

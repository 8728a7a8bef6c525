"""Who a row is compared with: the one without add-on that was trained alike."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

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

    Method, views, data set, the part of it, image size, model, the weights that training began
    from and seeds must agree; of several such entries those with equal training settings are
    preferred. Where [CLS] joins late without an add-on, that is a control: a baseline only where
    there is no other, and itself compared.
    """
    return [entries[index] for index in _Rivals(entries).of(entry)]


class _Rivals:
    """The entries without add-on, by what those that are compared with them must share."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._seeds = [_seed_of(entry) for entry in entries]
        self._alike: dict[Hashable, list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            if entry.run.addon == NO_ADDON and entry.run.recipe:
                self._alike[_circumstances(entry)].append(index)

    def of(self, entry: Entry) -> list[int]:
        """`baseline_candidates`, by their places."""
        # A row of several methods or add-ons has none.
        if not entry.run.recipe or _is_plain(entry) or {"method", "addon"} & {*entry.spread}:
            return []
        seed = _seed_of(entry)
        rivals = [
            index
            for index in self._alike.get(_circumstances(entry), ())
            if (seed is None or self._seeds[index] in (None, seed))
            and self._entries[index] is not entry
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
        ("model", "weights_sha256"),
    )
    told = (str(entry.run.setting(*key)) for key in alike)
    return (*told, entry.run.share_of_images)


def _seed_of(entry: Entry) -> str | None:
    """The seed that those compared with a row must share; None of a mean over several runs."""
    return str(entry.run.seed) if len(entry.runs) == 1 else None


def training_differences(one: Run, other: Run) -> list[str]:
    """Settings that two runs were trained with, where they differ: `train.epochs 100 vs 50`.

    Left out is what changes no number, such as how often something was saved; and of model, method
    and views what only one of them says, as a run of another version does.
    """
    own, others = one.built_with, other.built_with
    if one.trained_with == other.trained_with and own == others:
        return []
    first, second = {**one.trained_with}, {**other.trained_with}
    for key in own.keys() & others.keys():
        first[key], second[key] = own[key], others[key]
    return [
        f"{key} {first.get(key)} vs {second.get(key)}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]

"""What differs between the recipes of runs: a line a setting, those that all share left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sercli.report.compare.runs import Entry

_ABSENT = "–"
_MOST = 400  # settings


@dataclass(frozen=True)
class Differences:
    """Settings that rows differ in.

    Attributes:
        labels: Of the rows that have a recipe.
        rows: A setting each, with its value in each of them.
        shared: How many settings all have alike.
    """

    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    shared: int


def differences(entries: Sequence[Entry]) -> Differences:
    """Compare recipes, setting by setting; seeds of one recipe stand together."""
    known = [entry for entry in entries if entry.run.recipe]
    recipes = [[dict(_flat(run.recipe)) for run in entry.runs] for entry in known]
    keys = dict.fromkeys(key for group in recipes for recipe in group for key in recipe)
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    rows = []
    # A section that some recipes lack keys of stands together nevertheless.
    for key in sorted(keys, key=lambda key: sections.index(key.partition(".")[0])):
        values = [
            ", ".join(dict.fromkeys(recipe.get(key, _ABSENT) for recipe in group))
            for group in recipes
        ]
        if len(set(values)) > 1:
            rows.append((key, values))
    return Differences([entry.label for entry in known], rows[:_MOST], len(keys) - len(rows))


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)

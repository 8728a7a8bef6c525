"""Rows of a table: which runs make one, what it is called, and where it stands."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.families import addon_configs, method_configs, title_of
from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.recipe.schema import FamilyConfig
from sercli.report.compare.runs import FIELDS, SEED, Entry, Run, field_of, flat
from sercli.runs.facts import as_number
from sercli.visible import counted

_VIEWS = ("2", "3", "2+4", "2+4-crops", "2+4-rotations")


def single_entries(runs: Sequence[Run]) -> list[Entry]:
    """A row for each run, labelled and in the paper's order."""
    return _labelled([Entry((run,)) for run in runs])


def grouped_entries(
    runs: Sequence[Run],
    over: Sequence[str],
    rows: Sequence[str] = (),
    spread: Sequence[str] = (),
) -> list[Entry]:
    """A row for all runs that differ in some fields only; runs without a recipe stay alone.

    Args:
        runs: Of which each comes into one row.
        over: Fields in which runs of a row may differ: they are averaged over. With `rows` runs may
            differ in their seed as well; where none does, nothing is averaged.
        rows: Fields in which they must agree, each combination a row; none: all others.
        spread: Fields of columns, which runs of a row may differ in: a cell is of one value.

    Raises:
        UserError: Two runs of a row do not differ in `over`, or runs that agree in `rows` differ in
            something else.
    """
    asked, over = over, tuple(dict.fromkeys([*over, *([SEED] if rows else [])]))
    groups: dict[str, list[Run]] = defaultdict(list)
    cells: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        key = [field_of(run, name) for name in rows] if rows else _rest(run, (*over, *spread))
        row = json.dumps(key, sort_keys=True, default=str) if run.recipe else run.path
        groups[row].append(run)
        cells[f"{row} {[field_of(run, name) for name in spread]}"].append(run)
    for cell in cells.values():
        _require_alike(cell, over)
        _require_repeats(cell, over)
    if not asked and all(len(cell) == 1 for cell in cells.values()):
        over = ()
    entries = [Entry(tuple(group), over=over, spread=tuple(spread)) for group in groups.values()]
    return _labelled(entries, rows)


# Of which keys of a recipe the fields of runs are, where they are not their own.
_KEYS = {
    "method": ("method.",),
    "addon": ("addon.",),
    "layer": ("addon.layer", "model.cls_after"),
    "views": ("views.",),
}


_NAMES = {
    "method.name": "method",
    "addon.name": "addon",
    "addon.layer": "layer",
    "views.setting": "views",
}


def _rest(run: Run, over: Sequence[str]) -> dict[str, Any]:
    """What a run was trained with, but for some fields and what changes no number."""
    left = tuple(key for name in over for key in _KEYS.get(name, (name,)))
    without = WITHOUT_EFFECT - {"data.path"}
    settings = flat(run.recipe)
    return {
        key: value
        for key, value in settings.items()
        if key not in without and key not in left and not key.startswith(_sections(left))
    }


def _sections(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(key if key.endswith(".") else f"{key}." for key in keys)


def _require_repeats(group: Sequence[Run], over: Sequence[str]) -> None:
    met: dict[str, Run] = {}
    for run in group:
        what = ", ".join(f"{name} {field_of(run, name)}" for name in over)
        twin = met.setdefault(what, run)
        if twin is not run:
            raise UserError(
                f"{twin.path} and {run.path} are both {what} of the same recipe",
                f"a row averages over runs that differ in {' and '.join(over)}",
                "leave one of them out, or name what they differ in with --rows",
            )


def _require_alike(group: Sequence[Run], over: Sequence[str]) -> None:
    first = _rest(group[0], over)
    for run in group[1:]:
        other = _rest(run, over)
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                name = _NAMES.get(key, key)
                raise UserError(
                    f"{group[0].path} and {run.path} would share a row and differ in {name} "
                    f"({first.get(key)} vs {other.get(key)})",
                    f"runs of a row differ in {' and '.join(over)} only",
                    f"name {name} with --rows, or with --group-by to average over it",
                )


def renamed(entries: Sequence[Entry], labels: Mapping[str, str]) -> list[Entry]:
    """Rows with labels of one's own, by a run's directory or its name.

    Raises:
        UserError: A name fits several rows.
    """
    named = list(entries)
    for name, text in labels.items():
        places = [
            index
            for index, entry in enumerate(entries)
            if any(is_called(run, name) for run in entry.runs)
        ]
        if len(places) > 1:
            raise UserError(
                f"a label for {name!r} fits {len(places)} rows", "name a run by its whole path"
            )
        for index in places:
            state = _state(entries[index])
            named[index] = replace(entries[index], label=text + state, name=text)
    return named


def is_called(run: Run, name: str) -> bool:
    """Whether a name is a run's: of its directory, or a path to it."""
    return name == run.directory.path.name or os.path.realpath(name) == os.path.realpath(run.path)


def _labelled(entries: Sequence[Entry], rows: Sequence[str] = ()) -> list[Entry]:
    ordered = sorted(entries, key=_place)
    labels = [_with_details(_base_label(one), _further(one.run, rows)) for one in ordered]
    clashes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, entry in enumerate(ordered):
        clashes[labels[index], entry.views].append(index)
    for indices in clashes.values():
        details = _distinguish([ordered[index] for index in indices])
        for index, detail in zip(indices, details, strict=True):
            labels[index] = _with_details(labels[index], detail)
    times = Counter(labels)
    return [
        replace(
            entry,
            label=label + _state(entry),
            name=label if times[label] == 1 else f"{label}, views {entry.views}",
        )
        for entry, label in zip(ordered, labels, strict=True)
    ]


def _further(run: Run, rows: Sequence[str]) -> list[str]:
    """Keys of recipes that make rows: what labels do not say by themselves."""
    keys = [name for name in rows if name not in FIELDS]
    told = {key: field_of(run, key) for key in keys}
    return [
        f"{key.rpartition('.')[2]}={_shown(value)}"
        for key, value in told.items()
        if value is not None
    ]


def _shown(value: Any) -> str:
    number = as_number(value)
    return str(value) if number is None else f"{number:g}"


def _place(entry: Entry) -> tuple[Any, ...]:
    """The paper's order: method, views, baseline before add-ons, SER last."""
    run = entry.run
    return (
        _index(tuple(method_configs()), run.name("method")),
        _index(_VIEWS, run.views),
        _index(tuple(addon_configs()), run.addon),
        run.tapped_layer or 0,
        run.weight or 0.0,
        str(run.seed).zfill(8),
        run.path,
    )


def _index(known: tuple[str, ...], name: str) -> tuple[int, str]:
    """Where a name stands; those that are not known stand last, by name."""
    return (known.index(name), "") if name in known else (len(known), name)


def _base_label(entry: Entry) -> str:
    """The paper's words for what was trained; what a row is the mean over is not named."""
    run, over, spread = entry.run, entry.over, entry.spread
    if not run.name("method"):
        return _foreign_label(run)
    method = "any method" if "method" in over else _title("method", run)
    addon = None if run.addon == "none" else _title("addon", run)
    addon = "any add-on" if "addon" in over else None if "addon" in spread else addon
    label = trained_label(
        method,
        addon,
        layer=None if {"layer", "addon"} & {*over, *spread} else run.tapped_layer,
        weight_zero=run.weight == 0 and "addon.weight" not in (*over, *spread),
    )
    if "method" in spread:
        label = label.removeprefix(method).removeprefix(" + ") or "without add-on"
    return _with_details(label, _part_of_data(run))


def _part_of_data(run: Run) -> list[str]:
    """What a run saw of its images, where that was not all: rows of the paper saw all."""
    classes, share = run.setting("data", "classes"), run.share_of_images
    details = [counted(len(classes), "class")] if isinstance(classes, list) else []
    return details + ([f"{100 * share:g} % of images"] if share < 1 else [])


def trained_label(method: str, addon: str | None, *, layer: int | None, weight_zero: bool) -> str:
    """A row's, from the titles of both; the λ = 0 control never reads like the add-on."""
    if addon is None:
        return method
    details = [f"layer {layer}"] if layer is not None else []
    details += ["λ=0"] if weight_zero else []
    suffix = f" ({', '.join(details)})" if details else ""
    return f"{method} + {addon}{suffix}"


def _title(section: str, run: Run) -> str:
    """As run.json says; runs of earlier versions do not say."""
    return run.title(section) or known_title(section, run.name(section))


def known_title(section: str, name: str) -> str:
    """What tables call a method or an add-on that is installed; the name itself for any other."""
    known: Mapping[str, type[FamilyConfig]]
    known = method_configs() if section == "method" else addon_configs()
    return title_of(known[name]) if name in known else name


def _foreign_label(run: Run) -> str:
    sources = {str(result.model.get("source", "")) for result in run.results.values()} - {""}
    if len(sources) == 1:
        source = sources.pop()
        return source if ":" in source else Path(source).name
    return run.directory.path.resolve().name


def _with_details(label: str, details: Sequence[str]) -> str:
    if not details:
        return label
    if label.endswith(")"):
        return f"{label[:-1]}, {', '.join(details)})"
    return f"{label} ({', '.join(details)})"


def _distinguish(entries: Sequence[Entry]) -> list[list[str]]:
    """What to add to equal labels: the first settings that tell them apart, else the directory."""
    details: list[list[str]] = [[] for _ in entries]
    if len(entries) < 2:
        return details
    for describe in _DETAILS:
        if len({tuple(detail) for detail in details}) == len(entries):
            return details
        words = [describe(entry) for entry in entries]
        if len(set(words)) > 1:
            for detail, word in zip(details, words, strict=True):
                detail.extend([word] if word else [])
    if len({tuple(detail) for detail in details}) < len(entries):
        for detail, entry in zip(details, entries, strict=True):
            detail.append(entry.run.path)
    return details


def _addon_detail(symbol: str, key: str) -> Callable[[Entry], str]:
    def describe(entry: Entry) -> str:
        value = entry.run.setting("addon", key)
        return "" if value is None else f"{symbol}={_shown(value)}"

    return describe


def _cls_detail(entry: Entry) -> str:
    block = entry.run.setting("model", "cls_after")
    return "" if block is None else f"[CLS] after block {block}"


def _weights_detail(entry: Entry) -> str:
    begun = entry.run.setting("model", "weights_sha256")
    return "" if begun is None else f"from weights {str(begun)[:12]}"


def _seed_detail(entry: Entry) -> str:
    # Groups hold several seeds: there the seed tells no row from another.
    return f"seed {entry.run.seed}" if len(entry.runs) == 1 and entry.run.seed is not None else ""


def _recipe_detail(entry: Entry) -> str:
    return str(entry.run.record.get("recipe_name") or "")


def _directory_detail(entry: Entry) -> str:
    return entry.run.directory.path.resolve().name


_DETAILS: tuple[Callable[[Entry], str], ...] = (
    _addon_detail("λ", "weight"),
    _addon_detail("fraction", "fraction"),
    _addon_detail("τ", "temperature"),
    _addon_detail("action", "action"),
    _cls_detail,
    _weights_detail,
    _seed_detail,
    _recipe_detail,
    _directory_detail,
)


def _state(entry: Entry) -> str:
    """Says how many seeds a row is the mean over and what has not ended well."""
    what = "seed" if entry.over == (SEED,) else "run"
    counts = entry.over and entry.run.recipe and not entry.spread  # else cells have their own
    seeds = f" ({counted(len(entry.runs), what)})" if counts else ""
    unfinished = sorted({run.state for run in entry.runs} - {"done"})
    return seeds + (f" [{', '.join(unfinished)}]" if unfinished else "")

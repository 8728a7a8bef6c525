"""Run directories as `compare` sees them: what was trained, its label, its place, its baseline."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sercli.errors import SerError, UserError
from sercli.families import addon_configs, method_configs, title_of
from sercli.protocols import PROTOCOLS
from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.recipe.schema import FamilyConfig
from sercli.runs.facts import RunFacts, as_number, read_facts
from sercli.runs.finding import Skipped, find_runs
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.visible import counted

_NAMED = 4  # runs in a line
_VIEWS = ("2", "3", "2+4", "2+4-crops", "2+4-rotations")


@dataclass(frozen=True)
class Run(RunFacts):
    """One run directory, read.

    Attributes:
        results: By result name (the stem of the file).
    """

    results: Mapping[str, Result] = field(default_factory=dict)

    @property
    def has_numbers(self) -> bool:
        return bool(self.results) or any(self.record.get(key) for key in ("timings", "flops"))


def read_runs(paths: Sequence[Path], skipped: list[Skipped] | None = None) -> list[Run]:
    """Read run directories, each once; see `open_runs`.

    Raises:
        UserError: As there, or none of them holds any number.
    """
    runs = open_runs(paths, skipped)
    if not any(run.has_numbers for run in runs):
        named = ", ".join(run.path for run in runs[:_NAMED])
        more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        raise UserError(
            f"no result and no timing in {named}{more}",
            "compare shows what runs have measured",
            f"run an evaluator first, for instance `ser {next(iter(PROTOCOLS))} RUNDIR`",
        )
    return runs


def open_runs(paths: Sequence[Path], skipped: list[Skipped] | None = None) -> list[Run]:
    """Read run directories, and those below folders, each once, whether or not they hold a number.

    Args:
        paths: Run directories, and folders that are searched for them.
        skipped: Takes what was found below a folder and cannot be read; None: a warning each.

    Raises:
        UserError: One that is named is no run directory and holds none, or a file in it cannot be
            read.
    """
    found = find_runs(paths)
    runs, unread = [], list(found.skipped)
    for place in found.places:
        try:
            runs.append(_read(place.run))
        except SerError as error:
            if place.named:
                raise
            unread.append(Skipped(place.run.path, str(error)))
    if not runs and unread:
        raise UserError(f"no run could be read: {unread[0].why}")
    if skipped is None:
        for one in unread:
            warnings.warn(f"passed over: {one.why}", stacklevel=3)
    else:
        skipped += unread
    return runs


def _read(directory: RunDir) -> Run:
    facts = read_facts(directory)
    return Run(
        directory=facts.directory,
        recipe=facts.recipe,
        record=facts.record,
        results={result.name: result for result in facts.directory.read_results()},
    )


# -- rows: a run, or the seeds of one recipe ------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row to be: one run, or several seeds of one recipe.

    Attributes:
        label: As in the paper's tables; with `views` it is unique.
        name: The label, with the views where another row has the same label.
    """

    runs: tuple[Run, ...]
    label: str = ""
    name: str = ""

    @property
    def run(self) -> Run:
        """The one that speaks for the row."""
        return self.runs[0]

    @property
    def views(self) -> str:
        return self.run.views.replace("-", " ")


def single_entries(runs: Sequence[Run]) -> list[Entry]:
    """A row for each run, labelled and in the paper's order."""
    return _labelled([Entry((run,)) for run in runs])


def seed_entries(runs: Sequence[Run]) -> list[Entry]:
    """A row for each recipe, its seeds together; runs without a recipe stay alone.

    Raises:
        UserError: One recipe was run twice with the same seed.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        rest = {key: value for key, value in run.recipe.items() if key != "seed"}
        groups[json.dumps(rest, sort_keys=True, default=str) if rest else run.path].append(run)
    for group in groups.values():
        by_seed: dict[str, Run] = {}
        for run in group:
            twin = by_seed.setdefault(str(run.seed), run)
            if twin is not run:
                raise UserError(
                    f"{twin.path} and {run.path} are both seed {run.seed} of the same recipe",
                    "--group-seeds averages over different seeds",
                    "leave one of them out",
                )
    return _labelled([Entry(tuple(group)) for group in groups.values()])


def _labelled(entries: Sequence[Entry]) -> list[Entry]:
    ordered = sorted(entries, key=_place)
    labels = [_base_label(entry.run) for entry in ordered]
    clashes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, entry in enumerate(ordered):
        clashes[labels[index], entry.views].append(index)
    for indices in clashes.values():
        details = _distinguish([ordered[index] for index in indices])
        for index, detail in zip(indices, details, strict=True):
            labels[index] = _with_details(labels[index], detail)
    return [
        replace(
            entry,
            label=label + _state(entry),
            name=label if labels.count(label) == 1 else f"{label}, views {entry.views}",
        )
        for entry, label in zip(ordered, labels, strict=True)
    ]


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


def _base_label(run: Run) -> str:
    method = run.name("method")
    if not method:
        return _foreign_label(run)
    addon = None if run.addon == "none" else _title("addon", run)
    label = trained_label(
        _title("method", run), addon, layer=run.tapped_layer, weight_zero=run.weight == 0
    )
    return _with_details(label, _part_of_data(run))


def _part_of_data(run: Run) -> list[str]:
    """What a run saw of its images, where that was not all: rows of the paper saw all."""
    classes, share = run.setting("data", "classes"), _share(run)
    details = [counted(len(classes), "class")] if isinstance(classes, list) else []
    return details + ([f"{100 * share:g} % of images"] if share < 1 else [])


def _share(run: Run) -> float:
    share = as_number(run.setting("data", "share"))
    return 1.0 if share is None else share  # of a run of before there were shares


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
        number = as_number(value)
        shown = f"{number:g}" if number is not None else value
        return "" if value is None else f"{symbol}={shown}"

    return describe


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
    _seed_detail,
    _recipe_detail,
    _directory_detail,
)


def _state(entry: Entry) -> str:
    """Says how many seeds a row averages and what has not ended well."""
    seeds = f" ({counted(len(entry.runs), 'seed')})" if len(entry.runs) > 1 else ""
    unfinished = sorted({run.status for run in entry.runs} - {"done"})
    return seeds + (f" [{', '.join(unfinished)}]" if unfinished else "")


# -- baselines ------------------------------------------------------------------------------------


def baseline_candidates(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """The entries without add-on that `entry` can be compared with; one is an answer.

    Method, views, data set, the part of it, image size, model and seeds must agree; of several
    such entries those with equal training settings are preferred.
    """
    if entry.run.addon == "none":
        return []
    rivals = [
        other
        for other in entries
        if other.run.addon == "none" and other.run.recipe and _circumstances(other, entry)
    ]
    alike = [other for other in rivals if not training_differences(other.run, entry.run)]
    return alike or rivals


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
    same = same and _share(one.run) == _share(other.run)
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
        "data.share": _share(run),
    }

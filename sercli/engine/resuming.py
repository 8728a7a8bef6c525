"""What a run was started with, compared with what it is to go on with; no torch.

run.json keeps the recipe, the SHA-256 of recipe.yaml, what the data were, and how many processes
there were. What would make another run of it is refused, or, with `--allow-changed`, named and
recorded. A run of an earlier version has no record: nothing of it is missed, and it gets one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sercli.data import open_source
from sercli.data.registry import find_kind
from sercli.data.source import ImageSource, contents
from sercli.errors import UserError
from sercli.families import resolve
from sercli.recipe.files import Resolved, flatten, from_mapping
from sercli.recipe.keys import WITHOUT_EFFECT
from sercli.recipe.model import Model
from sercli.recipe.schema import Recipe
from sercli.runs.files import file_sha256
from sercli.runs.places import parted
from sercli.runs.reading import shown
from sercli.runs.result import now
from sercli.runs.run_dir import RunDir
from sercli.visible import counted

_NAMED = 4  # changes in an error line
_LONGEST = 60  # characters of a value in a line
_DIGITS = 12  # of a hash in a line


@dataclass(frozen=True)
class Comparison:
    """What a run is to go on with, beside what it was started with.

    Attributes:
        record: For run.json: what it goes on with.
        changes: What makes another run of it, a phrase each; the user has allowed it.
        notes: What is another but changes no number, a line each.
    """

    record: Mapping[str, Any]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def news(self, step: int) -> dict[str, Any]:
        """What run.json is told when it goes on from `step`; earlier changes are to be kept."""
        if not self.changes:
            return dict(self.record)
        change = {"step": step, "when": now(), "what": list(self.changes)}
        return {**self.record, "changed": [*self.record.get("changed", []), change]}

    def lines(self, step: int) -> Iterator[str]:
        """What a person is told when it goes on from `step`."""
        yield from self.notes
        if self.changes:
            yield (
                f"warning: from step {step} on this run is no longer the one that it was started "
                f"as: {'; '.join(self.changes)}; its numbers are of both, and neither recipe.yaml "
                "nor any seed repeats them (recorded in run.json as `changed`)"
            )


def read_resolved(run: RunDir) -> Resolved:
    """The resolved recipe of a run directory, with where its values are from.

    Raises:
        UserError: There is none, or it cannot be used.
    """
    if not run.recipe.is_file():
        raise UserError(f"{run.path} has no recipe.yaml", "it was not made by ser pretrain")
    return resolve(str(run.recipe), (), {})


def training_source(recipe: Recipe) -> ImageSource:
    """The images a recipe trains on."""
    return open_source(
        recipe.data.path,
        "train",
        image_size=recipe.data.image_size,
        num_images=recipe.data.num_train,
        seed=recipe.seed,
        classes=recipe.data.classes,
        share=recipe.data.share,
        cache=recipe.data.cache,
    )


@dataclass(frozen=True)
class GoingOn:
    """What `--resume` goes on with.

    Attributes:
        resolved: recipe.yaml of the run.
        source: Training images.
        comparison: With what it was started with.
    """

    resolved: Resolved
    source: ImageSource
    comparison: Comparison


def examine(run: RunDir, *, processes: int, allow_changed: bool) -> GoingOn:
    """Read what a run goes on with, and compare it with what it was started with.

    Args:
        run: An existing run directory.
        processes: How many will train.
        allow_changed: Whether it may become another run.

    Raises:
        UserError: It cannot be gone on with; nothing was changed.
    """
    resolved = read_resolved(run)
    _require_images(run, resolved.recipe.data.path)
    source = training_source(resolved.recipe)
    comparison = compare(
        run, resolved.recipe, source, processes=processes, allow_changed=allow_changed
    )
    return GoingOn(resolved, source, comparison)


def _require_images(run: RunDir, path: str) -> None:
    """Refuse a path that is gone, and say how a run follows its images.

    Raises:
        UserError: It is.
    """
    gone = [one for one in parted(path) if find_kind(one) is None and not os.path.lexists(one)]
    if gone:
        raise UserError(
            f"{gone[0]} does not exist",
            f"the images of {run.path} were there",
            f"where they were moved, write their new path as data.path into {run.recipe}",
        )


def record_of(recipe: Recipe, text: bytes, source: ImageSource) -> dict[str, Any]:
    """What run.json keeps of what a run is started with.

    Args:
        recipe: Resolved.
        text: recipe.yaml as it is written.
        source: Training images.
    """
    kind = find_kind(recipe.data.path)
    return {
        "recipe_sha256": hashlib.sha256(text).hexdigest(),
        "recipe": json.loads(recipe.model_dump_json()),
        "data": {"kind": None if kind is None else kind.name, **contents(source)},
    }


def compare(
    run: RunDir, recipe: Recipe, source: ImageSource, *, processes: int, allow_changed: bool
) -> Comparison:
    """Compare what a run is to go on with, with what it was started with.

    Args:
        run: An existing run directory.
        recipe: As its recipe.yaml says now.
        source: The training images that are there now.
        processes: How many will train.
        allow_changed: Whether it may become another run.

    Raises:
        UserError: It would, and may not.
    """
    told = run.read_run()
    record = record_of(recipe, run.recipe.read_bytes(), source)
    changes: list[str] = []
    notes: list[str] = []
    if told.get("recipe_sha256") not in (None, record["recipe_sha256"]):
        edited = dict(edits(told.get("recipe"), recipe))
        changes += [text for key, text in edited.items() if key not in WITHOUT_EFFECT]
        notes += [
            f"note: recipe.yaml was edited ({text}): it is the same run all the same"
            for key, text in edited.items()
            if key in WITHOUT_EFFECT
        ]
    others, gone = _other_weights(told.get("weights"), recipe.model)
    changes, notes = changes + others, notes + gone
    changes += _other_images(told.get("data"), record["data"], recipe.data.path)
    before = told.get("world_size")
    if isinstance(before, int) and before != processes:
        bound = recipe.addon.bound_to_ranks
        text = f"{counted(processes, 'process')}, before it was {before}"
        if bound:
            changes.append(f"{text}, and {' and '.join(bound)} depends on how many there are")
        else:
            notes.append(f"note: it goes on with {text}: the same run, but for rounding")
    if changes and not allow_changed:
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise UserError(
            f"{run.path} was started otherwise: {'; '.join(changes[:_NAMED])}{more}",
            "a run goes on as it was started, or its numbers are of no recipe",
            "undo that, start another run (--recipe), or say --allow-changed",
        )
    if isinstance(told.get("changed"), list):
        record["changed"] = told["changed"]
    return Comparison(record, tuple(changes), tuple(notes))


def _other_weights(told: object, model: Model) -> tuple[list[str], list[str]]:
    """What makes other weights of those that it began from, and what there is to note of them.

    They are in its checkpoints by now: it goes on without them. Where another file is in their
    place, what the recipe says is no longer so.
    """
    file = told.get("file") if isinstance(told, Mapping) else None
    if model.weights is None or model.weights_sha256 is None or not isinstance(file, str):
        return [], []
    path = Path(file)
    if not os.path.isfile(path):
        return [], [f"note: {file} is gone, which the run began from: it goes on without it"]
    found = file_sha256(path)
    if found == model.weights_sha256:
        return [], []
    was = shown(model.weights_sha256[:_DIGITS])
    return [f"{file} was replaced (its SHA-256 was {was}…, is {found[:_DIGITS]}…)"], []


def edits(before: object, after: Recipe) -> Iterator[tuple[str, str]]:
    """Keys with other values, and a phrase for each.

    What is not in the recipe of before was at its default: it came with a newer version, or is
    written only where it is not what earlier versions had.
    """
    if not isinstance(before, Mapping):
        yield "", "its recipe.yaml was edited"
        return
    was, now_ = (dict(flatten(_comparable(one))) for one in (before, after.model_dump(mode="json")))
    for key, value in (was | _unsaid(after, now_, was.keys())).items():
        if now_.get(key) != value:
            yield key, f"{key} was {_short(value)}, is {_short(now_.get(key))}"


def _unsaid(recipe: Recipe, values: Mapping[str, Any], said: AbstractSet[str]) -> dict[str, Any]:
    """What the values of a recipe that an earlier one does not say were there.

    Args:
        recipe: Of today.
        values: Its values by dotted key.
        said: The keys that the earlier one has.
    """
    keys = values.keys() - said
    kept = {key: value for key, value in values.items() if key in said and key != "plugins"}
    try:
        usual = from_mapping(
            kept,
            methods={recipe.method.name: type(recipe.method)},
            addons={recipe.addon.name: type(recipe.addon)},
        ).recipe
    except UserError:  # what is left makes no recipe: there was something else in their place
        return dict.fromkeys(keys)
    return {key: _value_of(usual, key) for key in keys}


def _value_of(recipe: Recipe, key: str) -> Any:
    """Of a dotted key, as JSON has it, be it written where it is as usual or not."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return json.loads(json.dumps(value, default=str))


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without where the files of plug-ins lie: what they hold is hashed."""
    plugins = recipe.get("plugins")
    held = [
        {key: value for key, value in one.items() if key in ("sha256", "distribution", "version")}
        for one in (plugins if isinstance(plugins, list) else [])
        if isinstance(one, Mapping)
    ]
    return {**recipe, "plugins": held}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _other_images(before: object, after: Mapping[str, Any], path: str) -> list[str]:
    if not isinstance(before, Mapping) or before.get("sha256") is None:
        return []
    if before["sha256"] == after["sha256"]:
        if before.get("sample", after.get("sample")) == after.get("sample"):
            return []
        return [f"images of {path} hold other bytes, under the same names"]
    then, there = before.get("images"), after["images"]
    if then == there:
        return [f"the {there} images of {path} are others (names, classes or sizes of files)"]
    return [f"{path} has {there} training images, before it had {then}"]

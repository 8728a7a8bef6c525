"""What a run begins from: anybody's weights, and the settings that follow from them.

`beginning_of` reads `model.weights` and fills in what the recipe leaves to them, their hash too, so
that a run's own recipe says it all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError

from sercli.encoders.describing import model_of
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.sizes import cls_after_of
from sercli.encoders.vit import Encoder
from sercli.engine.weights import DIGITS, Weights, read_weights
from sercli.errors import UserError
from sercli.recipe.files import Resolved, flatten
from sercli.recipe.keys import CLS_AFTER, FROM_WEIGHTS, SHA256, WEIGHTS, explain
from sercli.recipe.model import ARCHITECTURE, TIMM, Model
from sercli.recipe.schema import Data, Recipe
from sercli.runs.reading import shown
from sercli.visible import counted

ORIGIN = "weights"  # of what a recipe leaves to them
_NAMED = 3  # of what is left
_SIZES = ("width", "depth", "num_heads")  # which a name stands for


@dataclass(frozen=True)
class Beginning:
    """A recipe with what follows from the weights that it begins from.

    Attributes:
        resolved: With every setting.
        weights: As read.
    """

    resolved: Resolved
    weights: Weights

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def line(self) -> str:
        """What is taken, what is not, and what becomes of positions and colours, in one line."""
        loaded, data = self.weights.loaded, self.recipe.data
        place = f" at {loaded.place}" if loaded.place else ""
        parts = [
            f"weights: {loaded.source} (SHA-256 {self.weights.sha256[:DIGITS]}…): {loaded.key}"
            f"{place}, layout {loaded.layout}, {loaded.matched} of {loaded.expected} tensors",
            f"not taken: {', '.join(_grouped(loaded.left)) or 'nothing else is there'}",
            _positions(loaded.encoder, self.recipe),
        ]
        own = tuple(data.mean) == tuple(loaded.mean) and tuple(data.std) == tuple(loaded.std)
        numbers = f"mean {_numbers(data.mean)}, std {_numbers(data.std)}"
        parts.append(numbers if own else f"{numbers}, as data.mean and data.std say, not its own")
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        loaded = self.weights.loaded
        return {
            **loaded.describe(),
            "file": None if loaded.file is None else str(loaded.file.absolute()),
            "sha256": self.weights.sha256,
            "image_size": loaded.image_size,
            "left": len(loaded.left),
        }


def _grouped(names: Sequence[str]) -> Iterator[str]:
    """What is left, by what holds it: "head (2 tensors)"."""
    groups = Counter(name.rpartition(".")[0].partition(".")[0] or name for name in names)
    for name, number in groups.most_common(_NAMED):
        yield f"{shown(name)} ({counted(number, 'tensor')})" if number > 1 else shown(name)
    if len(groups) > _NAMED:
        yield f"{len(groups) - _NAMED} more"


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _positions(encoder: Encoder, recipe: Recipe) -> str:
    side = recipe.data.image_size // encoder.patch_size
    if encoder.pos_embed is None:
        return "no positions to resample"
    if encoder.grid == (side, side):
        return f"positions of {side} × {side} patches as they are"
    height, width = encoder.grid
    return f"positions {height} × {width} → {side} × {side} by {encoder.pos_resize}"


# -- reading ---------------------------------------------------------------------------------------


def beginning_of(resolved: Resolved) -> Beginning | None:
    """What a recipe begins from, with all that it leaves to the weights filled in.

    Returns:
        None where it names no weights.

    Raises:
        UserError: They cannot be read, are not those that the recipe has the hash of, cannot be
            trained, or the recipe says something else of their architecture.
    """
    if resolved.recipe.model.weights is None:
        return None
    weights = read_weights(resolved.recipe.model)
    return Beginning(_filled(resolved, weights), weights)


# -- filling in ------------------------------------------------------------------------------------


def completed(resolved: Resolved, *, tolerant: bool, say: Callable[[str], None]) -> Resolved:
    """A recipe with what it leaves to weights, to be shown or checked; a run's own says it all.

    Args:
        resolved: The recipe.
        tolerant: Do without weights that cannot be read, and say so.
        say: Shows a line.

    Raises:
        UserError: They cannot be read, or contradict it.
    """
    if tolerant and resolved.recipe.model.weights_sha256 is not None:
        return resolved
    try:
        beginning = beginning_of(resolved)
    except UserError as error:
        if not tolerant:
            raise
        say(f"note: {error}; what follows from the weights is not shown")
        return resolved
    return resolved if beginning is None else beginning.resolved


def _filled(resolved: Resolved, weights: Weights) -> Resolved:
    """The recipe with all that follows from the weights."""
    recipe, loaded = resolved.recipe, weights.loaded
    try:
        found = model_of(loaded.encoder)
    except UserError as error:
        raise UserError(f"model.weights {loaded.source}: {error}") from error
    _refuse_contradictions(resolved, found, loaded)
    told = {key for key, origin in resolved.origins.items() if origin != "default"}
    taken = {
        key.partition(".")[2]: getattr(found, key.partition(".")[2])
        for key in FROM_WEIGHTS
        if key.startswith("model.")
    }
    model = recipe.model.model_copy(update={**taken, "weights_sha256": weights.sha256})
    was = model.cls_after
    model = model.model_copy(update={"cls_after": _joins_after(recipe, model, loaded.encoder)})
    colours = {key: getattr(loaded, key) for key in ("mean", "std") if f"data.{key}" not in told}
    try:
        data = Data.model_validate({**_values_of(recipe.data), **colours})
        whole = {**_values_of(recipe), "data": data, "model": model}
        new = Recipe.model_validate(whole)
    except ValidationError as error:
        raise UserError(explain(error, {}, "")) from error
    follow = FROM_WEIGHTS | {SHA256} | ({CLS_AFTER} if model.cls_after != was else set())
    keys = dict(flatten(new.model_dump(mode="json")))
    origins = {
        key: ORIGIN if key in follow - told else resolved.origins.get(key, "default")
        for key in keys
    }
    return replace(resolved, recipe=new, origins=origins)


def _values_of(section: Any) -> dict[str, Any]:
    return {key: getattr(section, key) for key in type(section).model_fields}


def _refuse_contradictions(resolved: Resolved, found: Model, loaded: LoadedEncoder) -> None:
    """What a recipe says of the architecture must be so; what describes it is what is compared.

    Raises:
        UserError: It is not.
    """
    own, model = _described(found, loaded), resolved.recipe.model
    told = {
        key.partition(".")[2]: getattr(model, key.partition(".")[2])
        for key, origin in resolved.origins.items()
        if key in FROM_WEIGHTS
        and key.startswith("model.")
        and origin not in ("default", model.name)
    }
    for key, value in told.items():
        said: dict[str, Any] = {key: value}
        if key == "name":
            said |= _named(model)
        if value == getattr(found, key) or _described(found, loaded, said) == own:
            continue
        raise UserError(
            f"model.{key} {_text(value)} (from {resolved.origins[f'model.{key}']})",
            f"{WEIGHTS} {loaded.source} has {_text(_plain(key, found))}",
            f"leave model.{key} out: the architecture is that of the weights",
        )


def _named(model: Model) -> dict[str, Any]:
    """The settings that a model's name stands for; of timm's, those that a recipe takes from it."""
    if model.name.startswith(TIMM):
        return {key: getattr(model, key) for key in ARCHITECTURE - {"pos_resize"}}
    return dict.fromkeys(_SIZES)


def _text(value: Any) -> str:
    return shown(str(value) if isinstance(value, str) else value)


def _plain(key: str, found: Model) -> Any:
    """What a model's setting is, in a message; of a name, what it is short for."""
    value = getattr(found, key)
    if key != "name":
        return value
    sizes = {name: getattr(found, name) for name in _SIZES if getattr(found, name) is not None}
    return f"{value}{' with ' if sizes else ''}" + ", ".join(f"{k} {v}" for k, v in sizes.items())


def _described(
    found: Model, loaded: LoadedEncoder, said: Mapping[str, Any] | None = None
) -> Model | None:
    """The one description there is of an encoder of these settings; None: there is no such one."""
    size = loaded.encoder.grid[0] * loaded.encoder.patch_size
    try:
        model = Model.model_validate({**_values_of(found), **(said or {})})
        fitting = -(-size // model.patch_size) * model.patch_size
        with torch.device("meta"):
            return model_of(Encoder.from_model(model, image_size=fitting))
    except (UserError, RuntimeError, ValueError):
        return None


def _joins_after(recipe: Recipe, model: Model, encoder: Encoder) -> int | None:
    """Where [CLS] joins: as the recipe says, after the tapped layer, or else as it did there."""
    layer, taps_cls = recipe.addon.tapped_layer, recipe.addon.taps_cls
    theirs = encoder.cls_after
    if model.cls_after is not None or not theirs:
        return model.cls_after
    moved = cls_after_of(model, layer=layer, taps_cls=taps_cls)
    late = taps_cls and layer is not None and theirs >= layer
    return None if moved or late else theirs

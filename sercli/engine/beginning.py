"""What a run begins from: anybody's weights, and the settings that follow from them.

`beginning_of` reads `model.weights` and fills in what the recipe leaves to them; `begin` puts them
into what is trained. Both hold them to `model.weights_sha256`, which a run's own recipe has.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from sercli import distributed
from sercli.data.loading import evaluation_batches
from sercli.data.source import ImageSource
from sercli.encoders.asked import as_recipe_keys
from sercli.encoders.describing import model_of
from sercli.encoders.loading import LoadedEncoder, encoder_sha256, read_encoder
from sercli.encoders.sizes import cls_after_of
from sercli.encoders.vit import Encoder
from sercli.errors import SerError, UserError
from sercli.objective import Objective
from sercli.randomness import numpy_generator
from sercli.recipe.files import Resolved, flatten
from sercli.recipe.keys import CLS_AFTER, FROM_WEIGHTS, SHA256, WEIGHTS, explain
from sercli.recipe.model import ARCHITECTURE, TIMM, Model, WeightsAs
from sercli.recipe.schema import Data, Recipe
from sercli.runs.files import file_sha256
from sercli.runs.lease import refuse_if_leased
from sercli.runs.reading import shown
from sercli.runs.run_dir import RunDir
from sercli.visible import counted

ORIGIN = "weights"  # of what a recipe leaves to them
_COMPARED = 16  # images: a mean of thousands of tokens, in seconds on a CPU
_NAMED = 3  # of what is left
_DIGITS = 12  # of a hash in a line
_SIZES = ("width", "depth", "num_heads")  # which a name stands for


@dataclass(frozen=True)
class Weights:
    """Weights as they were read.

    Attributes:
        loaded: The encoder, and where it is from.
        sha256: Of the file it was read from; of the encoder itself, if it is a model of timm's.
    """

    loaded: LoadedEncoder
    sha256: str


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
            f"weights: {loaded.source} (SHA-256 {self.weights.sha256[:_DIGITS]}…): {loaded.key}"
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


def read_weights(model: Model) -> Weights:
    """The weights that a recipe names, held to their hash if it has one.

    Raises:
        UserError: They cannot be read, or are others.
    """
    assert model.weights is not None
    name, said = model.weights, model.weights_as or WeightsAs()
    if not name.startswith(TIMM) and Path(name).is_dir():
        _require_still(RunDir.open(name))
    before = _identity(Path(name))
    try:
        loaded = read_encoder(name, **said.model_dump())
    except UserError as error:
        raise UserError(as_recipe_keys(str(error))) from error
    file = loaded.file
    sha256 = encoder_sha256(loaded.encoder) if file is None else file_sha256(file)
    if file == Path(name) and _identity(file) != before:
        raise UserError(f"{file} was replaced while it was read", "", "try again")
    if model.weights_sha256 not in (None, sha256):
        raise UserError(
            f"model.weights {name} is not what it was: its SHA-256 is {sha256[:_DIGITS]}…, "
            f"model.weights_sha256 {shown(str(model.weights_sha256)[:_DIGITS])}…",
            "a recipe begins from the weights that it has the hash of",
            "bring those back, or set model.weights_sha256=null to begin from these",
        )
    return Weights(loaded, sha256)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes where a file is replaced or written to; None: there is none."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _require_still(run: RunDir) -> None:
    """Refuse a run that is being trained: every checkpoint makes another encoder of it."""
    try:
        refuse_if_leased(run)
    except UserError as error:
        steps = run.checkpoint_steps()
        file = run.checkpoint(steps[-1]) if steps else None
        raise UserError(
            f"model.weights {run.path}: {error}",
            "with each checkpoint its encoder becomes another",
            "wait until it is done" + (f", or name one of them, such as {file}" if file else ""),
        ) from error


# -- filling in ------------------------------------------------------------------------------------


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


# -- putting them in -------------------------------------------------------------------------------


def begin(objective: Objective, recipe: Recipe) -> None:
    """Put the weights that a recipe names into student and teacher; heads stay as drawn.

    Every process reads them, and all of them must have read the same.

    Raises:
        UserError: They cannot be read, or are others than the recipe says, on some process.
    """
    if recipe.model.weights is None:
        return
    weights = _agreed(recipe.model)
    student = objective.encoder
    put(weights.loaded.encoder, student)
    if objective.teacher is not None:
        objective.teacher.encoder.load_state_dict(student.state_dict())


def put(source: Encoder, target: Encoder) -> None:
    """Give an encoder the weights of another one of the same settings, for its own image size."""
    state = source.state_dict()
    if source.pos_embed is not None:
        with torch.no_grad():
            state["pos_embed"] = source.positions(target.grid)
    target.load_state_dict(state)


def _agreed(model: Model) -> Weights:
    """The weights, if all processes read the same."""
    found: Weights | None = None
    failed: SerError | None = None
    try:
        found = read_weights(model)
    except SerError as error:
        failed = error
    if not distributed.active():
        if found is None:
            assert failed is not None
            raise failed
        return found
    mine = (None if found is None else found.sha256, 0 if failed is None else failed.exit_status)
    everyone = distributed.gather_objects(mine)
    if failed is not None:
        raise failed
    assert found is not None
    if any(status for _, status in everyone):
        raise SystemExit(max(status for _, status in everyone))
    if len({sha256 for sha256, _ in everyone}) > 1:
        raise UserError(
            f"model.weights {model.weights} is not the same for all processes",
            "all must begin from the same weights",
            "name a place that every machine sees",
        )
    return found


# -- what became another function ------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """How near the encoder that begins is to the one that was read, whose [CLS] joined elsewhere.

    Attributes:
        cls_after: Where [CLS] joins now.
        before: Where it did.
        images: How many were compared.
        patches: Mean cosine of patch tokens after the final norm.
        cls: Of [CLS], or of what stands for an image.
    """

    cls_after: int
    before: int
    images: int
    patches: float
    cls: float

    @property
    def line(self) -> str:
        where = f"after block {self.before}" if self.before else "from the start"
        return (
            f"[CLS] joins after block {self.cls_after}, in the weights {where}: another function. "
            f"Mean cosine to theirs over {counted(self.images, 'training image')}: patch tokens "
            f"{self.patches:.4f}, [CLS] {self.cls:.4f}; model.cls_after={self.before} keeps it "
            "exact"
        )

    def record(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {
            "cls_after": self.cls_after,
            "cls_after_of_weights": self.before,
            "images": self.images,
            "patches": self.patches,
            "cls": self.cls,
        }


@torch.no_grad()
def moved(
    beginning: Beginning, cls_after: int | None, source: ImageSource, device: torch.device
) -> Moved | None:
    """Compare the encoder that begins with the one that was read, on training images.

    Args:
        beginning: What is begun from.
        cls_after: Where [CLS] joins now.
        source: Training images.
        device: Where it is computed, in float32.

    Returns:
        None where [CLS] joins as it did: they are the same function.
    """
    theirs = beginning.weights.loaded.encoder.cls_after
    if cls_after == theirs or cls_after is None or theirs is None:
        return None
    recipe = beginning.recipe
    size = recipe.data.image_size
    new = Encoder.from_model(recipe.model, image_size=size, cls_after=cls_after).eval()
    put(beginning.weights.loaded.encoder, new)
    new = new.to(device)
    old = copy.deepcopy(new)
    old.cls_after = theirs
    chosen = numpy_generator(recipe.seed, "weights").permutation(len(source))[:_COMPARED]
    batches = evaluation_batches(
        source,
        image_size=size,
        indices=chosen.tolist(),
        batch_size=_COMPARED,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=device,
        workers=0,
    )
    patches, cls = [], []
    for images in batches:
        ours, before = _outputs(new, images), _outputs(old, images)
        patches.append(F.cosine_similarity(ours[0], before[0], dim=-1).double().cpu())
        cls.append(F.cosine_similarity(ours[1], before[1], dim=-1).double().cpu())
    return Moved(
        cls_after,
        theirs,
        len(chosen),
        float(torch.cat(patches).mean()),
        float(torch.cat(cls).mean()),
    )


def _outputs(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch tokens [B, h·w, D] after the final norm, and what stands for an image, [B, D]."""
    found = encoder(images, (encoder.depth,))
    tokens = found.grids[encoder.depth].flatten(2).transpose(1, 2)
    return encoder.norm(tokens), found.cls

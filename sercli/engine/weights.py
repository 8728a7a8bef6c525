"""The weights that a run begins from: read, held to their hash, put into what is trained.

Where [CLS] joins elsewhere than it did, the encoder is another function: `moved` says how far off.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli import distributed
from sercli.data.loading import evaluation_batches
from sercli.data.source import ImageSource
from sercli.encoders.asked import as_recipe_keys
from sercli.encoders.loading import LoadedEncoder, encoder_sha256, read_encoder
from sercli.encoders.vit import Encoder
from sercli.errors import SerError, UserError
from sercli.objective import Objective
from sercli.randomness import numpy_generator
from sercli.recipe.model import TIMM, Model, WeightsAs
from sercli.recipe.schema import Recipe
from sercli.runs.files import file_sha256
from sercli.runs.lease import refuse_if_leased
from sercli.runs.reading import shown
from sercli.runs.run_dir import RunDir
from sercli.visible import counted

DIGITS = 12  # of a hash in a line
_COMPARED = 16  # images: a mean of thousands of tokens, in seconds on a CPU


@dataclass(frozen=True)
class Weights:
    """Weights as they were read.

    Attributes:
        loaded: The encoder, and where it is from.
        sha256: Of the file it was read from; of the encoder itself, if it is a model of timm's.
    """

    loaded: LoadedEncoder
    sha256: str


# -- reading ---------------------------------------------------------------------------------------


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
            f"model.weights {name} is not what it was: its SHA-256 is {sha256[:DIGITS]}…, "
            f"model.weights_sha256 {shown(str(model.weights_sha256)[:DIGITS])}…",
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
    loaded: LoadedEncoder,
    recipe: Recipe,
    cls_after: int | None,
    source: ImageSource,
    device: torch.device,
) -> Moved | None:
    """Compare the encoder that begins with the one that was read, on training images.

    Args:
        loaded: What is begun from.
        recipe: Resolved.
        cls_after: Where [CLS] joins now.
        source: Training images.
        device: Where it is computed, in float32.

    Returns:
        None where [CLS] joins as it did: they are the same function.
    """
    theirs = loaded.encoder.cls_after
    if cls_after == theirs or cls_after is None or theirs is None:
        return None
    size = recipe.data.image_size
    new = Encoder.from_model(recipe.model, image_size=size, cls_after=cls_after).eval()
    put(loaded.encoder, new)
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

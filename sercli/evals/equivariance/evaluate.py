"""Equivariance score: do token maps follow rotations, mirrors and changes of scale?

For a layer l and a transformation g, F = f_l(x) and A = ρ_g⁻¹ f_l(g x), patch tokens only. With F̃
and Ã the maps without each image's spatial mean, ES = 2Σ⟨F̃,Ã⟩ / (Σ‖F̃‖² + Σ‖Ã‖²), sums over images.

1 is exact, 0 is what shuffled tokens have. A randomly initialised network is far above 0, so every
score stands beside that of a random twin, its floor. A map without spatial variance (energy below
1e-4) follows every g trivially: its scores are undefined, None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli.data import ImageSource
from sercli.data.loading import evaluation_batches
from sercli.data.subset import class_settings
from sercli.encoders.loading import LoadedEncoder
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals.common import (
    RESAMPLES,
    Metrics,
    Outcome,
    Progress,
    model_of,
    resample_weights,
)
from sercli.evals.equivariance.sums import TRANSFORMATIONS, Array, Sums, accumulate
from sercli.metrics import UNDEFINED_ENERGY
from sercli.protocols.contract import PRECISION
from sercli.protocols.equivariance import PROTOCOL
from sercli.randomness import numpy_generator
from sercli.runs.result import Result
from sercli.statistics import CONFIDENCE, resampled_ends

NUM_IMAGES = 512
SEED = 0  # of the sample of images, of the resamples, of the shuffled tokens and of the twin
_NAMES = tuple(g.name for g in TRANSFORMATIONS)
# Every metric name that ends a `…/block03/`, and the transformations it is the mean of.
COLUMNS: dict[str, tuple[int, ...]] = {
    **{name: (index,) for index, name in enumerate(_NAMES)},
    "rotation": tuple(i for i, g in enumerate(TRANSFORMATIONS) if g.rot90),
    "scale": tuple(i for i, g in enumerate(TRANSFORMATIONS) if g.scale != 1),
    "mean": tuple(range(len(TRANSFORMATIONS))),
}
# Without ρ_g, tokens of an image of another scale lie on another grid: nothing to compare.
_WITHOUT_ACTION = {
    name: members
    for name, members in COLUMNS.items()
    if all(TRANSFORMATIONS[i].scale == 1 for i in members)
}


# -- Scores ---------------------------------------------------------------------------------------


def metrics(model: Sums, twin: Sums, layers: Sequence[int]) -> Metrics:
    """All scores by name, such as `es/block03/rot90`; undefined ones are None.

    `es` and `es_random` (the twin's) have `/low` and `/high`: percentile bootstrap over images
    (`statistics.resampled_ends`), the same resamples for every layer, transformation and encoder.
    """
    count = model.product.shape[1]
    weights = resample_weights(PROTOCOL.name, count) if count > 1 else None
    values: Metrics = {}
    for family, table in _families(model).items():
        columns = _WITHOUT_ACTION if family in ("es_identity", "gain") else COLUMNS
        values |= _named(family, table, layers, columns)
    values |= _named("es_random", _score(twin.product, twin), layers, COLUMNS)
    if weights is not None:
        for family, sums in (("es", model), ("es_random", twin)):
            values |= _intervals(family, sums, weights, layers)
    values |= {
        f"energy/{_block(layer)}": float(model.energy[i, 0]) for i, layer in enumerate(layers)
    }
    return {name: values[name] for name in sorted(values)}


def _families(sums: Sums) -> dict[str, Array]:
    """Family → [L, G], NaN where undefined."""
    score, identity = _score(sums.product, sums), _score(sums.unmoved, sums)
    pairs = sums.observed[:, :-1, None] + sums.moved[:, 1:]
    return {
        "es": score,
        "es_identity": identity,
        "gain": score - identity,
        "es_other_image": _ratio(2 * sums.other_image[:, 1:].sum(1), pairs.sum(1))
        + _undefined(sums),
        "es_shuffled": _score(sums.shuffled, sums),
        "cosine_raw": sums.cosine.mean(1),
    }


def _score(product: Array, sums: Sums) -> Array:
    """[L, G], the ratio of the sums over images."""
    return _ratio(2 * product.sum(1), sums.denominator.sum(1)) + _undefined(sums)


def _undefined(sums: Sums) -> Array:
    """[L, G], NaN where either map hardly varies over the image, 0 elsewhere."""
    least = np.minimum(sums.energy[:, :1], sums.energy[:, 1:])
    return np.where(least < UNDEFINED_ENERGY, np.nan, 0.0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)


def _intervals(family: str, sums: Sums, weights: Array, layers: Sequence[int]) -> Metrics:
    numerator, denominator = (
        np.einsum("rn,lng->rlg", weights, values, optimize=True)
        for values in (sums.numerator, sums.denominator)
    )
    resampled = _ratio(numerator, denominator) + _undefined(sums)
    images = sums.product.shape[1]
    values: Metrics = {}
    for name, members in COLUMNS.items():
        ends = resampled_ends(resampled[..., members].mean(-1), images=images)
        for end, bounds in zip(("low", "high"), ends, strict=True):
            values |= {
                f"{family}/{_block(layer)}/{name}/{end}": _number(bound)
                for layer, bound in zip(layers, bounds, strict=True)
            }
    return values


def _named(
    family: str, table: Array, layers: Sequence[int], columns: dict[str, tuple[int, ...]]
) -> Metrics:
    return {
        f"{family}/{_block(layer)}/{name}": _number(row[list(members)].mean())
        for layer, row in zip(layers, table, strict=True)
        for name, members in columns.items()
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _block(layer: int) -> str:
    return f"block{layer:02d}"


# -- The protocol ---------------------------------------------------------------------------------


def evaluate(
    loaded: LoadedEncoder,
    source: ImageSource,
    *,
    runtime: Runtime,
    layers: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Score an encoder and its random twin on a seeded sample of 512 images.

    Beside the result stand the sums over each image that it rests on (see `Sums`).

    Args:
        loaded: The encoder; it is moved to the runtime's device.
        source: Images.
        runtime: Where to compute, and the precision of the encoder; maps are moved in float32,
            sums are taken in float64.
        layers: Blocks, 0 (the embedding) to depth; None: all.
        image_size: (H, W) in pixels, multiples of the patch; None: the size it was trained on.
        batch_size: Images at a time; each is encoded 14 times.
        limit: At most this many of the 512; the result is partial then.
        workers: Loader processes; None: by the number of cores.
        progress: Called with what is done, how many images are, and of how many.

    Raises:
        UserError: No such layer, or a size that does not fit.
    """
    # Drawn on the CPU, where a seed gives the same weights on every machine.
    twin = loaded.encoder.cpu().random_twin(SEED).to(runtime.device).eval().requires_grad_(False)
    encoder = loaded.encoder.to(runtime.device)
    layers = checked_layers(layers, encoder.depth)
    size = image_size or (loaded.image_size, loaded.image_size)
    indices = sample(source, limit)
    batches = square_batches(loaded, source, indices, size, batch_size, runtime.device, workers)
    model, floor = accumulate(
        [encoder, twin],
        _reported(batches, len(indices), progress),
        layers,
        runtime=runtime,
        seed=SEED,
    )
    result = Result(
        protocol={
            "name": PROTOCOL.name,
            "variant": None,
            "version": 2,
            "settings": {**_settings(source.split, image_size), **class_settings(source)},
        },
        model=model_of(loaded, runtime),
        data=_seen(source, indices, size),
        metrics=metrics(model, floor, layers),
    )
    identities = np.array([source.identifier(index) for index in indices])
    return Outcome(result, {"image_ids": identities, **_arrays(layers, model, floor)})


def _seen(source: ImageSource, indices: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Which images were scored, as the result has it."""
    return {
        "path": source.name,
        "n": len(indices),
        "partial": len(indices) < min(NUM_IMAGES, len(source)),
        "split": source.split,
        "image_size": list(size),
    }


def _arrays(layers: Sequence[int], model: Sums, twin: Sums) -> dict[str, NDArray[Any]]:
    names = {"layers": np.array(layers), "transformations": np.array(_NAMES)}
    return names | {
        f"{prefix}{field.name}": getattr(sums, field.name)
        for prefix, sums in (("", model), ("random_", twin))
        for field in fields(Sums)
    }


def _settings(split: str, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """The rule, all of it hashed; nothing that follows from the model."""
    return {
        "transformations": list(_NAMES),
        "tokens": "patches, raw block outputs",
        "centring": "spatial mean of each image",
        "undefined_energy": UNDEFINED_ENERGY,
        "split": split,
        "images": NUM_IMAGES,
        "image_size": "of training" if image_size is None else list(image_size),
        "resize": "256/224 of the longer side, bicubic, central crop",
        "scaled_grid": "rounded to patches",
        "scaled_images": "bicubic, antialiased",
        "scaled_tokens": "bicubic",
        "precision": PRECISION,
        "interval": "percentile bootstrap over images",
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


def checked_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    chosen = sorted(set(range(depth + 1) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] > depth:
        raise UserError(
            f"layers {', '.join(map(str, chosen)) or 'none'}",
            f"they must be in 0…{depth}, where 0 is the embedding",
        )
    return chosen


def sample(source: ImageSource, limit: int | None = None) -> list[int]:
    """The images scored: 512 in a seeded order (so that neighbours are of any class)."""
    order = numpy_generator(SEED, "equiv-score", "images").permutation(len(source))
    indices: list[int] = order[:NUM_IMAGES][:limit].tolist()
    return indices


def square_batches(
    loaded: LoadedEncoder,
    source: ImageSource,
    indices: Sequence[int],
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    workers: int | None,
) -> Iterable[Tensor]:
    """Normalised [B, 3, H, W]: the centre of the square evaluation crop of side max(H, W)."""
    side = max(size)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    for images in evaluation_batches(
        source,
        image_size=side,
        indices=indices,
        batch_size=batch_size,
        mean=loaded.mean,
        std=loaded.std,
        device=device,
        workers=workers,
    ):
        yield images[:, :, top : top + size[0], left : left + size[1]]


def _reported(batches: Iterable[Tensor], total: int, progress: Progress | None) -> Iterable[Tensor]:
    done = 0
    for images in batches:
        yield images
        done += len(images)
        if progress is not None:
            progress("equiv-score", done, total)

"""kNN on frozen features: DINO's protocol.

Features are [CLS] after the final norm, L2-normalised; `neighbours` says how they vote.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli import distributed
from sercli.data import ImageSource
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, evaluation_batches
from sercli.data.source import require_labels
from sercli.data.subset import class_settings, share_of_each
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.evals.common import (
    HELD_OUT,
    SEED,
    Metrics,
    Outcome,
    Progress,
    at_most,
    commonest_share,
    hold_out,
    model_of,
)
from sercli.evals.neighbours import NEIGHBOURS, REPORTED, TEMPERATURE, KnnScore, Votes, vote
from sercli.protocols.contract import PRECISION
from sercli.protocols.knn import PROTOCOL
from sercli.randomness import numpy_generator
from sercli.runs.result import Result
from sercli.statistics import CONFIDENCE

# -- Features -------------------------------------------------------------------------------------


def extract(
    encoder: Encoder,
    source: ImageSource,
    *,
    runtime: Runtime,
    image_size: int,
    indices: Sequence[int] | None = None,
    batch_size: int = 256,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """[CLS] after the final norm of the images, and their labels.

    The encoder is in evaluation mode meanwhile and left as it was.

    Args:
        encoder: What gives the features; it is on the runtime's device.
        source: Images.
        runtime: Where, and in which precision, it encodes.
        image_size: Side in pixels.
        indices: Which images; None: all.
        batch_size: Images at a time.
        mean, std: Normalisation of the input.
        workers: Loader processes; None: by the number of cores.
        progress: Called with the split, the images done, and all of them.

    Returns:
        float32 [N, D] on the encoder's device, int64 [N] on the same.
    """
    features, labels = _extract_each(
        (encoder,),
        source,
        runtime=runtime,
        indices=range(len(source)) if indices is None else indices,
        image_size=image_size,
        batch_size=batch_size,
        mean=mean,
        std=std,
        workers=workers,
        progress=progress,
    )
    return features[0], labels


def _extract_each(
    encoders: Sequence[Encoder],
    source: ImageSource,
    *,
    runtime: Runtime,
    indices: Sequence[int],
    image_size: int,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Tensor], Tensor]:
    """`extract` for several encoders, reading each image once."""
    device = runtime.device
    features = [torch.empty(len(indices), encoder.dim, device=device) for encoder in encoders]
    batches = evaluation_batches(
        source,
        image_size=image_size,
        indices=indices,
        batch_size=batch_size,
        mean=mean,
        std=std,
        device=device,
        workers=workers,
    )
    done = 0
    with ExitStack() as stack, torch.no_grad():
        for encoder in encoders:
            stack.enter_context(_evaluating(encoder))
        for images in batches:
            rows = slice(done, done + len(images))
            for encoder, table in zip(encoders, features, strict=True):
                with runtime.autocast():
                    table[rows] = encoder(images).cls
            done += len(images)
            if progress is not None:
                progress(source.split, done, len(indices))
    return features, torch.from_numpy(source.labels[np.asarray(indices, np.int64)]).to(device)


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# -- The protocol ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnnOutcome(Outcome):
    """A result, and the prediction for each query: image_ids, labels, predictions [M] (k = 20).

    Attributes:
        chance: Percent right for always naming the bank's most frequent class.
    """

    chance: float


@dataclass(frozen=True)
class _Images:
    """Images that are encoded, and which of them.

    Attributes:
        source: Where the images are read, and their labels.
        indices: Ascending.
        whole: How many a limit left to choose from.
    """

    source: ImageSource
    indices: NDArray[np.int64]
    whole: int

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of those images."""
        return self.source.labels[self.indices]

    @property
    def partial(self) -> bool:
        """Whether a limit leaves any out."""
        return len(self.indices) < self.whole


def evaluate(
    loaded: LoadedEncoder,
    train: ImageSource,
    val: ImageSource | None,
    *,
    runtime: Runtime,
    batch_size: int = 256,
    limit: int | None = None,
    shots: float | None = None,
    floor: bool = True,
    image_size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> KnnOutcome:
    """Classify val images by their neighbours in train; every rank gets the same outcome.

    Ranks take turns with the images: each encodes its share of the bank, which all then hold, and
    of the queries, which it classifies.

    Args:
        loaded: The encoder; it is moved to the runtime's device.
        train: Images of the bank, whose labels vote.
        val: The queries; None: a seeded fifth of each class of `train`, which leaves the bank.
        runtime: Where to compute, and the precision of the encoder; what follows is float32.
        batch_size: Images encoded at once.
        limit: At most this many images of the bank and of the queries each; the result is partial
            if that leaves any out.
        shots: Share of each class that the bank has, with at least one image; None: all.
        floor: Score a randomly initialised twin of the encoder as well.
        image_size: Side in pixels, a multiple of the patch; None: what it was trained on.
        workers: Loader processes; None: by the number of cores.
        progress: Called with the split, the images done, and all of them.

    Raises:
        UserError: The images have no labels, no class of `train` has two images to hold one out,
            or `image_size` does not fit the patch.
    """
    for source in (train, *(() if val is None else (val,))):
        require_labels(source, "kNN")
    loaded = loaded.at(image_size)
    bank, queries = _images(train, val, limit, shots=shots)
    features = functools.partial(
        _own_features,
        loaded,
        _encoders(loaded, runtime, floor=floor),
        runtime=runtime,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    own_bank, own_bank_labels = features(images=bank)
    own_queries, own_labels = features(images=queries)
    bank_labels = distributed.gather_in_order(own_bank_labels, len(bank.indices))
    scores = []
    for own_part, asking in zip(own_bank, own_queries, strict=True):
        known = distributed.gather_in_order(own_part, len(bank.indices))
        voted = vote(known, bank_labels, asking, own_labels, num_classes=len(train.classes))
        scores.append(_gathered(voted, len(queries.indices)))
    protocol = _protocol(train, held_out=val is None, image_size=image_size, shots=shots)
    return _outcome(protocol, loaded, runtime, bank, queries, scores)


def _encoders(loaded: LoadedEncoder, runtime: Runtime, *, floor: bool) -> list[Encoder]:
    """The encoder and its random twin, or it alone, on the device."""
    encoders = [loaded.encoder]
    if floor:
        # Drawn on the CPU, where a seed gives the same weights on every machine.
        encoders.append(loaded.encoder.cpu().random_twin(SEED))
    return [encoder.to(runtime.device) for encoder in encoders]


def _outcome(
    protocol: dict[str, Any],
    loaded: LoadedEncoder,
    runtime: Runtime,
    bank: _Images,
    queries: _Images,
    scores: Sequence[dict[int, KnnScore]],
) -> KnnOutcome:
    result = Result(
        protocol=protocol,
        model=model_of(loaded, runtime),
        data={
            "path": bank.source.name,
            "n": len(queries.indices),
            "bank": len(bank.indices),
            "partial": bank.partial or queries.partial,
            "image_size": loaded.image_size,
        },
        metrics=_metrics(scores),
    )
    identities = [queries.source.identifier(index) for index in queries.indices.tolist()]
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array(identities),
        "labels": queries.labels,
        "predictions": scores[0][REPORTED].predictions.numpy(),
    }
    return KnnOutcome(result, arrays, commonest_share(queries.labels, known=bank.labels))


def _images(
    train: ImageSource, val: ImageSource | None, limit: int | None, *, shots: float | None
) -> tuple[_Images, _Images]:
    """The bank, or a share of it, and the queries, at most `limit` of each."""
    if val is None:
        bank, queries = hold_out(train)
    else:
        bank, queries = np.arange(len(train)), np.arange(len(val))
    if shots is not None:
        bank = share_of_each(train, bank, shots, seed=SEED)

    def some(source: ImageSource, indices: NDArray[np.int64]) -> _Images:
        draws = numpy_generator(SEED, "knn", "limit")
        return _Images(source, at_most(limit, indices, draws), len(indices))

    return some(train, bank), some(train if val is None else val, queries)


def _own_features(
    loaded: LoadedEncoder,
    encoders: Sequence[Encoder],
    images: _Images,
    *,
    runtime: Runtime,
    batch_size: int,
    workers: int | None,
    progress: Progress | None,
) -> tuple[list[Tensor], Tensor]:
    """Features by each encoder, and labels, of the images that are this rank's turn."""
    rank, world, count = distributed.rank(), distributed.world_size(), len(images.indices)

    def tell(what: str, done: int, _total: int) -> None:
        if progress is not None:
            progress(what, min(done * world, count), count)

    return _extract_each(
        encoders,
        images.source,
        runtime=runtime,
        indices=images.indices[rank::world].tolist(),
        image_size=loaded.image_size,
        batch_size=batch_size,
        mean=loaded.mean,
        std=loaded.std,
        workers=workers,
        progress=tell,
    )


def _gathered(voted: dict[int, Votes], count: int) -> dict[int, KnnScore]:
    """k → the score of all ranks' queries."""
    return {
        k: Votes(
            distributed.gather_in_order(one.ranks, count),
            distributed.gather_in_order(one.predictions, count),
        ).score()
        for k, one in voted.items()
    }


def _metrics(scores: Sequence[dict[int, KnnScore]]) -> Metrics:
    values: Metrics = {}
    for prefix, by_k in zip(("", "random/"), scores, strict=False):
        values |= by_k[REPORTED].right.metrics(prefix)
    for k, score in scores[0].items():
        values |= {f"k{k}/top1": score.top1, f"k{k}/top5": score.top5}
    return values


def _protocol(
    train: ImageSource, *, held_out: bool, image_size: int | None, shots: float | None
) -> dict[str, Any]:
    """The rule, all of it hashed; nothing that follows from the model."""
    settings = {
        "features": "[CLS] after the final norm, L2-normalised",
        "weight": "exp(cosine / temperature)",
        "temperature": TEMPERATURE,
        "k": list(NEIGHBOURS),
        "reported_k": REPORTED,
        "bank": "train without the queries" if held_out else "train",
        "queries": f"a seeded {HELD_OUT:.0%} of each class of train" if held_out else "val",
        "image_size": image_size or "of training",
        "resize": "256/224 of the side, bicubic, central crop",
        "precision": PRECISION,
        "interval": "Wilson over queries",
        "confidence": CONFIDENCE,
        "seed": SEED,
        **class_settings(train),
        **({} if shots is None else {"shots": shots}),
    }
    variant = None if shots is None else f"{100 * shots:g}pct"
    return {"name": PROTOCOL.name, "variant": variant, "version": 2, "settings": settings}

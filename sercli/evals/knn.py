"""Weighted nearest neighbours on frozen features: DINO's protocol.

Features are [CLS] after the final norm, L2-normalised. Each of a query's k nearest neighbours in
the bank votes for its class with exp(cosine / 0.07); the class with the most votes is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sercli import distributed
from sercli.data import ImageSource
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, evaluation_batches
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.evals.common import HELD_OUT, SEED, Progress, hold_out, limited
from sercli.runs.result import Result
from sercli.statistics import CONFIDENCE, wilson_interval

NEIGHBOURS = (10, 20, 100, 200)
REPORTED = 20
TEMPERATURE = 0.07
_TOP = 5
_QUERIES_AT_ONCE = 256
_BANK_AT_ONCE = 65536


# -- Pure functions of features -------------------------------------------------------------------


@dataclass(frozen=True)
class KnnScore:
    """How well neighbours tell the classes of M queries.

    Attributes:
        top1: Percent of the queries whose class has the most votes.
        top5: Percent whose class is among the five with the most votes, and has any.
        predictions: int64 [M], the class with the most votes; of several the first.
        correct1, correct5: Numbers of queries behind `top1` and `top5`.
    """

    top1: float
    top5: float
    predictions: Tensor
    correct1: int
    correct5: int


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    k: int = REPORTED,
    temperature: float = TEMPERATURE,
) -> KnnScore:
    """Classify `queries` by the votes of their k nearest neighbours in `bank`.

    A class without a vote is never counted as found. Of equally similar features those that stand
    first in the bank are nearer; where the bank is smaller than k, all of it votes. Memory is
    bounded whatever the sizes.

    Args:
        bank: float [N, D], N ≥ 1; need not be normalised.
        bank_labels: int64 [N], in 0…num_classes−1.
        queries: float [M, D], M ≥ 1, on the same device.
        labels: int64 [M].
        num_classes: Number of classes.
        k: Neighbours that vote.
        temperature: Of the weights exp(cosine / temperature).

    Raises:
        ValueError: Shapes do not fit, or there is nothing to compare.
    """
    scores = knn_scores(
        bank,
        bank_labels,
        queries,
        labels,
        num_classes=num_classes,
        ks=(k,),
        temperature=temperature,
    )
    return scores[k]


def knn_scores(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, KnnScore]:
    """`knn_accuracy` for several k from one search; arguments and errors as there."""
    if bank.dim() != 2 or queries.dim() != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank {tuple(bank.shape)}, queries {tuple(queries.shape)}: need [·, D]")
    if len(bank) != len(bank_labels) or len(queries) != len(labels):
        raise ValueError("a label for each feature is needed")
    if not len(bank) or not len(queries) or min(ks) < 1:
        raise ValueError(f"{len(bank)} in the bank, {len(queries)} queries, k {min(ks)}: need ≥ 1")
    told = _voted(bank, bank_labels, queries, labels, num_classes, ks, temperature)
    return {k: _score(*told[k]) for k in ks}


def _voted(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, tuple[Tensor, Tensor]]:
    """k → for each query the classes before its own (`_ranks`), and the class with most votes."""
    bank = F.normalize(bank, dim=1)
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    none = labels.new_empty(0)
    ranks: dict[int, list[Tensor]] = {k: [none] for k in ks}
    predictions: dict[int, list[Tensor]] = {k: [none] for k in ks}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        similarity, index = nearest(bank, F.normalize(queries[rows], dim=1), max(ks))
        logits = similarity.double() / temperature
        voters = bank_labels[index]
        for k in ks:
            votes = _log_votes(logits[:, :k], voters[:, :k], num_classes)
            predictions[k].append(votes.argmax(1))
            ranks[k].append(_ranks(votes, labels[rows]))
    return {k: (torch.cat(ranks[k]), torch.cat(predictions[k])) for k in ks}


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of the bank, most similar first, the first of equal ones first.

    Args:
        bank: [N, D], L2-normalised.
        queries: [M, D], L2-normalised.

    Returns:
        Cosines and indices, [M, min(k, N)] each.
    """
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), _BANK_AT_ONCE):
        similarity, index = _top_of(queries @ bank[start : start + _BANK_AT_ONCE].T, k)
        best = torch.cat([best, similarity], dim=1)
        where = torch.cat([where, index + start], dim=1)
        # Both parts hold the first of equals first, and so does a stable sort of the two.
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, where = best[:, :k], where.gather(1, order)[:, :k]
    return best, where


def _top_of(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk`, with the first of equal columns first: [M, min(k, N)] values and indices."""
    k = min(k, similarity.shape[1])
    values, index = similarity.topk(k, dim=1)
    # topk takes any of several equal columns, which matters where they straddle the k-th place…
    straddling = (similarity >= values[:, -1:]).sum(1) > k
    if straddling.any():
        exact = similarity[straddling].sort(dim=1, descending=True, stable=True)
        values[straddling], index[straddling] = exact.values[:, :k], exact.indices[:, :k]
    # … and returns them in any order.
    index, order = index.sort(dim=1)
    values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, by_value)


def _log_votes(logits: Tensor, voters: Tensor, num_classes: int) -> Tensor:
    """log Σ e^logit of each class's voters, [M, C]: in range at any temperature; −∞: no vote."""
    most = logits.new_full((len(logits), num_classes), -torch.inf)
    most.scatter_reduce_(1, voters, logits, "amax")
    sums = torch.zeros_like(most)
    sums.scatter_add_(1, voters, (logits - most.gather(1, voters)).exp_())
    return sums.log_().add_(most)


def _ranks(votes: Tensor, labels: Tensor) -> Tensor:
    """[M], how many classes come before the true one; all of them if it has no vote.

    Args:
        votes: [M, C], −∞ for none.
        labels: int64 [M].
    """
    own = votes.gather(1, labels[:, None])
    classes = torch.arange(votes.shape[1], device=votes.device)
    before = (votes > own) | ((votes == own) & (classes < labels[:, None]))
    return torch.where(own[:, 0] > -torch.inf, before.sum(1), votes.shape[1] + _TOP)


def _score(ranks: Tensor, predictions: Tensor) -> KnnScore:
    correct1, correct5 = int((ranks == 0).sum()), int((ranks < _TOP).sum())
    count = len(ranks)
    return KnnScore(
        100 * correct1 / count, 100 * correct5 / count, predictions.cpu(), correct1, correct5
    )


# -- Features -------------------------------------------------------------------------------------


def extract(
    encoder: Encoder,
    source: ImageSource,
    *,
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
        encoder: On any device.
        source: Images.
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
    indices: Sequence[int],
    image_size: int,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Tensor], Tensor]:
    """`extract` for several encoders on one device, reading each image once."""
    device = next(encoders[0].parameters()).device
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
class Outcome:
    """A result, and the prediction for each query.

    Attributes:
        arrays: image_ids [M], labels [M] and predictions [M] (k = 20).
        chance: Percent right for always naming the bank's most frequent class.
    """

    result: Result
    arrays: dict[str, NDArray[Any]]
    chance: float


def evaluate(
    loaded: LoadedEncoder,
    train: ImageSource,
    val: ImageSource | None,
    *,
    device: torch.device,
    batch_size: int = 256,
    limit: int | None = None,
    floor: bool = True,
    image_size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Classify val images by their neighbours in train; every rank gets the same outcome.

    Ranks take turns with the images: each encodes its share of the bank, which all then hold, and
    of the queries, which it classifies.

    Args:
        loaded: The encoder; it is moved to `device`.
        train: The bank.
        val: The queries; None: a seeded fifth of each class of `train`, which leaves the bank.
        device: Where to compute, in float32.
        batch_size: Images encoded at once.
        limit: At most this many images of the bank and of the queries each; the result is partial
            if that leaves any out.
        floor: Score a randomly initialised twin of the encoder as well.
        image_size: Side in pixels, a multiple of the patch; None: what it was trained on.
        workers: Loader processes; None: by the number of cores.
        progress: Called with the split, the images done, and all of them.

    Raises:
        UserError: No class of `train` has two images to hold one out, or `image_size` does not
            fit the patch.
    """
    loaded = loaded.at(image_size)
    if val is None:
        bank, queries = hold_out(train)
        asked = train
    else:
        bank, queries = np.arange(len(train)), np.arange(len(val))
        asked = val
    total = len(bank) + len(queries)
    bank, queries = limited(bank, limit), limited(queries, limit)
    encoders = [loaded.encoder]
    if floor:
        # Drawn on the CPU, where a seed gives the same weights on every machine.
        encoders.append(loaded.encoder.cpu().random_twin(SEED))
    encoders = [encoder.to(device) for encoder in encoders]

    rank, world = distributed.rank(), distributed.world_size()

    def features(source: ImageSource, indices: NDArray[np.int64]) -> tuple[list[Tensor], Tensor]:
        def tell(what: str, done: int, _total: int) -> None:
            if progress is not None:
                progress(what, min(done * world, len(indices)), len(indices))

        return _extract_each(
            encoders,
            source,
            indices=indices[rank::world].tolist(),
            image_size=loaded.image_size,
            batch_size=batch_size,
            mean=loaded.mean,
            std=loaded.std,
            workers=workers,
            progress=tell,
        )

    own_bank, own_bank_labels = features(train, bank)
    bank_labels = distributed.gather_in_order(own_bank_labels, len(bank))
    own_queries, own_labels = features(asked, queries)
    labels = distributed.gather_in_order(own_labels, len(queries))
    scores = []
    for own_part, asking in zip(own_bank, own_queries, strict=True):
        known = distributed.gather_in_order(own_part, len(bank))
        told = _voted(
            *(known, bank_labels, asking, own_labels),
            *(len(train.classes), NEIGHBOURS, TEMPERATURE),
        )
        scores.append(
            {
                k: _score(*(distributed.gather_in_order(one, len(queries)) for one in told[k]))
                for k in NEIGHBOURS
            }
        )
    result = Result(
        protocol={
            "name": "knn",
            "variant": None,
            "version": 1,
            "settings": _settings(held_out=val is None, image_size=image_size),
        },
        model=loaded.describe(),
        data={
            "path": train.name,
            "n": len(queries),
            "bank": len(bank),
            "partial": len(bank) + len(queries) < total,
            "image_size": loaded.image_size,
        },
        metrics=_metrics(scores, len(queries)),
    )
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array([asked.identifier(index) for index in queries.tolist()]),
        "labels": labels.cpu().numpy(),
        "predictions": scores[0][REPORTED].predictions.numpy(),
    }
    commonest = int(bank_labels.bincount().argmax())
    return Outcome(result, arrays, 100 * (labels == commonest).double().mean().item())


def _metrics(scores: Sequence[dict[int, KnnScore]], count: int) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for prefix, by_k in zip(("", "random/"), scores, strict=False):
        reported = by_k[REPORTED]
        for name, correct in (("top1", reported.correct1), ("top5", reported.correct5)):
            interval = wilson_interval(correct, count)
            values[f"{prefix}{name}"] = 100 * correct / count
            values[f"{prefix}{name}/low"] = 100 * interval.low
            values[f"{prefix}{name}/high"] = 100 * interval.high
    for k, score in scores[0].items():
        values |= {f"k{k}/top1": score.top1, f"k{k}/top5": score.top5}
    return values


def _settings(*, held_out: bool, image_size: int | None) -> dict[str, Any]:
    """The rule, all of it hashed; nothing that follows from the model."""
    return {
        "features": "[CLS] after the final norm, L2-normalised",
        "weight": "exp(cosine / temperature)",
        "temperature": TEMPERATURE,
        "k": list(NEIGHBOURS),
        "reported_k": REPORTED,
        "bank": "train without the queries" if held_out else "train",
        "queries": f"a seeded {HELD_OUT:.0%} of each class of train" if held_out else "val",
        "image_size": image_size or "of training",
        "resize": "256/224 of the side, bicubic, central crop",
        "precision": "float32",
        "interval": "Wilson over queries",
        "confidence": CONFIDENCE,
        "seed": SEED,
    }

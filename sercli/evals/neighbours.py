"""Weighted nearest neighbours: pure functions of features.

Each of a query's k nearest neighbours in the bank votes for its class with
exp(cosine / temperature); the class with the most votes is predicted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.evals.common import TOP, Right

NEIGHBOURS = (10, 20, 100, 200)
REPORTED = 20
TEMPERATURE = 0.07
_QUERIES_AT_ONCE = 256
_BANK_AT_ONCE = 65536


@dataclass(frozen=True)
class KnnScore:
    """How well neighbours tell the classes of M queries.

    Attributes:
        predictions: int64 [M], the class with the most votes; of several the first.
        right: Queries whose class has the most votes, and those whose class is among the five
            with the most votes, and has any.
    """

    predictions: Tensor
    right: Right

    @property
    def top1(self) -> float:
        """Percent."""
        return self.right.top1

    @property
    def top5(self) -> float:
        """Percent."""
        return self.right.top5


@dataclass(frozen=True)
class Votes:
    """What neighbours say of M queries.

    Attributes:
        ranks: int64 [M], classes before the true one; all of them where it has no vote.
        predictions: int64 [M], the class with the most votes.
    """

    ranks: Tensor
    predictions: Tensor

    def score(self) -> KnnScore:
        """Count what is right."""
        first, among_five = int((self.ranks == 0).sum()), int((self.ranks < TOP).sum())
        return KnnScore(self.predictions.cpu(), Right(first, among_five, len(self.ranks)))


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
        num_classes: How many classes labels may name, whether or not they occur.
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
    voted = vote(
        bank,
        bank_labels,
        queries,
        labels,
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
    )
    return {k: voted[k].score() for k in ks}


def vote(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, Votes]:
    """k → what the k nearest say; arguments as of `knn_accuracy`, but M may be 0."""
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    none = labels.new_empty(0)
    ranks: dict[int, list[Tensor]] = {k: [none] for k in ks}
    predictions: dict[int, list[Tensor]] = {k: [none] for k in ks}
    similarity, index = nearest(bank, queries, max(ks))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        logits = similarity[rows].double() / temperature
        voters = bank_labels[index[rows]]
        for k in ks:
            logs = _log_votes(logits[:, :k], voters[:, :k], num_classes)
            predictions[k].append(logs.argmax(1))
            ranks[k].append(_ranks(logs, labels[rows]))
    return {k: Votes(torch.cat(ranks[k]), torch.cat(predictions[k])) for k in ks}


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of the bank, most similar first, the first of equal ones first.

    Beside what is given and returned there are, at a time, one tile of cosines (256 × 65,536) with
    what finds its largest, that tile's normalised rows of the bank, and the normalised queries.

    Args:
        bank: [N, D]; need not be normalised.
        queries: [M, D], likewise.
        k: How many.

    Returns:
        Cosines and indices, [M, min(k, N)] each.
    """
    blocks = F.normalize(queries, dim=1).split(_QUERIES_AT_ONCE)
    index_of = functools.partial(torch.empty, dtype=torch.long, device=queries.device)
    best = [block.new_empty(len(block), 0) for block in blocks]
    where = [index_of(len(block), 0) for block in blocks]
    for start in range(0, len(bank), _BANK_AT_ONCE):
        tile = F.normalize(bank[start : start + _BANK_AT_ONCE], dim=1)
        for number, block in enumerate(blocks):
            similarity, index = _top_of(block @ tile.T, k)
            both = torch.cat([best[number], similarity], dim=1)
            places = torch.cat([where[number], index + start], dim=1)
            # Both parts hold the first of equals first, and so does a stable sort of the two.
            both, order = both.sort(dim=1, descending=True, stable=True)
            # Clones: a view would keep all of it.
            best[number] = both[:, :k].clone()
            where[number] = places.gather(1, order[:, :k])
    return torch.cat(best), torch.cat(where)


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
    return torch.where(own[:, 0] > -torch.inf, before.sum(1), votes.shape[1] + TOP)

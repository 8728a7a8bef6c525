"""What is measured while training: kNN accuracy and signs of collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sercli.data import has_split, open_source
from sercli.data.loading import evaluation_batches
from sercli.data.source import ImageSource
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.engine.trainer import Monitor
from sercli.evals.neighbours import knn_accuracy
from sercli.metrics import effective_rank, embedding_std
from sercli.randomness import numpy_generator
from sercli.recipe.schema import Recipe

BANK, QUERIES = 2048, 1024  # images, seeded samples
_BATCH = 256


def training_monitor(recipe: Recipe, source: ImageSource, runtime: Runtime) -> Monitor:
    """A function that measures an encoder on up to 2048 training and 1024 validation images.

    Without a validation split the queries are training images that are not in the bank. Without
    labels there is no kNN accuracy, and no bank. The numbers are for watching a run; `ser knn` is
    the protocol.
    """
    draws = numpy_generator(recipe.seed, "monitor")
    order = draws.permutation(len(source)).tolist()
    queries, query_indices = source, order[-min(QUERIES, len(order) // 5) :]
    bank_indices = order[: min(BANK, len(order) - len(query_indices))]
    if has_split(recipe.data.path, "val"):
        queries = open_source(
            recipe.data.path,
            "val",
            image_size=recipe.data.image_size,
            num_images=recipe.data.num_val,
            seed=recipe.seed,
            classes=recipe.data.classes,
            cache=recipe.data.cache,
        )
        query_indices = draws.permutation(len(queries))[:QUERIES].tolist()
        bank_indices = order[:BANK]

    def embed(encoder: Encoder, images: ImageSource, indices: list[int]) -> Tensor:
        batches = evaluation_batches(
            images,
            image_size=recipe.data.image_size,
            indices=indices,
            batch_size=_BATCH,
            mean=recipe.data.mean,
            std=recipe.data.std,
            device=runtime.device,
            workers=0,
        )
        with torch.no_grad(), runtime.autocast():
            return torch.cat([encoder(batch).cls.float() for batch in batches])

    def measure(encoder: Encoder) -> dict[str, float]:
        encoder.eval()
        bank = embed(encoder, source, bank_indices) if source.classes else None
        found = embed(encoder, queries, query_indices)
        encoder.train()
        signs = {
            "embedding_std": embedding_std(found) * math.sqrt(found.shape[1]),
            "effective_rank": effective_rank(found),
        }
        if bank is None:
            return signs
        score = knn_accuracy(
            bank,
            torch.from_numpy(source.labels[bank_indices]),
            found,
            torch.from_numpy(queries.labels[query_indices]),
            num_classes=len(source.classes),
        )
        return {"knn_top1": score.top1, **signs}

    return measure

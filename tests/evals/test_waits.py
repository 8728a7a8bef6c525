"""A batch of an evaluation does not wait for the device (marker nullgpu; support/nullgpu).

python tests/support/nullgpu/nullgpu.py -m pytest -n 0 -m nullgpu tests/evals/test_waits.py
"""

import sys

import numpy as np
import pytest
import torch

from sercli.engine.runtime import runtime_for
from sercli.evals.equivariance.evaluate import square_batches
from sercli.evals.equivariance.sums import accumulate
from sercli.evals.knn import extract
from sercli.evals.linear.classifiers import HeadRow
from sercli.evals.linear.features import Reader, plan_features
from sercli.evals.linear.training import HeldOut, Order, train_heads
from sercli.evals.robustness.classifier import CentreView, Classifier, Finite
from sercli.evals.robustness.reading import Reading, Viewed, best_classes
from sercli.signals import StopRequest
from tests.support import detection
from tests.support.paths import ROOT
from tests.support.pictures import Pictures

sys.path.insert(0, str(ROOT / "tests/support/nullgpu"))
import nullgpu

pytestmark = pytest.mark.nullgpu
CUDA = torch.device("cuda", 0)
BATCH = 8


@pytest.fixture(scope="module", autouse=True)
def _on_the_null_gpu():
    if not nullgpu.active():
        pytest.fail("these tests run by tests/support/nullgpu/nullgpu.py (see the module)")
    nullgpu.prepare_torch()


def by_knn(loaded, source, count):
    extract(
        loaded.encoder, source, runtime=runtime_for(CUDA), image_size=loaded.image_size,
        indices=range(count), batch_size=BATCH, workers=0,
    )  # fmt: skip


def reader_of(loaded):
    plan = plan_features(loaded.encoder, ["cls1", "cls4", "cls1+pooled"])
    runtime = runtime_for(CUDA)
    return Reader(loaded, plan, runtime, interpolation="bicubic", seed=0, at_once=BATCH, workers=0)


def by_the_probe(loaded, source, count):
    reader_of(loaded).table(source, np.arange(count), what="features")


def by_the_step_of_a_probe(loaded, source, count):
    order = Order(count, BATCH, 1, 0)
    reader = reader_of(loaded)
    row = HeadRow(
        "cls1", loaded.encoder.dim, learning_rates=[0.1], companions=[], num_classes=2, seed=0,
        device=CUDA,
    )  # fmt: skip
    held = HeldOut({"cls1": torch.zeros(4, loaded.encoder.dim)}, torch.zeros(4, dtype=torch.long))
    train_heads(
        {"cls1": row},
        lambda first: reader.batches(
            source, ([(int(i), 0) for i in some] for _, some in order.batches(first)), rows=BATCH
        ),
        plan=reader.plan, labels=torch.zeros(count, dtype=torch.long), order=order, held=held,
        request=StopRequest(), say=pytest.fail,
    )  # fmt: skip


def by_the_scores(loaded, source, count):
    size = (loaded.image_size, loaded.image_size)
    batches = square_batches(loaded, source, range(count), size, BATCH, CUDA, 0)
    accumulate([loaded.encoder], batches, [0, 3], runtime=runtime_for(CUDA))


def by_a_classifier(loaded, source, count):
    head = torch.nn.Linear(loaded.encoder.dim, 6).to(CUDA)
    classifier = Classifier(
        network=lambda images: head(loaded.encoder(images).cls), classes=tuple("abcdef"),
        image_size=loaded.image_size, view=CentreView(55, 48), mean=loaded.mean, std=loaded.std,
        device=CUDA, rule={}, model={},
    )  # fmt: skip
    best_classes(
        classifier, Viewed(source, classifier.view), np.arange(count), subset=None,
        reading=Reading(BATCH, workers=0), tell=lambda _: None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "evaluate", [by_knn, by_the_probe, by_the_step_of_a_probe, by_the_scores, by_a_classifier]
)
def test_a_batch_of_an_evaluation_waits_for_nothing(monkeypatch, evaluate):
    """Two that differ in their number of batches wait as often and copy as much from anywhere."""
    monkeypatch.setattr(Finite, "require", lambda _: None)
    loaded, source = detection.small_encoder(), Pictures(count=10 * BATCH)
    loaded.encoder.to(CUDA)
    found = []
    for batches in (1, 2, 8):  # the first makes constants
        nullgpu.reset()
        with nullgpu.waits() as waits:
            evaluate(loaded, source, batches * BATCH)
        counted = nullgpu.counters()
        found.append((dict(waits), counted["h2d_pageable"], counted["d2h"]))
    assert counted["h2d_pinned"] >= 8
    assert found[1] == found[2]

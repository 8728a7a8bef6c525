"""What evaluators write is what the contracts say: each metric, each quantity, each interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sercli.data import ShapesSource
from sercli.data.corruptions.catalogue import SEVERITIES
from sercli.data.masks.opening import open_masks
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.evals import knn
from sercli.evals.common import Right
from sercli.evals.detection.scores import KINDS, coco_scores, metrics_of
from sercli.evals.equivariance import evaluate as equivariance
from sercli.evals.linear import evaluate as linear
from sercli.evals.linear.probe import Options, prepare
from sercli.evals.robustness import scores
from sercli.evals.segmentation import evaluate as segmentation
from sercli.evals.segmentation import task as segmentation_task
from sercli.evals.segmentation.options import Options as SegmentationOptions
from sercli.protocols import PROTOCOLS
from sercli.protocols.contract import is_end
from sercli.recipe.schema import Model

CPU = torch.device("cpu")
Metrics = Mapping[str, float | None]


def loaded() -> LoadedEncoder:
    model = Model(name="vit_micro", patch_size=4, width=16, depth=4, num_heads=2)
    encoder = Encoder.from_model(model, image_size=16).initialise(1)
    return LoadedEncoder(encoder.eval(), "somewhere", "student", 9, 9, 16)


def shapes(split: str, count: int) -> ShapesSource:
    return ShapesSource(split, image_size=16, num_images=count)


def require_contract(name: str, results: Mapping[str, Metrics]) -> None:
    """Every metric of the results, by variant, is of a quantity, and every quantity is met."""
    protocol = PROTOCOLS[name]
    met = set()
    for variant, metrics in results.items():
        for metric, value in metrics.items():
            quantity = protocol.read(metric.rpartition("/")[0] or metric, variant).quantity
            if is_end(metric):
                assert quantity.interval is not None, metric
                continue
            assert protocol.measures(metric, variant), metric
            reading = protocol.read(metric, variant)
            met.add(reading.quantity)
            ends = {f"{metric}/low", f"{metric}/high"}
            assert ends <= metrics.keys() or reading.quantity.interval is None, metric
            assert reading.floor is None or reading.floor in metrics, metric
            if value is not None and reading.quantity.unit == "percent" and "ce" not in metric:
                assert 0 <= value <= 100, metric
    assert met == set(protocol.quantities)


def test_knn() -> None:
    outcome = knn.evaluate(
        loaded(), shapes("train", 40), shapes("val", 20), runtime=Runtime(CPU, None), workers=0
    )
    assert outcome.result.protocol["name"] == "knn"
    require_contract("knn", {"": outcome.result.metrics})
    values = outcome.result.metrics.values()
    assert max(value for value in values if value is not None) > 1  # percent, not shares


def test_linear() -> None:
    options = Options(learning_rates=(0.1,), epochs=1, batch_size=16)
    probe = prepare(loaded(), shapes("train", 40), shapes("val", 20), options)
    result = linear.evaluate(probe, runtime=Runtime(CPU, None), workers=0).result
    assert result.name == "linear-eval--ser"
    require_contract("linear-eval", {"ser": result.metrics})


def test_equivariance() -> None:
    outcome = equivariance.evaluate(
        loaded(), shapes("val", 4), runtime=Runtime(CPU, None), layers=[3], workers=0
    )
    assert outcome.result.protocol["name"] == "equiv-score"
    require_contract("equiv-score", {"": outcome.result.metrics})


def test_robustness() -> None:
    right = Right(3, 4, 5)
    cells = {(name, severity): right for name in ("fog", "snow") for severity in SEVERITIES}
    one = scores.Sequences(np.ones((2, 3), int), np.ones(2, int), np.full(2, 0.5), np.full(2, 3.0))
    sequences = scores.perturbation_metrics({"tilt": one})
    table = scores.Normalisers(fp={"tilt": 0.6}, ut5d={"tilt": 4.0})
    require_contract(
        "robustness",
        {
            "imagenet-r": right.metrics(),
            "imagenet-c": scores.corruption_metrics(cells, clean=70.0),
            "imagenet-c-otf": scores.corruption_metrics(cells),
            "imagenet-p": sequences,
            "imagenet-p-mfr": scores.normalised_metrics(sequences, table),
        },
    )
    assert scores.protocol("imagenet-r", {}, {})["name"] == "robustness"


@pytest.mark.parametrize("metric", ["pycocotools", "faster-coco-eval"])
def test_detection(metric: str) -> None:
    outline = [[4.0, 4.0, 40.0, 4.0, 40.0, 30.0, 4.0, 30.0]]
    box = {"bbox": [4.0, 4.0, 36.0, 26.0], "category_id": 7, "image_id": 1}
    truth = {
        "images": [{"id": 1, "height": 48, "width": 64}],
        "categories": [{"id": 7, "name": "cup/saucer"}],
        "annotations": [{**box, "id": 1, "iscrowd": 0, "area": 936.0, "segmentation": outline}],
    }
    runs = coco_mask.merge(coco_mask.frPyObjects(outline, 48, 64))
    found = [{**box, "score": 0.9, "segmentation": runs}]
    metrics = metrics_of(
        {kind: coco_scores(truth, found, kind=kind, metric=metric) for kind in KINDS}
    )
    if metric == "pycocotools":  # the only one that gives intervals
        require_contract("coco-detect", {"torchvision": metrics})
    assert all(PROTOCOLS["coco-detect"].measures(m) for m in metrics if not is_end(m))
    assert metrics["ap"] == pytest.approx(100)


def test_segmentation() -> None:
    train, val = (open_masks("shapes", split, image_size=16) for split in ("train", "val"))
    options = SegmentationOptions(layers=(3,), learning_rates=(0.01,), steps=2, limit=12)
    task = segmentation_task.prepare(loaded(), train, val, options)
    result = segmentation.evaluate(task, runtime=Runtime(CPU, None), workers=0).result
    assert result.name == "segment"
    require_contract("segment", {"": result.metrics})

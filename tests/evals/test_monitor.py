"""What is measured while training: which images are the bank and which the queries."""

import numpy as np
import pytest
import torch

from sercli.data import ImageSource
from sercli.engine.runtime import runtime_for
from sercli.evals import monitor
from sercli.families import addon_configs, method_configs
from sercli.recipe.files import from_mapping
from tests.support.encoder_files import small
from tests.support.pictures import Pictures


def split_of(source: ImageSource, monkeypatch, path):
    """(indices of the bank, of the queries) in the order they are read, and of which source."""
    tree = {
        "data": {"path": str(path)},
        "method": {"name": "moco"},
        "addon": {"name": "none"},
    }
    recipe = from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
    read = []

    def batches(images, *, indices, **_options):
        read.append((images, list(indices)))
        return iter([torch.rand(len(indices), 3, 32, 32)])

    monkeypatch.setattr(monitor, "evaluation_batches", batches)
    measure = monitor.training_monitor(recipe, source, runtime_for(torch.device("cpu")))
    found = measure(small(0))
    assert 0 <= found["knn_top1"] <= 100
    return read


@pytest.mark.parametrize("count", [10, 24, 1000, 2600])
def test_without_a_validation_split_queries_are_not_in_the_bank(monkeypatch, tmp_path, count):
    (tmp_path / "train").mkdir()
    (bank_of, bank), (queries_of, queries) = split_of(Pictures(count), monkeypatch, tmp_path)
    assert bank_of is queries_of
    assert not set(bank) & set(queries)
    assert len(set(bank)) == len(bank) == min(monitor.BANK, count - len(queries))
    assert len(set(queries)) == len(queries) == count // 5
    assert max([*bank, *queries]) < count
    assert np.all(np.array([*bank, *queries]) >= 0)

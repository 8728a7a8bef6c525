"""Shared by all tests: one thread, so that several workers share a small machine in peace."""

import importlib.util

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("detectron2") is not None:
        return
    skip = pytest.mark.skip(reason="needs detectron2, which is built from source (see the README)")
    for item in items:
        if item.get_closest_marker("detectron2") is not None:
            item.add_marker(skip)

"""Shared by all tests: one thread, so that several workers share a small machine in peace."""

import importlib.util
import os
import zlib
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

_STRICT = str(Path(__file__).parent / "support" / "strict")
if _STRICT not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    found = [_STRICT, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker runs all tests of a file: runs and groups that they share are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _draws_of_its_own(request):
    """What a test draws without a seed depends on the test alone, not on those that ran before."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("detectron2") is not None:
        return
    skip = pytest.mark.skip(
        reason="needs detectron2, which is built from source (see sercli/evals/README.md)"
    )
    for item in items:
        if item.get_closest_marker("detectron2") is not None:
            item.add_marker(skip)

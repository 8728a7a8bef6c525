"""Parquet and Arrow files are the same set as the class folders of their images."""

import numpy as np
import pytest
from tests.data.tables.conftest import CLASSES, features, jpeg, rows_of, table

from sercli.data import has_split, open_source
from sercli.data.registry import find_kind
from sercli.data.source import contents
from sercli.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def opened(path, split="train", **how):
    return open_source(str(path), split, image_size=16, **how)


def same(one, other):
    """Image i is the same image of the same class, called the same."""
    assert one.classes == other.classes
    assert np.array_equal(one.labels, other.labels)
    for index in range(len(other)):
        assert one.identifier(index) == other.identifier(index)
        assert np.array_equal(one.pixels(index), other.pixels(index))
        assert np.array_equal(one.load(index), other.load(index))


def test_parquet_of_the_hub_is_the_set_of_its_folders(parquet, folders):
    assert find_kind(str(parquet)).name == "parquet"
    assert find_kind(str(folders)).name == "folder"
    for split in ("train", "val"):
        assert has_split(str(parquet), split)
        same(opened(parquet, split), opened(folders, split))
        same(opened(parquet, split), opened(folders, split))  # from the list that was kept

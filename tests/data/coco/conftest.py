"""Trees in COCO's format."""

from pathlib import Path

import pytest

from tests.support.coco_tree import CocoTree, write_coco_tree


@pytest.fixture
def tree(tmp_path: Path) -> CocoTree:
    return write_coco_tree(tmp_path / "coco")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CocoTree:
    """One that no test changes."""
    return write_coco_tree(tmp_path_factory.mktemp("whole") / "coco")

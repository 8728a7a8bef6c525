"""A directory is looked at once, whoever asks; and anew once it has changed."""

import os
from collections import Counter

import pytest

from sercli.data.images.looking import look
from sercli.data.registry import find_kind
from tests.support.pictures import folder

LAYOUTS = {
    "folder": [f"{split}/n{k:08}/{k}.JPEG" for split in ("train", "val") for k in range(9)],
    "unlabelled": [f"{k}.jpg" for k in range(9)],
    "archives": [f"x-{split}-{k:04}.tar" for split in ("train", "val") for k in range(9)],
    "parquet": [f"data/train-{k:05}-of-00009.parquet" for k in range(9)],
    "list": ["train.csv", "val.csv", "images/1.png"],
}


@pytest.fixture
def listed(monkeypatch):
    """How often each directory was listed."""
    times, scandir = Counter(), os.scandir

    def counted(path):
        times[os.fsdecode(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    return times


def touch(root, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.mark.parametrize("kind", LAYOUTS)
def test_to_tell_a_kind_lists_a_directory_once(tmp_path, monkeypatch, listed, kind):
    root = touch(tmp_path / "set", LAYOUTS[kind])
    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    assert find_kind(str(root)).name == kind
    assert listed[str(root)] == 1
    assert set(listed.values()) == {1}
    assert find_kind(str(root)).name == kind
    assert set(listed.values()) == {1}


def test_what_has_just_changed_is_looked_at_anew(tmp_path, listed):
    root = touch(tmp_path / "set", ["a.jpg"])
    assert find_kind(str(root)).name == "unlabelled"
    before = listed[str(root)]
    touch(root, ["cat/b.jpg"])
    assert find_kind(str(root)).name == "folder"
    assert listed[str(root)] > before


def test_what_is_in_a_directory(tmp_path):
    root = folder(tmp_path / "set", "b/1.png", "a/1.png", "x.png", ".hidden/1.png")
    touch(root, ["z.tar", "y.TAR", "readme", "._x.png", "Thumbs.db"])
    (root / "c").symlink_to("a")
    (root / "loop").symlink_to("loop")
    (root / "lost").symlink_to("nowhere")
    found = look(root)
    assert found.folders == (b"a", b"b", b"c")
    assert found.files == (b"loop", b"lost", b"readme", b"y.TAR", b"z.tar")
    assert (found.images, found.an_image, found.flat) == (1, b"x.png", False)
    assert found.with_suffix("tar", "zip") == ["y.TAR", "z.tar"]
    with pytest.raises(OSError, match="No such file"):
        look(root / "none")

"""ImageNet's validation images in one folder: the set that class folders of them would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from sercli.data import has_split, open_source
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind, require_labelled
from sercli.data.source import contents
from tests.support.pictures import files_of, folder
from tests.support.refusals import refused

WNIDS = ("n03", "n01", "n02", "n01")
WNIDS = tuple(f"n0000000{wnid[-1]}" for wnid in WNIDS)
NAMES = tuple(f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    train = (f"train/{wnid}/{wnid}_1.JPEG" for wnid in sorted(set(WNIDS)))
    return folder(tmp_path / "imagenet", *train, *(f"val/{name}" for name in NAMES))


def opened(path, split="val"):
    return open_source(str(path), split, image_size=8)


@pytest.mark.parametrize("place", ["val/labels.txt", "labels.txt"])
def test_it_is_the_set_of_class_folders(root, tmp_path, place):
    (root / place).write_text("\n".join(WNIDS))
    folders = folder(
        tmp_path / "folders",
        *(f"train/{wnid}/{wnid}_1.JPEG" for wnid in set(WNIDS)),
        *(f"val/{wnid}/{name}" for wnid, name in zip(WNIDS, NAMES, strict=True)),
    )
    found, expected = opened(root), opened(folders)
    assert files_of(found) == files_of(expected)
    assert contents(found) == contents(expected)
    assert found.describe(0) == f"{root}/val/{NAMES[1]}"
    assert find_kind(str(root)).name == "folder"
    report = check_data(root, Reading(lambda *_: None))
    assert not report.problems
    assert [split.facts["classes"] for split in report.splits] == [3, 3]


def test_numbers_alone_do_not_tell_classes(root):
    refused(lambda: opened(root), "nothing in", "tells the classes of ImageNet's validation images")
    (root / "val" / "truth.txt").write_text("3\n1\n2\n1\n")
    refused(lambda: opened(root), "truth.txt has no meta.mat", "the numbers 1…1000", "the devkit's")
    report = check_data(root, Reading(lambda *_: None))
    assert "the devkit's" in report.problems[0]


def test_alone_it_is_a_set_with_labels_where_something_tells_them(root):
    val = root / "val"
    assert find_kind(str(val)).name == "unlabelled"
    assert opened(val, "train").classes == ()
    refused(lambda: require_labelled(str(val), "kNN"), "tells the classes of ImageNet's")
    (val / "labels.txt").write_text("\n".join(WNIDS))
    assert find_kind(str(val)).name == "folder"
    assert files_of(opened(val, "train")) == files_of(opened(root))
    assert not has_split(str(val), "val")
    assert opened(f"unlabelled:{val}", "train").classes == ()


def test_what_does_not_fit_is_refused(root):
    labels = Path(root / "labels.txt")
    labels.write_text("\n".join(WNIDS[:3]))
    refused(lambda: opened(root), f"{NAMES[3]} is image 4, and classes are told of 3 images")
    labels.write_text("\n".join([*WNIDS[:3], "n00000009"]))
    refused(lambda: opened(root), "1 class only in val/ (n00000009)")
    labels.write_text("\n".join(WNIDS))
    (root / "val" / NAMES[0]).rename(root / "val" / "z.JPEG")
    refused(lambda: opened(root), "val/z.JPEG lies among ImageNet's validation images")

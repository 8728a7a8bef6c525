"""Some of the classes, and a share of each: which images those are."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sercli.data import open_source
from sercli.data.source import contents
from sercli.data.subset import class_settings, share_of_each, with_classes, with_share
from sercli.engine.plan import make_plan
from sercli.engine.pretraining import training_source
from sercli.engine.runtime import runtime_for
from sercli.evals import monitor
from sercli.families import resolve
from tests.support.pictures import files_of, folder
from tests.support.refusals import refused
from tests.support.training import SER


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of 1, 10 and 40 images in train, one image each in val."""
    counts = {"cat": 1, "dog": 10, "newt": 40}
    names = [f"train/{name}/{k:02}.png" for name, count in counts.items() for k in range(count)]
    return folder(tmp_path / "set", *names, *(f"val/{name}/0.png" for name in counts))


def _open(path, split="train", **options):
    return open_source(str(path), split, image_size=8, **options)


def test_some_classes_in_the_order_of_the_set(root):
    whole, some = _open(root), _open(root, classes=("newt", "cat"))
    assert some.classes == ("cat", "newt")
    assert files_of(some) == [one for one in files_of(whole) if one[1] != "dog"]
    assert some.describe(1) == whole.describe(11)
    assert some.load(1).tobytes() == whole.load(11).tobytes()
    assert files_of(pickle.loads(pickle.dumps(some))) == files_of(some)
    assert files_of(_open(root, "val", classes=["dog"])) == [("dog/0.png", "dog")]
    with pytest.raises(IndexError):
        some.load(len(some))
    # The embedded world likewise.
    world = open_source("shapes", "train", image_size=16, num_images=50, classes=("star", "disc"))
    assert world.classes == ("disc", "star")
    assert len(world) == 10


@pytest.mark.parametrize("part", [{"classes": ["newt"]}, {"share": 0.5}])
def test_other_images_of_the_same_names_are_other_contents(root, part):
    before = contents(_open(root, **part))
    taken = _open(root, **part).describe(2)
    with open(taken, "ab") as file:
        file.write(b"more")
    assert before != contents(_open(root, **part))
    worlds = [
        open_source("shapes", "train", image_size=16, num_images=50, seed=seed, classes=["star"])
        for seed in (0, 1)
    ]
    assert contents(worlds[0]) != contents(worlds[1])


def test_a_class_that_is_not_there_is_named_with_the_nearest(root):
    refused(lambda: _open(root, classes=("cat", "dgo")), "has no class dgo", "did you mean dog?")
    refused(lambda: _open(root, classes=("x", "cat", "y")), "has no classes x, y", "3 classes")


def test_a_share_is_of_each_class_and_nested(root):
    whole = _open(root)
    found: dict[float, set[str]] = {}
    for share in (1e-9, 0.01, 0.1, 0.25, 0.5, 1.0):
        some = _open(root, share=share, seed=3)
        counts = np.bincount(some.labels, minlength=3).tolist()
        assert counts == [max(1, round(share * count)) for count in (1, 10, 40)]
        assert (some.classes, some.split) == (whole.classes, "train")
        found[share] = {name for name, _ in files_of(some)}
    ordered = list(found.values())
    assert all(less <= more for less, more in itertools.pairwise(ordered))
    assert {name for name, _ in files_of(_open(root, share=0.5, seed=4))} != found[0.5]


def test_a_share_of_a_class_does_not_depend_on_the_others(root):
    both = with_share(with_classes(_open(root), ("dog", "newt")), 0.3, seed=0)
    of_all = [one for one in files_of(with_share(_open(root), 0.3, seed=0)) if one[1] != "cat"]
    assert files_of(both) == of_all


def test_what_is_measured_on_stays_whole(root):
    with pytest.raises(ValueError, match="stays whole"):
        _open(root, "val", share=0.5)


def test_protocols_tell_classes_apart_and_nothing_else(root):
    whole = _open(root)
    assert class_settings(whole) == class_settings(_open(root, share=0.5)) == {}
    assert with_classes(whole, ("newt", "dog", "cat")) is whole
    few = class_settings(_open(root, classes=("cat", "dog")))
    assert few["classes"]["number"] == 2
    assert few == class_settings(with_share(with_classes(whole, ["dog", "cat"]), 0.5, seed=1))
    assert few != class_settings(_open(root, classes=("cat", "newt")))
    assert few == class_settings(_open(root, "val", classes=("cat", "dog")))


def test_a_share_of_some_indices(root):
    whole = _open(root)
    taken = share_of_each(whole, np.arange(1, 11), 0.5, seed=0)
    assert len(taken) == 5
    assert set(taken.tolist()) <= set(range(1, 11))


def test_a_recipe_trains_on_them_and_its_monitor_asks_about_them(root, monkeypatch):
    settings = ("data.classes=[newt, dog]", "data.share=0.5", "train.batch_size=8")
    flags = {"data.path": str(root)}
    kept = [one for one in SER if not one.startswith(("data.num", "train.batch"))]
    recipe = resolve("shapes/moco-ser", (*kept, *settings), flags).recipe
    source = training_source(recipe)
    assert source.classes == ("dog", "newt")
    assert np.bincount(source.labels).tolist() == [5, 20]
    assert make_plan(recipe, source, processes=1).num_images == 25
    opened = []
    real = monitor.open_source
    monkeypatch.setattr(monitor, "open_source", lambda *a, **k: opened.append(real(*a, **k)))
    with pytest.raises(TypeError):  # nothing was handed back
        monitor.training_monitor(recipe, source, runtime_for(torch.device("cpu")))
    assert files_of(opened[0]) == [("dog/0.png", "dog"), ("newt/0.png", "newt")]

"""The embedded world's scenes: what and where tell the class, and neither does alone."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from sercli.data.registry import open_detection, open_source, rendering_kind
from sercli.data.shapes.arrangements import ARRANGEMENTS, CLASSES, PLACES, SORTS
from sercli.data.shapes.settings import SCENES, SHAPES, Setting
from sercli.data.shapes.world import render

GOLDEN = Path(__file__).parents[2] / "golden/shapes_pictures.npz"


# -- both settings stay what they are ------------------------------------------------------------


@pytest.mark.parametrize("setting", [SHAPES, SCENES], ids=lambda setting: setting.name)
def test_pictures_are_those_of_every_version(setting: Setting) -> None:
    """`python tests/data/shapes/test_scenes.py` wrote the arrays when each setting was made.

    Another processor's sine may move a level of a pixel at an edge.
    """
    with np.load(GOLDEN) as kept:
        for name, made in _pictures(setting).items():
            apart = np.abs(made.astype(int) - kept[name])
            assert apart.max() <= 1, name
            assert (apart > 0).mean() < 1e-3, name


def _pictures(setting: Setting) -> dict[str, np.ndarray]:
    found = {}
    for index, objects, style in ((0, 1, "photo"), (17, 1, "photo"), (5, 7, "photo"),
                                  (3, 1, "rendition"), (4, 4, "sketch")):  # fmt: skip
        picture = render(7, "val", index, 48, objects=objects, style=style, setting=setting)
        found[f"{setting.name}-{index}-{style}"] = picture.image
        found[f"{setting.name}-{index}-{style}-masks"] = np.stack(
            [one.mask for one in picture.objects]
        )
    return found


# -- what and where --------------------------------------------------------------------------------


def _meaning(name: str) -> tuple[frozenset[str], str]:
    first, second, where = name.split("-")
    return frozenset((first, second)), where


def test_every_pair_comes_with_every_arrangement_equally_often() -> None:
    whats = [_meaning(name)[0] for name in CLASSES]
    wheres = [_meaning(name)[1] for name in CLASSES]
    assert len(CLASSES) == len(set(CLASSES)) == 60
    assert list(CLASSES) == sorted(CLASSES)
    # The best guess from what alone is right one time in six, from where alone one in ten.
    assert Counter(whats) == {frozenset(p): 6 for p in itertools.combinations(SORTS, 2)}
    assert Counter(wheres) == dict.fromkeys(ARRANGEMENTS, 10)
    labels = open_source("shapes:scenes", "val", image_size=16).labels
    assert len(labels) >= 2000
    counts = np.bincount(labels, minlength=60)
    assert counts.max() - counts.min() <= 1


def test_a_bag_of_objects_is_right_one_time_in_six_at_best() -> None:
    """Classes by what is in their pictures wherever it lies: six to a bag, all of one pair."""
    classes_of = defaultdict(set)
    for index in range(120):
        picture = render(3, "train", index, 48, setting=SCENES)
        bag = tuple(sorted(Counter(one.label for one in picture.objects).items()))
        assert [number for _, number in bag] == [4, 4]
        assert {SORTS[label] for label, _ in bag} == _meaning(CLASSES[picture.label])[0]
        classes_of[bag].add(picture.label)
    assert len(classes_of) == 10
    assert {len(classes) for classes in classes_of.values()} == {6}


def test_what_is_where_says_the_class() -> None:
    """Read off the boxes: the middle of each object is nearest to the place that it should be."""
    for index in range(120):
        picture = render(5, "val", index, 96, setting=SCENES)
        first, _, where = CLASSES[picture.label].split("-")
        middles = np.array([(x + w / 2, y + h / 2) for x, y, w, h in
                            (one.box for one in picture.objects)])  # fmt: skip
        middles -= middles.mean(axis=0)
        names = list(PLACES)
        at = [names[int(np.argmin([np.linalg.norm(m / 30 - PLACES[n]) for n in names]))]
              for m in middles]  # fmt: skip
        assert sorted(at) == sorted(names)
        lying = {n for n, one in zip(at, picture.objects, strict=True)
                 if SORTS[one.label] == first}  # fmt: skip
        mirrored = {n.translate(str.maketrans("EW", "WE")) for n in ARRANGEMENTS[where]}
        assert lying in (set(ARRANGEMENTS[where]), mirrored)


def test_no_turn_and_no_mirroring_makes_one_arrangement_another() -> None:
    def images(places: tuple[str, ...]) -> set[frozenset[tuple[int, int]]]:
        points = [PLACES[name] for name in places]
        found = set()
        for _ in range(4):
            points = [(-y, x) for x, y in points]
            found |= {frozenset(points), frozenset((-x, y) for x, y in points)}
        return found

    for one, other in itertools.combinations(ARRANGEMENTS, 2):
        assert not images(ARRANGEMENTS[one]) & images(ARRANGEMENTS[other]), (one, other)
        # Half of the four would have to move: the mirrored one is no nearer.
        near = max(
            len(set(ARRANGEMENTS[one]) & set(seen))
            for seen in (
                ARRANGEMENTS[other],
                [n.translate(str.maketrans("EW", "WE")) for n in ARRANGEMENTS[other]],
            )
        )
        assert near <= 2, (one, other)


def test_another_seed_is_another_world() -> None:
    assert rendering_kind("shapes:scenes") is not None
    first, second = (
        np.asarray(open_source("shapes:scenes", "train", image_size=48, seed=seed).load(5), int)
        for seed in (0, 1)
    )
    assert np.abs(first - second).mean() > 10


# -- detection -------------------------------------------------------------------------------------


def test_detection_has_many_small_objects_whose_boxes_surround_their_masks() -> None:
    source = open_detection("shapes:scenes", "val", image_size=128, seed=0)
    assert [one.name for one in source.categories] == list(SORTS)
    numbers = []
    for index in range(18):
        picture = source.render(index)  # type: ignore[attr-defined]
        assert np.sum([one.mask for one in picture.objects], axis=0).max() == 1
        numbers.append(len(picture.objects))
        for one in picture.objects:
            rows, columns = np.nonzero(one.mask)
            x, y, width, height = one.box
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert max(width, height) < 128 / 2
    assert sorted(set(numbers)) == list(range(4, 13))


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **_pictures(SHAPES), **_pictures(SCENES))

"""Segmentations that are sound, and those that pycocotools cannot be given."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sercli.data.coco.masks import run_lengths, segmentation_fault, sound_polygons

_SIZE = (32, 24)  # width, height
_SOUND = [1, 1, 10, 1, 10, 10]


def _runs(counts: Any, size: Any = (24, 32)) -> dict[str, Any]:
    return {"size": [*size], "counts": counts}


def _text(mask: NDArray[np.bool_]) -> str:
    coded: bytes = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return coded.decode()


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_text_of_run_lengths_says_what_pycocotools_wrote(mask: NDArray[np.bool_]) -> None:
    pixels = mask.ravel(order="F")
    counts = [len([*run]) for _, run in itertools.groupby(pixels)]
    expected = [0, *counts] if pixels[0] else counts
    found = run_lengths(_text(mask))
    assert found is not None
    assert found.tolist() == expected
    height, width = mask.shape
    assert segmentation_fault(_runs(_text(mask), mask.shape), (width, height)) == ""


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=20))
def test_large_run_lengths_are_read_from_text_too(counts: list[int]) -> None:
    coded = coco_mask.frPyObjects({"size": [1, 1], "counts": counts}, 1, 1)["counts"].decode()
    found = run_lengths(coded)
    assert found is not None
    assert found.tolist() == counts


@pytest.mark.parametrize("text", ["", "~", "zzzz~~~~", "0:n", "0Ā1", "0 1", "ooooooo1", "\x00"])
def test_other_text_is_none(text: str) -> None:
    assert run_lengths(text) is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [_SOUND],
        [_SOUND, [1, 2, 3, 4], [], [1, 2, 3, 4, 5, 6, 7]],
        [[-32, -24, 64, -24, 64, 48]],
        [[1.5, 1, 10.25, 1, 10, 10]],
        _runs([768]),
        _runs([0, 768]),
        _runs([5, 0, 0, 763]),
        {**_runs([768]), "more": [1]},
    ],
)
def test_what_is_sound(segmentation: Any) -> None:
    assert segmentation_fault(segmentation, _SIZE) == ""


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (None, "no segmentation; it must be polygons"),
        ([], "no segmentation of polygons of 3 points or more, but []"),
        (5, "the segmentation 5; it must be polygons"),
        (True, "the segmentation True; "),
        ("text", "the segmentation 'text'; "),
        ([1, 1, 10, 1, 10, 10], "1 in its segmentation; it must be polygons"),
        ([_SOUND, None], "None in its segmentation; it must be polygons"),
        ([[_SOUND]], "the coordinate [1, 1, 10, 1, 10, 10] in its segmentation; it must be a num"),
        ([[1, 1, None, 1, 10, 10]], "the coordinate None in"),
        ([[1, 1, "x", 1, 10, 10]], "the coordinate 'x' in"),
        ([[1, 1, True, 1, 10, 10]], "the coordinate True in"),
        ([_SOUND, [1, {}]], "the coordinate {} in"),
        ([[1, 1, float("nan"), 1, 10, 10]], "the x nan in its segmentation, which is further"),
        ([[float("nan"), 1, 2, 1, 10, 10]], "the x nan in its segmentation, which is further"),
        ([[1, 1, 2, float("inf"), 10, 10]], "the y inf in its segmentation, which is further"),
        ([[1, 1, 1e9, 1, 10, 10]], "the x 1000000000.0 in its segmentation, which is further "),
        ([[1, 1, 1e308, 1, 10, 10]], "the x 1e+308 in its segmentation, which is further outside"),
        ([[1, 1, 10**400, 1, 10, 10]], "the x 1000000000"),
        ([[1, 1, 2, -25, 10, 10]], "the y -25 in its segmentation, which is further outside its i"),
        ([[1, 1, 65, 1, 10, 10]], "the x 65 in its segmentation, which is further outside its ima"),
        ([[64, 0, -32, 48] * 50], "an outline of 9,700 points and pixels; no shape in an image o"),
        ([_SOUND] * 10_001, "a segmentation of 10,001 polygons; at most 10,000 are merged"),
        ({}, "run lengths of the size None; they must have its image's size, [24, 32] (height, wi"),
        (_runs([768], (32, 24)), "run lengths of the size [32, 24]; they must have its image's"),
        (_runs([768], (24.0, 32)), "run lengths of the size [24.0, 32]; they must"),
        ({"size": 768, "counts": [768]}, "run lengths of the size 768; they must"),
        (_runs([10, 20]), "run lengths that sum to 30; they must fill its image, 32 × 24 = 768 p"),
        (_runs([0, 10**400]), "run lengths that sum to 1000000000"),
        (_runs([10, 200000]), "run lengths that sum to 200010; they must fill"),
        (_runs([-5, 773]), "the run length -5; it must not be negative"),
        (_runs([]), "run lengths that sum to 0; "),
        (_runs([768.0]), "the run length 768.0; it must be a whole number"),
        (_runs([True, 767]), "the run length True; it must be a whole number"),
        (_runs([None]), "the run length None; it must be a whole number"),
        (_runs([[768]]), "the run length [768]; it must be a whole number"),
        (_runs(5), "the run lengths 5; they must be whole numbers or COCO's text"),
        (_runs({"a": 1}), "the run lengths {'a': 1}; they must be whole numbers or COCO's text"),
        (_runs("zzzz~~~~"), "the run lengths 'zzzz~~~~'; such text must be COCO's code of whole"),
        (_runs("0:n0"), "run lengths that sum to "),
        (_runs("0O0"), "the run length -1; it must not be negative"),
        (_runs(_text(np.ones((32, 24), bool))[:1]), "run lengths that sum to 0; they must fill"),
    ],
)
def test_what_is_not(segmentation: Any, said: str) -> None:
    fault = segmentation_fault(segmentation, _SIZE)
    assert fault.startswith(said)
    assert len(fault) < 200
    assert "\n" not in fault


def test_polygons_that_are_none_are_left_out() -> None:
    assert sound_polygons([[1, 2, 3, 4], _SOUND, [], _SOUND[:-1]]) == [_SOUND]


@given(
    st.lists(st.lists(st.floats(-24, 48, width=32), min_size=6, max_size=40), max_size=5).filter(
        lambda parts: any(len(part) % 2 == 0 for part in parts)
    )
)
def test_a_sound_outline_gives_a_mask_of_its_image(parts: list[list[float]]) -> None:
    assert segmentation_fault(parts, _SIZE) == ""
    merged = coco_mask.merge(coco_mask.frPyObjects(sound_polygons(parts), 24, 32))
    counts = run_lengths(merged["counts"].decode())
    assert counts is not None
    assert counts.sum() == 768
    assert counts.min() >= 0

"""Values that an annotation file may not hold, each refused in one line that names its entry."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sercli.data.coco.folder import CocoFolder, read_annotations
from sercli.data.coco.rules import read_listing
from sercli.errors import UserError
from tests.support.coco_tree import CocoTree
from tests.support.refusals import refused

_CONTENT: dict[str, Any] = {
    "images": [{"id": 3, "file_name": "3.jpg", "width": 32, "height": 24}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {
            "id": 7,
            "image_id": 3,
            "category_id": 1,
            "bbox": [1, 1, 9, 9],
            "area": 81,
            "iscrowd": 0,
            "segmentation": [[1, 1, 10, 1, 10, 10]],
        }
    ],
}
_NAN, _INFINITY, _HUGE = float("nan"), float("inf"), 10**400


def _faults(change: Callable[[Any], object], *, split: str = "train") -> list[str]:
    content = copy.deepcopy(_CONTENT)
    change(content)
    found: list[str] = []
    read_listing(content, found.append, split=split)
    assert all("\n" not in fault and len(fault) < 250 for fault in found)
    return found


def _set(key: str, value: Any, *, of: str = "annotations") -> Callable[[Any], object]:
    return lambda content: content[of][0].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda _content: None,
        _set("id", 2**63 - 1),
        _set("iscrowd", False),
        _set("area", 0),
        _set("area", 1e308),
        _set("bbox", [0.5, 0, 32.5, 24]),
        _set("more", {"deep": [[[[]]]]}),
        lambda c: (c["categories"][0].update(id=0), c["annotations"][0].update(category_id=0)),
        _set("name", "\x1b[31m\n[red]", of="categories"),
        _set("file_name", "a/b c/é.jpg", of="images"),
        _set("file_name", "..jpg", of="images"),
        _set("file_name", "x" * 255, of="images"),
        lambda content: content["annotations"][0].pop("iscrowd"),
    ],
)
def test_what_is_sound(change: Callable[[Any], object]) -> None:
    assert _faults(change) == []


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("id", (0, -1, 7.0, True, "7", None, [7], 2**63, _HUGE, _NAN), "annotation id {}"),
        ("image_id", (3.0, True, "3", None, [3], {}, 2**64 + 3, _NAN), "annotation 7 names image "),
        ("category_id", (1.0, True, "1", None, 2, _INFINITY), "annotation 7 has category {}, whi"),
        (
            "bbox",
            (
                *(None, [], [1, 1, 9], [1, 1, 9, 9, 9], "1199", {"x": 1}, [1, 1, -1, 9]),
                *([1, 1, 9, _NAN], [_INFINITY, 1, 9, 9], [1, 1, _HUGE, 9], [1, True, 9, 9]),
                *([1, 1, "9", 9], [1, 1, [9], 9]),
            ),
            "annotation 7 has the bbox {}; it must be x, y, width ≥ 0 and height ≥ 0, finite",
        ),
        (
            "bbox",
            ([1, 1, 1e308, 9], [-2.5, 1, 9, 9], [1, 20, 9, 9]),
            "annotation 7 has the box {}, which reaches ",
        ),
        (
            "area",
            (None, -1, _NAN, _INFINITY, _HUGE, "81", True, [81]),
            "annotation 7 has the area {}; it must be a finite number, 0 or more",
        ),
        ("iscrowd", (None, 2, -1, 0.0, 1.0, "0", [0]), "annotation 7 has the iscrowd {}; it must"),
        ("segmentation", (5, "x", True), "annotation 7 has the segmentation {}; it must be"),
    ],
)
def test_values_of_an_annotation(key: str, values: tuple[Any, ...], said: str) -> None:
    for value in values:
        shown = repr(value) if value is not _HUGE and "000000" not in repr(value) else None
        line = _faults(_set(key, value))[0]
        assert line.startswith(said.split("{}")[0])
        assert shown is None or shown in line
        assert said.split("{}")[-1] in line


@pytest.mark.parametrize(
    ("of", "key", "values", "said"),
    [
        ("images", "id", (-1, 3.0, True, "3", None, 2**63, _HUGE), "image id "),
        ("images", "width", (0, 32.0, True, "32", None, _HUGE, _NAN), "image 3 has the width "),
        ("images", "width", (10**9,), "image 3 has 1000000000 × 24 pixels; more than 178,956,970 "),
        ("images", "height", (0, -24, 24.5, []), "image 3 has the width 32 and the height "),
        (
            "images",
            "file_name",
            (
                *("", "/3.jpg", "../3.jpg", "a/../../3.jpg", "a/..", "3\0.jpg", "\ud800.jpg"),
                *("x" * 256, "x/" * 2500 + "x", "é" * 128, None, 3, ["3.jpg"]),
            ),
            "image 3 has the file_name ",
        ),
        ("categories", "id", (-1, 1.0, False, "1", None, 2**63), "category id "),
        ("categories", "name", (None, 1, ["a"], "\udfff"), "category 1 has the name "),
    ],
)
def test_values_of_an_image_and_of_a_category(
    of: str, key: str, values: tuple[Any, ...], said: str
) -> None:
    for value in values:
        assert _faults(_set(key, value, of=of))[0].startswith(said)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_entries_that_are_no_objects_are_twice_there_or_are_long(key: str) -> None:
    entries: tuple[Any, ...] = (None, 5, "text" * 1000, [[[[]]] * 100] * 100, True)
    for entry in entries:
        assert (
            "is no object with keys and values" in _faults(lambda c, e=entry: c[key].append(e))[0]
        )
    assert "is there twice" in _faults(lambda content: content[key].append(content[key][0]))[0]
    missing = _faults(lambda content: content[key].append({}))
    assert "id None; a " in missing[0]


def test_a_set_needs_an_object_that_can_be_used() -> None:
    crowd, flat, outside = (
        _set("iscrowd", 1),
        _set("bbox", [1, 1, 9, 0]),
        _set("bbox", [32, 1, 1, 1]),
    )
    for change in (crowd, flat, outside, lambda content: content["annotations"].clear()):
        assert _faults(change) == [
            "no annotation is an object to train on, with an area in its image; crowds are none"
        ]
    assert len(_faults(crowd, split="val")) == 1
    assert _faults(flat, split="val") == []  # it counts as one that is missed
    assert _faults(lambda content: content["images"].clear())[-1] == "it lists no images"


def test_what_is_wrong_is_no_part_of_the_listing() -> None:
    content = copy.deepcopy(_CONTENT)
    content["annotations"] += [{**content["annotations"][0], "id": 8, "area": None}]
    content["images"] += [{"id": 2, "file_name": "../2.jpg", "width": 1, "height": 1}]
    content["categories"] += [{"id": 0}]
    faults: list[str] = []
    listing = read_listing(content, faults.append, split="train")
    assert [line.split(";")[0] for line in faults] == [
        "category 0 has no name",
        "image 2 has the file_name '../2.jpg'",
        "annotation 8 has the area None",
    ]
    assert [*listing.categories] == [1]
    assert [*listing.images] == [3]
    assert listing.annotations == (_CONTENT["annotations"][0],)


# -- the JSON itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "is nested too deeply"),
        ('{"images": ' + "9" * 5_000 + "}", r"is not valid JSON \(Exceeds the limit .* digits"),
        ('{"images": 5}', "has no list 'images'"),
        ('{"images": {}}', "has no list 'images'"),
        ("5", "has no list 'images'"),
        ("null", "has no list 'images'"),
        ('{"images": [1e400], "annotations": [], "categories": []}', "it has no categories"),
        ('{"images": [', "is not valid JSON"),
    ],
)
def test_json_that_is_none_or_another(tree: CocoTree, text: str, said: str) -> None:
    tree.file("train").write_text(text)
    line = refused(lambda: CocoFolder(tree.root, "train"), str(tree.file("train")))
    with pytest.raises(UserError, match=said):
        CocoFolder(tree.root, "train")
    assert len(line) < len(str(tree.file("train"))) + 200


def test_a_mark_of_the_byte_order_is_read_over(tree: CocoTree) -> None:
    expected = read_annotations(tree.file("val"))
    tree.file("val").write_bytes(b"\xef\xbb\xbf" + tree.file("val").read_bytes())
    assert read_annotations(tree.file("val")) == expected


def test_what_is_not_read_goes_no_further(tree: CocoTree) -> None:
    """Values that nobody looked at could fail in a loader process after hours."""
    plain = CocoFolder(tree.root, "train")
    deep: list[Any] = []
    for _ in range(800):
        deep = [deep]
    for one in tree.content["train"]["annotations"]:
        one.update(attributes=deep, score=_NAN, ignore=1)
    crowd = tree.content["train"]["annotations"][3]
    crowd["segmentation"]["more"] = deep
    tree.rewrite("train")
    found = CocoFolder(tree.root, "train")
    everything = range(len(plain))
    assert found.ground_truth(everything) == plain.ground_truth(everything)
    assert found.fingerprint(everything) == plain.fingerprint(everything)


def test_a_mask_can_be_made_of_all_that_is_read(whole: CocoTree) -> None:
    from pycocotools.coco import COCO

    for split in ("train", "val"):
        source = CocoFolder(whole.root, split)
        coco = COCO()
        coco.imgs = {one["id"]: one for one in source.ground_truth(range(len(source)))["images"]}
        for index, (width, height) in enumerate(source.sizes.tolist()):
            for one in source.annotations(index):
                mask = np.asarray(coco.annToMask(one))
                assert mask.shape == (height, width)
                assert mask.any()


def test_json_is_as_it_was_for_what_is_sound(whole: CocoTree) -> None:
    """The hash of a training's images is that of earlier versions."""
    source = CocoFolder(whole.root, "train")
    content = whole.content["train"]
    for index, number in enumerate(source.image_ids.tolist()):
        expected = [one for one in content["annotations"] if one["image_id"] == number]
        assert source._bytes(index) == json.dumps(expected, separators=(",", ":")).encode()


def test_a_path_of_the_user_that_is_no_text(tmp_path: Path, whole: CocoTree) -> None:
    link = tmp_path / "caf\udce9"
    link.symlink_to(whole.root)
    assert len(CocoFolder(link, "train").fingerprint([0])) == 64

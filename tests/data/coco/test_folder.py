"""Detection sets in COCO's format: reading, what is refused, `ser data check`, the embedded one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sercli.data import UnreadableImage
from sercli.data.coco.check import check_coco
from sercli.data.coco.folder import CocoFolder, find_split, is_coco, read_annotations
from sercli.data.coco.rules import read_listing
from sercli.data.coco.source import DetectionSource, category_difference, require_same_categories
from sercli.data.images.check import Reading
from sercli.data.shapes.detection import (
    ShapesDetection,
    annotations_of,
    categories_of,
    category_id,
    run_lengths,
)
from sercli.data.shapes.outlines import CLASSES
from sercli.data.shapes.settings import SHAPES
from sercli.data.shapes.world import Rendered, RenderedObject
from sercli.errors import UserError
from tests.support.coco_tree import IDS, NAMES, CocoTree, write_coco_tree


def oracle(content: dict[str, Any]) -> COCO:
    """The same in pycocotools."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def refused(act: Callable[[], object], match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- reading -----------------------------------------------------------------------------------


def test_images_and_categories_are_those_of_pycocotools_sorted_by_id(whole: CocoTree) -> None:
    for split, number in (("train", 6), ("val", 4)):
        source = CocoFolder(whole.root, split)
        coco = oracle(whole.content[split])
        assert len(source) == number
        assert source.image_ids.tolist() == sorted(coco.getImgIds())
        assert [(one.id, one.name) for one in source.categories] == list(
            zip(IDS, NAMES, strict=True)
        )
        assert source.labels_by_id() == {raw: label for label, raw in enumerate(IDS)}
        for index, number in enumerate(source.image_ids.tolist()):
            said = coco.imgs[number]
            assert source.sizes[index].tolist() == [said["width"], said["height"]]
            assert source.load(index).size == (said["width"], said["height"])
            assert source.load(index).mode == "RGB"
            assert source.describe(index) == str(whole.root / f"{split}2017" / said["file_name"])
            assert source.annotations(index) == coco.imgToAnns[number]


def test_the_tree_is_like_coco(whole: CocoTree) -> None:
    assert (len(IDS), IDS[-1]) == (80, 90)
    assert set(range(1, 91)) - set(IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    source = CocoFolder(whole.root, "train")
    assert source.annotations(1) == []
    assert [one["iscrowd"] for one in source.annotations(0)] == [0, 0, 0, 1]
    assert (source.sizes[:, 0] != source.sizes[:, 1]).all()


def test_images_are_sorted_whatever_the_order_of_the_file(tree: CocoTree) -> None:
    before = CocoFolder(tree.root, "train")
    for key in ("images", "annotations", "categories"):
        tree.content["train"][key].reverse()
    tree.rewrite("train")
    after = CocoFolder(tree.root, "train")
    assert after.categories == before.categories
    assert_array_equal(after.image_ids, before.image_ids)
    for index in range(len(before)):
        assert after.annotations(index) == before.annotations(index)[::-1]
        assert after.path(index) == before.path(index)


@pytest.mark.parametrize("kind", ["coco", "shapes"])
def test_pycocotools_scores_the_ground_truth_as_perfect(whole: CocoTree, kind: str) -> None:
    source: DetectionSource
    if kind == "coco":
        source = CocoFolder(whole.root, "val")
    else:
        source = ShapesDetection("val", image_size=64, num_images=6, seed=1)
    every = range(len(source))
    truth = oracle(source.ground_truth(every))
    plain = [one for one in truth.dataset["annotations"] if not one["iscrowd"]]
    results = [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "segmentation": truth.annToRLE(one),
            "bbox": one["bbox"],
            "score": 0.9,
        }
        for one in plain
    ]
    for measure in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            scores = COCOeval(truth, truth.loadRes(results), measure)
            scores.evaluate()
            scores.accumulate()
            scores.summarize()
        assert scores.stats[0] == pytest.approx(1.0)


def test_ground_truth_of_some_images_has_no_other(whole: CocoTree) -> None:
    source = CocoFolder(whole.root, "train")
    content = source.ground_truth([0, 4])
    chosen = source.image_ids[[0, 4]].tolist()
    assert [one["id"] for one in content["images"]] == chosen
    assert {one["image_id"] for one in content["annotations"]} == set(chosen)
    assert len(content["categories"]) == 80


def test_sources_travel_to_workers(whole: CocoTree) -> None:
    for source in (CocoFolder(whole.root, "val"), ShapesDetection("val", image_size=32)):
        copy = pickle.loads(pickle.dumps(source))
        assert copy.categories == source.categories
        assert copy.ground_truth([0, 2]) == source.ground_truth([0, 2])
        assert_array_equal(np.asarray(copy.load(2)), np.asarray(source.load(2)))


# -- where things are --------------------------------------------------------------------------


def test_images_may_lie_in_a_folder_of_their_own(tree: CocoTree) -> None:
    expected = np.asarray(CocoFolder(tree.root, "val").load(0))
    (tree.root / "images").mkdir()
    (tree.root / "val2017").rename(tree.root / "images/val2017")
    source = CocoFolder(tree.root, "val")
    assert source.folder == tree.root / "images/val2017"
    assert_array_equal(np.asarray(source.load(0)), expected)


def test_a_split_is_that_of_2017_or_the_only_one(tree: CocoTree) -> None:
    folder = tree.root / "annotations"
    shutil.copy(tree.file("val"), folder / "instances_val2014.json")
    place = find_split(tree.root, "val")
    assert place is not None
    assert place.file.name == "instances_val2017.json"
    tree.file("val").unlink()
    place = find_split(tree.root, "val")
    assert place is not None
    assert place.file.name == "instances_val2014.json"
    refused(place.images, "has neither val2014/ nor images/val2014/")
    shutil.copy(place.file, folder / "instances_valminusminival.json")
    refused(lambda: find_split(tree.root, "val"), "one of them must be instances_val2017.json")


def test_what_is_no_coco_directory(tree: CocoTree, tmp_path: Path) -> None:
    assert is_coco(tree.root)
    assert not is_coco(tree.root / "train2017")
    assert not is_coco(tmp_path / "none")
    assert find_split(tree.root / "train2017", "train") is None
    refused(lambda: CocoFolder(tree.root / "train2017", "train"), "ser data shapes DIR")
    refused(lambda: find_split(tmp_path / "none", "train"), "does not exist; a directory in COCO")
    refused(lambda: find_split(tree.file("val"), "train"), "is a file")
    shutil.rmtree(tree.root / "annotations")
    assert is_coco(tree.root)  # its folders of images are no classes


# -- what is refused ---------------------------------------------------------------------------


def test_other_files_than_instances(tree: CocoTree) -> None:
    file = tree.file("train")
    file.write_text(json.dumps({"images": [], "annotations": [{"id": 1, "caption": "a dog"}]}))
    refused(lambda: CocoFolder(tree.root, "train"), "no list 'categories'.* not captions")
    file.write_text("[]")
    refused(lambda: read_annotations(file), "no list 'images'")
    file.write_bytes(tree.file("val").read_bytes()[:500])
    refused(lambda: read_annotations(file), "is not valid JSON .* truncated")
    file.write_bytes(b"\xff\xfe\xff")
    refused(lambda: read_annotations(file), "is not valid JSON")
    file.unlink()
    refused(lambda: read_annotations(file), "No such file")


Change = Callable[[dict[str, Any]], object]


def faults(content: dict[str, Any], split: str = "train") -> list[str]:
    found: list[str] = []
    read_listing(content, found.append, split=split)
    return found


_FAULTS: list[tuple[str, Change, str]] = [
    ("annotation 0", lambda c: c["annotations"][0].update(id=0), "annotation id 0; a positive"),
    ("twice", lambda c: c["annotations"][1].update(id=1), "annotation id 1 is there twice"),
    ("no id", lambda c: c["annotations"][0].pop("id"), "annotation id None; a positive whole"),
    ("text id", lambda c: c["annotations"][0].update(id="7"), "annotation id '7'"),
    ("category", lambda c: c["annotations"][0].update(category_id=12), "1 has category 12, which"),
    ("list", lambda c: c["annotations"][0].update(category_id=[1]), r"has category \[1\], which"),
    (
        "image",
        lambda c: c["annotations"][0].update(image_id=1),
        "annotation 1 names image 1, which",
    ),
    ("dict", lambda c: c["annotations"][0].update(image_id={}), "annotation 1 names image {}"),
    (
        "no box",
        lambda c: c["annotations"][0].pop("bbox"),
        "annotation 1 has no bbox; it must be x, y",
    ),
    ("short box", lambda c: c["annotations"][0]["bbox"].pop(), "annotation 1 has the bbox"),
    (
        "nan",
        lambda c: c["annotations"][0]["bbox"].__setitem__(0, float("nan")),
        "1 has the bbox .nan, ",
    ),
    ("backwards", lambda c: c["annotations"][0]["bbox"].__setitem__(2, -3), "width ≥ 0 and height"),
    ("no area", lambda c: c["annotations"][0].pop("area"), "annotation 1 has no area"),
    (
        "crowd",
        lambda c: c["annotations"][0].update(iscrowd="no"),
        "1 has the iscrowd 'no'; it must be 0 or 1",
    ),
    ("box mask", lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "of 3 points"),
    ("no points", lambda c: c["annotations"][0].update(segmentation=[]), "polygons of 3 points"),
    (
        "other size",
        lambda c: c["annotations"][0].update(segmentation={"size": [3, 2], "counts": [6]}),
        "run lengths of the size .3, 2.; they must have its image's",
    ),
    ("no mask", lambda c: c["annotations"][0].pop("segmentation"), "1 has no segmentation"),
    ("no object", lambda c: c["annotations"].append(3), "the annotation 3 is no object"),
    ("image twice", lambda c: c["images"].append(c["images"][0]), "image id .* is there twice"),
    ("no size", lambda c: c["images"][1].pop("width"), "image .* has no width and the height"),
    ("no name", lambda c: c["images"][1].update(file_name=""), "image .* has the file_name ''"),
    ("category twice", lambda c: c["categories"][1].update(id=1), "category id 1 is there twice"),
    ("nameless", lambda c: c["categories"][1].update(name=None), "category 2 has the name None"),
]


def _changed(tree: CocoTree, change: Change) -> dict[str, Any]:
    change(tree.content["train"])
    tree.rewrite("train")
    return tree.content["train"]


@pytest.mark.parametrize(
    ("change", "match"), [pytest.param(*one[1:], id=one[0]) for one in _FAULTS]
)
def test_what_makes_numbers_wrong_is_refused_and_listed(
    tree: CocoTree, change: Change, match: str
) -> None:
    assert faults(tree.content["train"]) == []
    content = _changed(tree, change)
    line = refused(lambda: CocoFolder(tree.root, "train"), match)
    problems = check_coco(tree.root, Reading(lambda *_: None, decode=False)).problems
    assert line == f"{problems[0]}; `ser data check` lists all there is"
    expected = [f"{tree.file('train')}: {one}" for one in faults(content)]
    assert [*problems[: len(expected)]] == expected


def test_sets_without_images_or_categories(tree: CocoTree) -> None:
    content = {"images": [], "annotations": [], "categories": tree.content["val"]["categories"]}
    tree.file("val").write_text(json.dumps(content))
    refused(lambda: CocoFolder(tree.root, "val"), "lists no images")
    tree.file("val").write_text(json.dumps({**content, "categories": []}))
    refused(lambda: CocoFolder(tree.root, "val"), "it has no categories")


def test_images_of_another_size_missing_or_cut(tree: CocoTree) -> None:
    source = CocoFolder(tree.root, "train")
    width, height = source.sizes[3].tolist()
    Image.new("RGB", (height, width)).save(source.path(3))
    with pytest.raises(UnreadableImage, match=f"{height} × {width} pixels, but instances_train20"):
        source.load(3)
    source.path(4).unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.load(4)
    source.path(5).write_bytes(source.path(5).read_bytes()[:500])
    with pytest.raises(UnreadableImage, match=r"(?i)truncated"):
        source.load(5)


def test_train_and_val_must_have_the_same_categories(tree: CocoTree) -> None:
    train, val = (CocoFolder(tree.root, split) for split in ("train", "val"))
    require_same_categories(train, val)
    assert category_difference(train.categories, reversed(val.categories)) == ""
    _changed(tree, lambda c: c["categories"][2].update(name="cart"))
    line = refused(
        lambda: require_same_categories(CocoFolder(tree.root, "train"), val),
        "only train: 3 cart; only val: 3 car",
    )
    assert "the same ids and names" in line
    shapes = ShapesDetection("val", image_size=32, num_images=1)
    refused(
        lambda: require_same_categories(train, shapes), "only val: 1 arrow, 2 crescent, 3 cross, …"
    )


# -- the embedded detection set ----------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 97])
def test_masks_boxes_and_areas_agree_with_pycocotools(size: int) -> None:
    source = ShapesDetection("train", image_size=size, num_images=12, seed=5)
    coco = oracle(source.ground_truth(range(12)))
    numbers = set()
    for index in range(12):
        drawn = source.render(index)
        seen = [thing for thing in drawn.objects if thing.mask.sum() >= 16]
        found = source.annotations(index)
        numbers.add(len(found))
        for thing, one in zip(seen, found, strict=True):
            mask = coco.annToMask(one).astype(bool)
            assert_array_equal(mask, thing.mask)
            rle = coco.annToRLE(one)
            assert coco_mask.toBbox(rle).tolist() == one["bbox"]
            assert coco_mask.area(rle) == one["area"]
            assert coco.cats[one["category_id"]]["name"] == CLASSES[thing.label]
            assert one["image_id"] == source.image_ids[index]
    assert numbers == {1, 2, 3, 4}
    assert faults(_with_names(source)) == []


def _with_names(source: DetectionSource) -> dict[str, Any]:
    content = source.ground_truth(range(len(source)))
    for image in content["images"]:
        image["file_name"] = "x.jpg"
    return content


def test_objects_that_are_hardly_seen_are_no_annotations() -> None:
    def thing(label: int, pixels: int) -> RenderedObject:
        mask = np.zeros((20, 20), bool)
        mask[3, :pixels] = True
        return RenderedObject(label, (0, 3, pixels, 1), mask)

    image = np.zeros((20, 20, 3), np.uint8)
    picture = Rendered(image, 0, (thing(0, 16), thing(1, 15), thing(2, 0), thing(3, 20)))
    found = annotations_of(picture, image_id=7, first_id=5)
    assert [one["id"] for one in found] == [5, 6]
    assert [one["category_id"] for one in found] == [category_id(0), category_id(3)]
    assert [one["area"] for one in found] == [16, 20]
    assert {one["image_id"] for one in found} == {7}


def test_raw_ids_have_gaps_and_labels_do_not() -> None:
    source = ShapesDetection("val", image_size=32, num_images=2)
    ids = [category.id for category in categories_of(SHAPES)]
    assert ids == sorted(set(ids)) == [category_id(label) for label in range(len(CLASSES))]
    assert ids != list(range(1, len(ids) + 1))
    assert [*source.labels_by_id().values()] == list(range(len(CLASSES)))


def test_the_pictures_depend_on_split_and_seed_alone() -> None:
    one, again, other, val = (
        ShapesDetection(split, image_size=32, num_images=3, seed=seed)
        for split, seed in (("train", 0), ("train", 0), ("train", 1), ("val", 0))
    )
    few = ShapesDetection("train", image_size=32, num_images=1)
    assert one.ground_truth(range(3)) == again.ground_truth(range(3))
    assert few.annotations(0) == one.annotations(0)
    for different in (other, val):
        assert not np.array_equal(np.asarray(different.load(0)), np.asarray(one.load(0)))
    assert one.describe(2) == "shapes/coco-train/2"
    refused(lambda: ShapesDetection("val", image_size=32, num_images=0), "0 images")
    refused(lambda: ShapesDetection("val", image_size=8), "image size 8")


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_run_lengths_are_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    counts = list(run_lengths(mask))
    ours = coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)
    assert ours == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert sum(counts) == mask.size
    assert min(counts[1:], default=1) > 0
    json.dumps(counts)


def test_a_broken_polygon_beside_a_sound_one_is_left_out_and_iscrowd_is_0(tmp_path) -> None:
    tree = write_coco_tree(tmp_path / "coco")
    one = tree.content["val"]["annotations"][0]
    sound = one["segmentation"]
    one["segmentation"] = [[1, 2, 3, 4], *sound]
    del one["iscrowd"]
    tree.rewrite("val")
    source = CocoFolder(tree.root, "val")
    found = [a for i in range(len(source)) for a in source.annotations(i) if a["id"] == one["id"]]
    assert found == [{**one, "segmentation": sound, "iscrowd": 0}]


# -- files that are none -----------------------------------------------------------------------


def test_images_that_are_no_regular_files_are_missing(tree: CocoTree) -> None:
    """A pipe would be waited for without end."""
    pipe, folder, dead, circle = (tree.image("train", index) for index in range(4))
    for file in (pipe, folder, dead, circle):
        file.unlink()
    os.mkfifo(pipe)
    folder.mkdir()
    dead.symlink_to("nowhere")
    circle.symlink_to(circle.name)
    line = refused(lambda: CocoFolder(tree.root, "train"), "lacks 4 of the 6 images")
    assert pipe.name in line
    assert "regular file" in line


def test_links_to_images_are_images(tree: CocoTree, tmp_path: Path) -> None:
    file = tree.image("train", 0)
    file.rename(tmp_path / "elsewhere.jpg")
    file.symlink_to(tmp_path / "elsewhere.jpg")
    assert CocoFolder(tree.root, "train").load(0).mode == "RGB"


def test_annotations_that_are_no_regular_file(tree: CocoTree) -> None:
    file = tree.file("train")
    file.unlink()
    os.mkfifo(file)
    refused(
        lambda: CocoFolder(tree.root, "train"),
        "cannot read .*instances_train2017.json: it is a FIFO, no",
    )
    (problem,) = check_coco(tree.root, Reading(lambda *_: None, decode=False)).problems
    assert "it is a FIFO, no regular file" in problem
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(lambda: CocoFolder(tree.root, "train"), "it is a device, no regular file")
    file.unlink()
    file.mkdir()
    refused(lambda: CocoFolder(tree.root, "train"), "it is a directory, no regular file")
    file.rmdir()
    file.symlink_to(file.name)
    refused(lambda: CocoFolder(tree.root, "train"), "cannot read .*: Too many levels of symbolic")


def test_folders_that_may_not_be_listed_are_said(
    tree: CocoTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(folder: str) -> Callable[[Any], Any]:
        def listed(path: Any) -> Any:
            if Path(path).name == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return before[function](path)

        before = {name: getattr(os, name) for name in ("listdir", "scandir")}
        function = "scandir" if folder == "train2017" else "listdir"
        monkeypatch.setattr(os, function, listed)
        return listed

    deny("annotations")
    assert is_coco(tree.root)
    line = refused(lambda: CocoFolder(tree.root, "train"), "cannot list .*annotations: Permission")
    assert "permissions" in line
    lines = check_coco(tree.root, Reading(lambda *_: None, decode=False)).problems
    assert [*lines] == [line, line]
    monkeypatch.undo()
    deny("train2017")
    refused(lambda: CocoFolder(tree.root, "train"), "cannot list .*train2017: Permission denied")


def test_paths_that_are_none(tmp_path: Path) -> None:
    for path in ("x" * 5000, "a\0b"):
        assert not is_coco(Path(path))
    refused(lambda: find_split(Path("x" * 5000), "val"), "cannot look at x.*: File name too long")
    assert not is_coco(tmp_path)
    (tmp_path / "annotations").write_text("a file")
    assert not is_coco(tmp_path)
    assert find_split(tmp_path, "val") is None

"""Average precision: pycocotools, faster-coco-eval and our weighted form agree; traps are seen."""

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sercli.data.coco.folder import CocoFolder
from sercli.errors import UserError
from sercli.evals.detection.scores import (
    KINDS,
    METRICS,
    NAMES,
    average_precision,
    coco_scores,
    intervals,
    metrics_of,
    names_of_categories,
)
from tests.support.coco_tree import write_coco_tree
from tests.support.detection import world


@pytest.fixture(scope="module")
def truth():
    return world("val", size=64, num_images=40).ground_truth(range(40))


def perfect(truth):
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}

    def runs(one):
        found = one["segmentation"]
        if isinstance(found, list):
            return coco_mask.merge(coco_mask.frPyObjects(found, *sizes[one["image_id"]]))
        return coco_mask.frPyObjects(found, *found["size"])

    return [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": one["bbox"],
            "score": 0.9,
            "segmentation": runs(one),
        }
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]


def noisy(truth, seed=0):
    random = np.random.default_rng(seed)
    ids = [one["id"] for one in truth["categories"]]
    found = []
    for one in perfect(truth) * 3:
        x, y, w, h = one["bbox"]
        shift = random.normal(0, 2, 4)
        box = [x + shift[0], y + shift[1], max(1, w + shift[2]), max(1, h + shift[3])]
        label = one["category_id"] if random.random() < 0.8 else int(random.choice(ids))
        found.append(
            {
                **one,
                "bbox": list(map(float, box)),
                "category_id": label,
                "score": float(np.round(random.random(), 2)),  # with ties
            }
        )
    return found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_ground_truth_scores_one(truth, kind, metric):
    scores = coco_scores(truth, perfect(truth), kind=kind, metric=metric)
    assert all(value in (None, 1.0) for value in scores.values.values())
    assert scores.values["ap"] == 1.0
    assert set(scores.classes.values()) == {1.0}
    found = metrics_of({kind: scores})
    assert found["ap" if kind == "bbox" else "mask_ap"] == 100.0


@pytest.mark.parametrize("metric", METRICS)
def test_a_tree_like_cocos_scores_one_too(tmp_path, metric):
    """Polygons, crowds, an image without objects, raw ids from 1 to 90."""
    write_coco_tree(tmp_path / "coco", num_val=6)
    source = CocoFolder(tmp_path / "coco", "val")
    truth = source.ground_truth(range(len(source)))
    for kind in KINDS:
        assert coco_scores(truth, perfect(truth), kind=kind, metric=metric).values["ap"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_both_implementations_agree(truth, kind, seed):
    found = noisy(truth, seed)
    one, two = (coco_scores(truth, found, kind=kind, metric=metric) for metric in METRICS)
    assert 0.05 < one.values["ap"] < 0.95
    for name in NAMES:
        assert one.values[name] == pytest.approx(two.values[name], abs=1e-9)
    for name, value in one.classes.items():
        assert value == pytest.approx(two.classes[name], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_with_equal_weights_our_average_precision_is_pycocotools(truth, kind):
    scores = coco_scores(truth, noisy(truth), kind=kind)
    found = average_precision(scores.matches, np.ones(40))
    assert found.mean() == pytest.approx(scores.values["ap"], abs=1e-12)
    assert found[0] == pytest.approx(scores.values["ap50"], abs=1e-12)
    assert found[5] == pytest.approx(scores.values["ap75"], abs=1e-12)


def test_a_weight_of_zero_leaves_an_image_out(truth):
    """Against pycocotools on the truth without those images."""
    found = noisy(truth)
    kept = {image["id"] for image in truth["images"][::3]}
    part = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in kept],
        "annotations": [one for one in truth["annotations"] if one["image_id"] in kept],
    }
    expected = coco_scores(part, [o for o in found if o["image_id"] in kept], kind="bbox")
    weights = np.array([image["id"] in kept for image in truth["images"]], np.float64)
    matches = coco_scores(truth, found, kind="bbox").matches
    ours = average_precision(matches, weights)
    assert ours.mean() == pytest.approx(expected.values["ap"], abs=1e-12)
    assert average_precision(matches, 2 * weights).mean() == pytest.approx(ours.mean(), abs=1e-12)


def test_intervals_hold_the_value_and_narrow_with_images():
    widths = []
    for number in (20, 80):
        truth = world("val", size=64, num_images=number).ground_truth(range(number))
        scores = coco_scores(truth, noisy(truth), kind="bbox")
        found = intervals(scores.matches)
        for name in ("ap", "ap50"):
            low, high = found[name]
            assert 0 <= low <= scores.values[name] <= high <= 1
        widths.append(found["ap"][1] - found["ap"][0])
    assert widths[1] < widths[0]


def test_nothing_found_scores_zero(truth):
    for metric in METRICS:
        assert coco_scores(truth, [], kind="bbox", metric=metric).values["ap"] == 0.0


def test_images_without_detections_cost_recall(truth):
    found = perfect(truth)
    left_out = {image["id"] for image in truth["images"][::10]}
    scores = coco_scores(truth, [o for o in found if o["image_id"] not in left_out], kind="bbox")
    assert scores.values["ap"] < 0.97


def test_detections_in_images_without_objects_cost_precision(truth):
    found = perfect(truth)
    empty = {**truth, "images": [*truth["images"], {"id": 10**6, "width": 64, "height": 64}]}
    more = [{**one, "image_id": 10**6, "score": 1.0} for one in found]
    assert coco_scores(empty, found + more, kind="bbox").values["ap"] < 0.7


def test_corners_instead_of_sizes_change_the_number(truth):
    wrong = [
        {**one, "bbox": [x, y, x + w, y + h]}
        for one in perfect(truth)
        for x, y, w, h in [one["bbox"]]
    ]
    assert coco_scores(truth, wrong, kind="bbox").values["ap"] < 0.5


def test_positions_instead_of_raw_ids_are_refused_or_change_the_number(truth):
    ids = [one["id"] for one in truth["categories"]]
    wrong = [{**one, "category_id": ids.index(one["category_id"])} for one in perfect(truth)]
    assert 0 not in ids
    with pytest.raises(ValueError, match="raw ids"):
        coco_scores(truth, wrong, kind="bbox")
    shifted = [{**one, "category_id": one["category_id"] + 1} for one in wrong]
    possible = [one for one in shifted if one["category_id"] in ids]
    assert coco_scores(truth, possible, kind="bbox").values["ap"] < 0.5


def test_an_annotation_with_id_0_is_refused(truth):
    broken = copy.deepcopy(truth)
    broken["annotations"][0]["id"] = 0
    with pytest.raises(ValueError, match="id 0"):
        coco_scores(broken, perfect(truth), kind="bbox")


def test_detections_of_other_images_are_refused(truth):
    with pytest.raises(ValueError, match="image 77777"):
        coco_scores(truth, [{**perfect(truth)[0], "image_id": 77777}], kind="bbox")


@pytest.mark.parametrize("counts", [b"0:", "0:", [0, 10], b"", b"~"])
def test_masks_that_do_not_fill_their_image_are_refused(truth, counts):
    """pycocotools would compare them without end."""
    found = perfect(truth)
    found[-1] = {**found[-1], "segmentation": {"size": [64, 64], "counts": counts}}
    with pytest.raises(ValueError, match=r"a detection in image .* has .*run lengths"):
        coco_scores(truth, found, kind="segm")
    assert coco_scores(truth, found, kind="bbox").values["ap"] == 1.0


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({3: "cat", 5: "dog"}, ["cat", "dog"]),
        ({3: "cat", 5: "cat", 7: "dog"}, ["cat (3)", "cat (5)", "dog"]),
        ({1: "low", 2: "high", 3: "size/low"}, ["low (1)", "high (2)", "size/low (3)"]),
        ({1: "a", 2: "a", 3: "a (1)"}, ["a (1)", "a (2)", "a (1) (3)"]),
        ({}, []),
    ],
)
def test_every_category_has_a_name_of_its_own(named, expected):
    assert [*names_of_categories(named).values()] == expected
    assert [*names_of_categories(named)] == [*named]


def test_categories_called_alike_or_as_an_interval_hide_no_number(truth):
    renamed = [{**one, "name": "low"} for one in truth["categories"]]
    scores = coco_scores({**truth, "categories": renamed}, noisy(truth), kind="bbox")
    plain = coco_scores(truth, noisy(truth), kind="bbox")
    assert [*scores.classes.values()] == [*plain.classes.values()]
    metrics, usual = metrics_of({"bbox": scores}), metrics_of({"bbox": plain})
    assert metrics["ap/low"] == usual["ap/low"]
    assert len(metrics) == len(usual)


def test_an_unknown_implementation_is_refused(truth):
    with pytest.raises(UserError, match="pycocotools or faster-coco-eval"):
        coco_scores(truth, [], kind="bbox", metric="exact")


def test_a_mask_is_small_or_large_by_its_own_area():
    """A thin diagonal is small though its box is not: as a mistake it costs small objects only."""
    truth = world("val", size=96, num_images=40).ground_truth(range(40))
    areas = [one["area"] for one in truth["annotations"]]
    assert min(areas) < 32**2 < max(areas)
    thin = np.asfortranarray(np.eye(96, dtype=np.uint8))
    mistakes = [
        {**one, "score": 1.0, "bbox": [0, 0, 96, 96], "segmentation": coco_mask.encode(thin)}
        for one in perfect(truth)
    ]
    scores = coco_scores(truth, perfect(truth) + mistakes, kind="segm")
    assert scores.values["ap_medium"] == 1.0
    assert scores.values["ap_small"] < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_can_be_stopped_between_images(truth, kind):
    """Hours of it must not outlast a signal; how far it came says that it is asked on the way."""
    found, asked = perfect(truth), []
    coco_scores(truth, found, kind=kind, check=lambda: asked.append(1))
    # IoU once an image and category, matching once an area more, and around each stage.
    assert len(asked) == 40 * len(truth["categories"]) * 5 + 3

    def stop():
        asked.append(1)
        if len(asked) == 700:
            raise KeyboardInterrupt

    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        coco_scores(truth, found, kind=kind, check=stop)
    assert len(asked) == 700


def test_intervals_can_be_stopped(truth):
    scores = coco_scores(truth, perfect(truth), kind="bbox")
    asked = []
    metrics_of({"bbox": scores}, check=lambda: asked.append(1))
    assert len(asked) == 40  # images, each a group

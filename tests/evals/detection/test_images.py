"""What a detector sees: canvas, frame, objects, order."""

from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from pycocotools import mask as coco_mask

from sercli.data.coco.folder import CocoFolder
from sercli.errors import UserError
from sercli.evals.detection.images import (
    Canvas,
    DetectionImages,
    TrainingOrder,
    on_canvas,
    trainable_images,
    usable,
)
from tests.support.coco_tree import write_coco_tree
from tests.support.detection import CPU as RUNTIME
from tests.support.detection import world

CPU = RUNTIME.device


@pytest.mark.parametrize(
    ("size", "patch", "hint"),
    [(100, 16, "96 or 128"), (16, 16, "use 32"), (1024, 14, "1008 or 1036"), (72, 8, "64 or 80")],
)
def test_a_canvas_is_a_multiple_of_two_patches(size, patch, hint):
    with pytest.raises(UserError, match=hint):
        Canvas.of(size, patch_size=patch)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_a_patch_is_16_units_of_the_frame(patch):
    canvas = Canvas.of(6 * patch, patch_size=patch)
    assert canvas.grid * 16 == pytest.approx(canvas.size * canvas.units)


def test_the_longer_side_fits_the_canvas():
    canvas = Canvas.of(1024, patch_size=16)
    assert canvas.fit(640, 480) == (1024, 768)
    assert canvas.fit(427, 640) == (683, 1024)
    assert canvas.fit(2000, 1) == (1024, 1)


@pytest.fixture
def tree(tmp_path):
    write_coco_tree(tmp_path / "coco", num_train=8, num_val=3)
    return CocoFolder(tmp_path / "coco", "train")


@pytest.mark.parametrize(("size", "patch"), [(128, 16), (112, 14), (64, 8)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_masks_follow_the_image(tree, size, patch, flip):
    """Pixel centres inside the scaled outline, by matplotlib, are those of the mask."""
    canvas = Canvas.of(size, patch_size=patch)
    images = DetectionImages(tree, canvas, flip=flip)
    flipped = 0
    for index in trainable_images(tree)[:5].tolist():
        plain = DetectionImages(tree, canvas)[index, 0]
        sample = images[index, 0]
        mirrored = not torch.equal(plain.image, sample.image)
        flipped += mirrored
        assert torch.equal(sample.image, plain.image.flip(-1) if mirrored else plain.image)
        width, height = tree.sizes[index].tolist()
        shown = canvas.fit(width, height)
        assert sample.image.shape == (3, shown[1], shown[0])
        assert sample.frame == pytest.approx((shown[1] * 16 / patch, shown[0] * 16 / patch))
        wanted = usable(tree.annotations(index), width, height)
        assert len(wanted) == len(sample.boxes) == len(sample.masks_on(CPU)) == len(sample.labels)
        for one, box, mask, label in zip(
            wanted, sample.boxes, sample.masks_on(CPU), sample.labels, strict=True
        ):
            assert tree.categories[label].id == one["category_id"]
            x, y, w, h = one["bbox"]
            left = width - x - w if mirrored else x
            scale = sample.frame[1] / width, sample.frame[0] / height
            expected = [left * scale[0], y * scale[1], (left + w) * scale[0], (y + h) * scale[1]]
            np.testing.assert_allclose(box.numpy(), expected, rtol=1e-5, atol=1e-4)
            painted = _painted(one, width, height, mask.shape, sample.frame, mirrored)
            found = mask.bool().numpy()
            border = 2 * sum(box[2:] - box[:2]).item()
            assert (painted ^ found).sum() <= 0.3 * border  # rounded there, shifted nowhere
    assert flipped if flip else not flipped


def _painted(one, width, height, shape, frame, mirrored):
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = np.zeros(len(centres), bool)
    for polygon in one["segmentation"]:
        points = np.array(polygon).reshape(-1, 2)
        if mirrored:
            points[:, 0] = width - points[:, 0]
        points = points * (frame[1] / width, frame[0] / height)
        inside |= Path(points).contains_points(centres)
    return inside.reshape(shape)


def test_run_lengths_are_masks_too():
    source = world(size=64, num_images=6)
    sample = DetectionImages(source, Canvas.of(64, patch_size=16))[2, 0]
    objects = source.render(2).objects
    for mask, thing in zip(sample.masks_on(CPU), objects, strict=True):
        assert np.array_equal(mask.bool().numpy(), thing.mask)
    one = source.annotations(2)[0]
    text = coco_mask.frPyObjects(one["segmentation"], 64, 64)
    text["counts"] = text["counts"].decode()
    source.annotations = lambda _index: [{**one, "segmentation": text}]
    again = DetectionImages(source, Canvas.of(64, patch_size=16))[2, 0]
    assert torch.equal(again.masks_on(CPU)[0], sample.masks_on(CPU)[0])


def test_crowds_and_boxes_without_area_are_not_trained_on():
    good = {"bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]], "iscrowd": 0}
    annotations = [
        good,
        {**good, "iscrowd": 1},
        {**good, "bbox": [1, 1, 0, 5]},
        {**good, "bbox": [20, 1, 5, 5]},  # outside of 10 × 10
    ]
    assert usable(annotations, 10, 10) == [good]


def test_images_without_objects_are_scored_but_not_trained_on(tree):
    empty = [i for i in range(len(tree)) if not tree.annotations(i)]
    assert empty
    assert not set(empty) & set(trainable_images(tree).tolist())
    assert {image["id"] for image in tree.ground_truth(range(len(tree)))["images"]} == set(
        tree.image_ids.tolist()
    )


def test_images_lie_in_the_upper_left_on_zero(tree):
    canvas = Canvas.of(64, patch_size=16)
    samples = [DetectionImages(tree, canvas)[index, None] for index in range(3)]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    shown = on_canvas(samples, canvas, mean=mean, std=std, device=torch.device("cpu"))
    assert shown.shape == (3, 3, 64, 64)
    for row, sample in zip(shown, samples, strict=True):
        h, w = sample.image.shape[1:]
        expected = (sample.image.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(
            std, dtype=torch.float64
        )[:, None, None]
        torch.testing.assert_close(row[:, :h, :w].double(), expected, atol=1e-6, rtol=1e-6)
        assert row[:, h:].abs().sum() == 0
        assert row[:, :, w:].abs().sum() == 0


def test_every_image_comes_once_an_epoch():
    order = TrainingOrder(np.array([3, 5, 8, 9, 11]), 3, seed=0)
    keys = [order.key(place) for place in range(15)]
    for epoch in range(3):
        assert Counter(i for i, e in keys if e == epoch) == Counter([3, 5, 8, 9, 11])
    assert [k[0] for k in keys[:5]] != [k[0] for k in keys[5:10]]
    assert list(order.batches(0, 5)) == [keys[i : i + 3] for i in range(0, 15, 3)]
    again = TrainingOrder(order.indices, 3, seed=0)
    assert list(again.batches(3, 5)) == [keys[9:12], keys[12:15]]
    assert [TrainingOrder(order.indices, 3, seed=1).key(p) for p in range(15)] != keys

"""The embedded world: deterministic, balanced, at any size, and not told by its colours."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from sercli.data.shapes.outlines import CLASSES, OUTLINES, TEXTURES
from sercli.data.shapes.world import ShapesSource, render
from sercli.errors import UserError


def _inside(name: str, cells: int = 400) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Signed distance and inside of an outline on [-1.2, 1.2]², one row a v."""
    steps = np.linspace(-1.2, 1.2, cells)
    distance = OUTLINES[name](steps[None, :] + 0 * steps[:, None], steps[:, None] + 0 * steps)
    return distance, distance < 0


# -- outlines and textures --------------------------------------------------------------------

_AREAS = {
    "cross": 2 * 1.9 * 0.56 - 0.56**2,
    "disc": math.pi * 0.85**2,
    "heart": 1.08**2 + math.pi * 0.54**2,  # a square and two half discs
    "ring": math.pi * (0.92**2 - 0.48**2),
    "square": 1.44**2,
    "star": 10 * 0.5 * 0.42 * math.sin(math.pi / 5),  # ten triangles of sides 1 and 0.42
    "triangle": 3 * math.sqrt(3) * 0.5**2,
}


@pytest.mark.parametrize("name", sorted(_AREAS))
def test_an_outline_has_the_area_of_its_figure(name: str) -> None:
    _, inside = _inside(name)
    cell = (2.4 / 399) ** 2
    assert inside.sum() * cell == pytest.approx(_AREAS[name], rel=0.01)


@pytest.mark.parametrize("name", CLASSES)
def test_an_outline_lies_in_the_unit_circle_and_has_slope_one(name: str) -> None:
    distance, inside = _inside(name)
    steps = np.linspace(-1.2, 1.2, 400)
    radius = np.hypot(steps[None, :], steps[:, None])
    assert radius[inside].max() <= 1.03
    slope = np.hypot(*np.gradient(distance, 2.4 / 399))
    assert np.median(slope[np.abs(distance) < 0.03]) == pytest.approx(1, abs=0.02)


def _resized_to_unit_area(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(inside)
    middle = np.array([rows.mean(), columns.mean()])
    scale = math.sqrt(inside.sum() / 120**2)
    return affine_transform(
        inside.astype(float),
        np.eye(2) * scale,
        offset=middle - scale * 150,
        output_shape=(300,) * 2,
    )


def test_no_two_outlines_are_alike_under_any_turn_or_mirroring() -> None:
    figures = {name: _resized_to_unit_area(_inside(name)[1])[::3, ::3] for name in CLASSES}

    def turned(figure: NDArray[np.float64], degrees: float) -> NDArray[np.bool_]:
        angle = math.radians(degrees)
        matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = np.full(2, 49.5)
        return affine_transform(figure, matrix, offset=middle - matrix @ middle, order=1) > 0.5

    for first, second in itertools.combinations(CLASSES, 2):
        fixed = figures[first] > 0.5
        overlaps = [
            (fixed & other).sum() / (fixed | other).sum()
            for degrees in range(0, 360, 15)
            for other in [turned(figures[second], degrees)]
            for other in (other, other[:, ::-1])
        ]
        assert max(overlaps) < 0.93, (first, second)


def test_every_texture_is_a_share_and_every_class_wears_its_own() -> None:
    p, q = np.meshgrid(np.linspace(-9, 9, 50), np.linspace(-9, 9, 50))
    for texture in TEXTURES.values():
        share = texture(p, q)
        assert share.shape == p.shape
        assert share.min() >= 0
        assert share.max() <= 1
    assert tuple(TEXTURES) == CLASSES
    assert len(set(TEXTURES.values())) == len(CLASSES)


def test_classes_are_sorted_as_folders_are() -> None:
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) >= 8


# -- scenes ------------------------------------------------------------------------------------


def test_a_picture_depends_on_nothing_but_its_key() -> None:
    alone = render(3, "train", 17, 48).image
    for index in (5, 18, 16):
        render(3, "train", index, 48)
    np.testing.assert_array_equal(render(3, "train", 17, 48).image, alone)
    for other in (render(4, "train", 17, 48), render(3, "val", 17, 48), render(3, "train", 27, 48)):
        assert np.abs(other.image.astype(int) - alone).mean() > 10


@pytest.mark.parametrize("index", range(10))
def test_the_scene_is_the_same_at_every_size(index: int) -> None:
    large, small = render(0, "val", index, 192).image, render(0, "val", index, 48).image
    averaged = large.reshape(48, 4, 48, 4, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 5


def test_classes_take_turns_and_objects_are_large() -> None:
    for index in range(200):
        picture = render(1, "train", index, 64)
        assert picture.label == index % len(CLASSES)
        assert 0.5 * 64 <= max(picture.box[2:]) <= 64
        touching = picture.mask[[0, -1]].sum() + picture.mask[:, [0, -1]].sum()
        assert touching < 0.1 * picture.mask.sum()


@pytest.mark.parametrize("objects", [1, 2, 4, 7])
def test_boxes_surround_masks_and_masks_do_not_overlap(objects: int) -> None:
    picture = render(2, "coco", 11, 96, objects=objects)
    assert len(picture.objects) == objects
    assert np.sum([thing.mask for thing in picture.objects], axis=0).max() == 1
    for thing in picture.objects:
        assert 0 <= thing.label < len(CLASSES)
        pixels = [(x, y) for y in range(96) for x in range(96) if thing.mask[y, x]]
        xs, ys = zip(*pixels, strict=True)
        assert thing.box == (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    for index in range(60):
        picture = render(2, "coco", index, 64, objects=4)
        assert np.sum([thing.mask for thing in picture.objects], axis=0).max() == 1
        assert all(thing.mask.any() for thing in picture.objects)


def test_the_mask_is_where_the_object_is_painted() -> None:
    """Neighbouring pixels differ across the mask's edge, and hardly in the background."""
    for index in range(20):
        picture = render(5, "train", index, 96)
        levels = picture.image.astype(float)
        across = np.abs(np.diff(levels, axis=1)).sum(-1)
        edge = picture.mask[:, 1:] != picture.mask[:, :-1]
        outside = ~(picture.mask[:, 1:] | picture.mask[:, :-1])
        assert across[edge].mean() > 2 * across[outside].mean()


def test_neither_mean_colours_nor_raw_pixels_say_much_of_the_class() -> None:
    def pictures(split: str, number: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        source = ShapesSource(split, image_size=24, num_images=number)
        levels = np.stack([np.asarray(source.load(i), np.float64) for i in range(number)])
        return levels.reshape(number, -1, 3) - 128, source.labels

    def knn_accuracy(train: NDArray[np.float64], val: NDArray[np.float64]) -> float:
        train, val = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, val))
        nearest = np.argsort(-val @ train.T, axis=1)[:, :20]
        votes = np.apply_along_axis(np.bincount, 1, train_labels[nearest], minlength=10)
        return float(np.mean(votes.argmax(1) == val_labels))

    (train, train_labels), (val, val_labels) = pictures("train", 1000), pictures("val", 500)
    assert knn_accuracy(train.mean(1), val.mean(1)) < 0.25  # chance 0.1, its deviation 0.013
    assert knn_accuracy(train.reshape(1000, -1), val.reshape(500, -1)) < 0.5


# -- styles ------------------------------------------------------------------------------------


def test_a_sketch_is_grey_and_mostly_white_with_a_dark_outline() -> None:
    for index in range(10):
        picture = render(0, "sketch", index, 96, style="sketch")
        image = picture.image
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        np.testing.assert_array_equal(image[..., 0], image[..., 2])
        assert (image > 250).mean() > 0.5
        rows, columns = np.nonzero(image[..., 0] < 128)
        x, y, width, height = picture.box
        assert x - 3 <= columns.min() <= columns.max() <= x + width + 2
        assert y - 3 <= rows.min() <= rows.max() <= y + height + 2


def test_a_rendition_has_fewer_colours_than_a_photo() -> None:
    for index in range(5):
        counts = [
            len(np.unique(render(0, "x", index, 96, style=style).image.reshape(-1, 3), axis=0))
            for style in ("rendition", "photo")
        ]
        assert counts[0] < 0.8 * counts[1]


def test_styles_show_the_same_scene() -> None:
    for index in range(10):
        photo, painted, drawn = (
            render(0, "x", index, 64, style=style) for style in ("photo", "rendition", "sketch")
        )
        for other in (painted, drawn):
            assert (photo.mask & other.mask).sum() / (photo.mask | other.mask).sum() > 0.75


# -- the source --------------------------------------------------------------------------------


def test_a_source_renders_its_pictures() -> None:
    source = ShapesSource("val", image_size=32, num_images=25, seed=9)
    assert len(source) == 25
    assert source.labels.dtype == np.int64
    image = pickle.loads(pickle.dumps(source)).load(np.int64(13))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), render(9, "val", 13, 32).image)
    assert source.describe(13) == "shapes/val/13"
    assert source.identifier(13) == "val/13"
    assert source.classes[source.labels[13]] == CLASSES[3]


@pytest.mark.parametrize("index", [-1, 25])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    source = ShapesSource("val", image_size=32, num_images=25)
    for method in (source.load, source.describe, source.identifier):
        with pytest.raises(IndexError):
            method(index)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 15}, {"image_size": 5000}, {"num_images": 0}, {"seed": -1}]
)
def test_numbers_out_of_range_are_the_users_mistake(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="it must be in"):
        ShapesSource("train", **{"image_size": 32, "num_images": 10, **wrong})


@pytest.mark.parametrize("wrong", [{"objects": 0}, {"style": "oil"}])
def test_render_refuses_other_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"objects|style"):
        render(0, "train", 0, 32, **wrong)  # type: ignore[arg-type]

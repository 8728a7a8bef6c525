"""The corruptions: as strong as published, deterministic, and exact where there is an oracle."""

from __future__ import annotations

import json
import multiprocessing
from functools import cache

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from sercli.data.corruptions import pixels, weather
from sercli.data.corruptions.catalogue import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corruption_generator,
)
from sercli.data.corruptions.sequences import perturb
from sercli.data.robustness.sets import PERTURBATIONS
from sercli.data.shapes.world import render
from sercli.errors import UserError
from tests.support.corruption_strengths import (
    LAYERS,
    MOTIONS,
    SPATTERS,
    TABLE,
    photographs,
    strength,
)

_ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
_PUBLISHED = json.loads(TABLE.read_text())["corruptions"]


def _corrupted(image: Image.Image, name: str, severity: int, key: str = "x") -> Image.Image:
    return corrupt(image, name, severity, corruption_generator(0, key, name, severity))


@cache
def _photographs() -> tuple[Image.Image, ...]:
    return tuple(photographs())


# -- names -------------------------------------------------------------------------------------


def test_there_are_fifteen_in_the_papers_order_and_four_more() -> None:
    assert (
        *("gaussian_noise", "shot_noise", "impulse_noise"),
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "brightness"),
        *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    ) == CORRUPTIONS
    assert set(EXTRA_CORRUPTIONS) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert SEVERITIES == (1, 2, 3, 4, 5)
    assert set(_PUBLISHED) == set(_ALL)


@pytest.mark.parametrize(("name", "severity"), [("rain", 1), ("fog", 0), ("fog", 6)])
def test_no_such_corruption(name: str, severity: int) -> None:
    with pytest.raises(UserError, match="it must be"):
        _corrupted(Image.new("RGB", (32, 32)), name, severity)


@pytest.mark.parametrize(("mode", "size"), [("L", (32, 32)), ("RGB", (32, 31)), ("RGB", (8, 8))])
def test_pictures_are_rgb_and_square(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="RGB and square"):
        _corrupted(Image.new(mode, size), "fog", 1)


# -- strength ----------------------------------------------------------------------------------

# Draws of each of three pictures, and how far from the table, in dB, their mean PSNR may lie: what
# is left is chance (about 3 deviations of the mean), and for frost that its crystals are drawn.
_EXACT = (1, 0.02)
_TOLERANCE = {
    **dict.fromkeys(("gaussian_noise", "impulse_noise", "speckle_noise"), (1, 0.08)),
    "shot_noise": (1, 0.08),
    "glass_blur": (1, 0.1),
    "motion_blur": (4, 0.2),
    "snow": (4, 0.25),
    "elastic_transform": (6, 0.6),
    "fog": (8, 0.8),
    "frost": (8, 1.2),
    "spatter": (8, 1.7),  # its drops are few: PSNR has a deviation of 3.4 dB at severity 1
    "saturate": (1, 0.08),
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", _ALL)
def test_strength_is_that_of_the_published_program(name: str, severity: int) -> None:
    draws, tolerance = _TOLERANCE.get(name, _EXACT)
    found = [
        strength(picture, _corrupted(picture, name, severity, f"{number}/{draw}"))
        for draw in range(draws)
        for number, picture in enumerate(_photographs())
    ]
    psnr, shift = np.mean(found, axis=0)
    expected, _, expected_shift = _PUBLISHED[name][severity - 1]
    assert psnr == pytest.approx(expected, abs=tolerance)
    assert shift == pytest.approx(expected_shift, abs=8 if tolerance > 0.5 else 0.4)


@pytest.mark.parametrize(
    "name",
    [
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
        *("elastic_transform", "snow", "spatter"),
    ],
)
def test_a_small_picture_is_hurt_as_much_as_a_large_one(name: str) -> None:
    def mean_psnr(side: int) -> float:
        pictures = [Image.fromarray(render(0, "val", i, side).image) for i in range(6)]
        found = [strength(p, _corrupted(p, name, 4, str(i))) for i, p in enumerate(pictures)]
        return float(np.mean(found, axis=0)[0])

    # A pixel is the least that glass can move one by, here 3.5 times as far as it should be; and
    # spots smaller than pixels are pale.
    tolerance = {"glass_blur": 5.0, "spatter": 3.5}.get(name, 2.5)
    assert mean_psnr(64) == pytest.approx(mean_psnr(224), abs=tolerance)


# -- determinism -------------------------------------------------------------------------------


def _fingerprints(keys: list[str]) -> dict[tuple[str, str], bytes]:
    picture = Image.fromarray(render(0, "val", 3, 32).image)
    return {(n, k): _corrupted(picture, n, 3, k).tobytes() for k in keys for n in _ALL}


def test_a_picture_depends_on_nothing_but_its_key() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    here = _fingerprints(["a", "b"])
    after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    np.testing.assert_array_equal(before, after)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_fingerprints, (["b", "a"],))
    assert here == there
    without_chance = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"}
    without_chance |= {"jpeg_compression", "gaussian_blur", "saturate"}
    for name in _ALL:
        assert (here[name, "a"] == here[name, "b"]) == (name in without_chance), name


def test_keys_differ_in_each_of_their_parts() -> None:
    keys = [(0, "a", "fog", 1), (1, "a", "fog", 1), (0, "b", "fog", 1)]
    keys += [(0, "a", "snow", 1), (0, "a", "fog", 2)]
    draws = {corruption_generator(*key).random() for key in keys}
    assert len(draws) == len(keys)
    assert corruption_generator(*keys[0]).random() in draws


def test_the_picture_itself_is_left_alone() -> None:
    picture = Image.fromarray(render(0, "val", 3, 32).image)
    before = picture.tobytes()
    for name in _ALL:
        made = _corrupted(picture, name, 5)
        assert (made.mode, made.size) == ("RGB", (32, 32))
        assert made.tobytes() != before
    assert picture.tobytes() == before


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("side", [16, 33])
def test_pictures_of_one_colour_and_odd_sides(level: int, side: int) -> None:
    flat = Image.new("RGB", (side, side), (level, level, level))
    with np.errstate(all="raise", under="ignore"):
        for name in _ALL:
            for severity in (1, 5):
                made = np.asarray(_corrupted(flat, name, severity))
                if "blur" in name or name in ("pixelate", "elastic_transform"):
                    assert np.abs(made.astype(int) - level).max() <= 8  # defocus gains a little


def test_glass_blur_copies_as_the_published_program_does() -> None:
    """Its `swap` of two array views copies the second over the first; the result loses colours."""
    views = np.arange(6).reshape(3, 2)
    views[0], views[1] = views[1], views[0]
    np.testing.assert_array_equal(views, [[2, 3], [2, 3], [4, 5]])


# -- operations, against SciPy's ---------------------------------------------------------------


@pytest.fixture
def levels() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0, 255, (40, 40, 3)).astype(np.float32)


def _close(found: NDArray[np.float32], expected: NDArray[np.floating], atol: float = 2e-3) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.7, 6.0])
def test_gaussian_blur(levels: NDArray[np.float32], sigma: float) -> None:
    expected = scipy.ndimage.gaussian_filter(
        levels.astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=4
    )
    _close(pixels.gaussian_blur(levels, sigma), expected)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 31.0])
def test_smooth_field_may_be_blurred_wider_than_it_is(
    levels: NDArray[np.float32], sigma: float
) -> None:
    field = levels[..., 0]
    expected = scipy.ndimage.gaussian_filter(field.astype(np.float64), sigma, truncate=3)
    _close(pixels.smooth_field(field, sigma), expected)


@pytest.mark.parametrize("side", [1, 5, 17])
def test_convolve(levels: NDArray[np.float32], side: int) -> None:
    kernel = np.random.default_rng(1).random((side, side))
    expected = [
        scipy.ndimage.correlate(levels[..., k].astype(np.float64), kernel, mode="mirror")
        for k in range(3)
    ]
    _close(pixels.convolve(levels, kernel), np.stack(expected, -1), atol=0.05)
    _close(pixels.convolve(levels[..., 0], kernel), expected[0], atol=0.05)


def test_correlate_3x3(levels: NDArray[np.float32]) -> None:
    kernel = np.arange(9.0).reshape(3, 3)
    expected = scipy.ndimage.correlate(levels[..., 0].astype(np.float64), kernel, mode="mirror")
    _close(pixels.correlate_3x3(levels[..., 0], kernel), expected, atol=0.05)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.17, 2.0, 4.5])
def test_clipped_zoom(levels: NDArray[np.float32], factor: float) -> None:
    inner = int(np.ceil(40 / factor))
    start = (40 - inner) // 2
    part = levels[start : start + inner, start : start + inner].astype(np.float64)
    zoomed = scipy.ndimage.zoom(part, (factor, factor, 1), order=1)
    first = (len(zoomed) - 40) // 2
    _close(
        pixels.clipped_zoom(levels, factor), zoomed[first : first + 40, first : first + 40], 0.01
    )


@pytest.mark.parametrize(("border", "mode"), [("symmetric", "reflect"), ("reflect", "mirror")])
def test_sample(levels: NDArray[np.float32], border: str, mode: str) -> None:
    rows, columns = np.random.default_rng(2).uniform(-30, 70, (2, 25, 30))
    expected = [
        scipy.ndimage.map_coordinates(
            levels[..., k].astype(np.float64), [rows, columns], order=1, mode=mode
        )
        for k in range(3)
    ]
    found = pixels.sample(levels, rows, columns, border=border)  # type: ignore[arg-type]
    _close(found, np.stack(expected, -1))


def test_distance_to() -> None:
    """Along straight and knight's lines exact, between them up to 2 % too long."""
    mask = np.random.default_rng(3).random((60, 50)) < 0.002
    found = pixels.distance_to(mask, 20)
    expected = scipy.ndimage.distance_transform_edt(~mask)
    _close(np.minimum(found, 19), np.minimum(expected, 19).astype(np.float32), atol=0.02 * 20)
    assert np.all(found[(expected >= 20.4)] == 20)
    assert np.all(pixels.distance_to(np.zeros((9, 9), bool), 20) == 20)
    point = np.zeros((41, 41), bool)
    point[20, 20] = True
    around = pixels.distance_to(point, 30)
    for turned in (around, around[::-1], around.T, around.T[:, ::-1]):
        assert turned[20, 30] == 10
        assert turned[30, 30] == pytest.approx(14, abs=1e-3)
        assert turned[30, 25] == pytest.approx(5 * 2.1969, abs=1e-3)


def test_motion_blur_is_a_half_gaussian_along_a_line() -> None:
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 255
    weights = np.exp(-(np.arange(11) ** 2) / 18)
    weights *= 255 / weights.sum()
    for degrees, step in ((0, (0, -1)), (90, (-1, 0)), (45, None)):
        trail = pixels.motion_blur(point, radius=5, sigma=3, degrees=degrees)
        assert 255 - 11 <= trail.sum() <= 255
        if step is not None:
            along = [trail[20 + k * step[0], 20 + k * step[1]] for k in range(11)]
            np.testing.assert_array_equal(along, np.floor(weights))
        else:
            rows, columns = np.nonzero(trail)
            np.testing.assert_array_equal(rows, columns)


def test_equalised_levels_spread_evenly() -> None:
    few = np.repeat(np.array([10, 20, 200], np.uint8), (5, 10, 10)).reshape(5, 5)
    np.testing.assert_array_equal(np.unique(pixels.equalised(few)), [0, 128, 255])
    flat = np.full((3, 3), 9, np.uint8)
    np.testing.assert_array_equal(pixels.equalised(flat), flat)


def test_noise_fields() -> None:
    random = np.random.default_rng(4)
    cloud = pixels.plasma(64, 2.0, random)
    assert (cloud.shape, cloud.min(), cloud.max()) == ((64, 64), 0, 1)
    rough = pixels.plasma(64, 1.2, random)
    assert np.abs(np.diff(rough)).mean() > np.abs(np.diff(cloud)).mean()
    for exponent in (0.5, 1.5):
        noise = pixels.power_noise(64, exponent, random)
        assert noise.mean() == pytest.approx(0, abs=1e-6)
        assert noise.std() == pytest.approx(1, rel=1e-5)


# -- operations, against arrays made with ImageMagick and OpenCV -------------------------------


@pytest.fixture(scope="module")
def layers() -> dict[str, NDArray[np.generic]]:
    with np.load(LAYERS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("picture", ["colour", "grey"])
@pytest.mark.parametrize("number", range(len(MOTIONS)))
def test_motion_blur_is_imagemagicks(
    layers: dict[str, NDArray[np.generic]], picture: str, number: int
) -> None:
    radius, sigma, degrees = MOTIONS[number]
    expected = layers[f"{picture}_moved{number}"].astype(int)
    before = layers[picture].astype(np.float32)
    found = pixels.motion_blur(before, radius=radius, sigma=sigma, degrees=degrees)
    assert found.dtype == np.float32
    off = found.astype(int) - expected
    # A sum within float32's rounding of a level's end may fall on its other side.
    assert np.abs(off).max() <= 1
    assert np.mean(off != 0) < 5e-4


@pytest.mark.parametrize(
    ("source", "edges"),
    [("waves", "waves_edges"), *((f"liquid{k}", f"edges{k}") for k in range(3))],
)
def test_canny_edges_are_opencvs(
    layers: dict[str, NDArray[np.generic]], source: str, edges: str
) -> None:
    levels = layers[source]
    if source != "waves":
        threshold = SPATTERS[int(source[-1])][1]
        levels = np.where(levels < threshold, 0, levels * 255)
    found = pixels.canny_edges(levels.astype(np.uint8), 50, 150)
    assert 100 < layers[edges].sum() < levels.size / 2 - 1
    np.testing.assert_array_equal(found, layers[edges])


def test_weak_edges_count_where_they_lead_to_strong_ones(
    layers: dict[str, NDArray[np.generic]],
) -> None:
    levels = layers["waves"].astype(np.uint8)
    strong, all_ = pixels.canny_edges(levels, 150, 150), pixels.canny_edges(levels, 50, 50)
    found = pixels.canny_edges(levels, 50, 150)
    assert strong.sum() < found.sum() < all_.sum()
    assert not np.any(strong & ~found | found & ~all_)


@pytest.mark.parametrize("number", range(len(SPATTERS)))
def test_the_drops_of_spatter_are_opencvs(
    layers: dict[str, NDArray[np.generic]], number: int
) -> None:
    edges = layers[f"edges{number}"].astype(bool)
    _close(pixels.distance_to(edges, 20), layers[f"distance{number}"].astype(np.float32), 2e-4)
    liquid = layers[f"liquid{number}"].astype(np.float32)
    found = weather._drops(liquid, SPATTERS[number][1])
    np.testing.assert_array_equal(found, layers[f"drops{number}"])


# -- sequences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_sequence_changes_little_by_little(name: str) -> None:
    picture = Image.fromarray(render(0, "val", 3, 73).image)
    frames = perturb(picture, name, np.random.default_rng(0), side=64)
    again = perturb(picture, name, np.random.default_rng(0), side=64)
    np.testing.assert_array_equal(frames, again)
    assert (frames.dtype, frames.shape[1:]) == (np.uint8, (64, 64, 3))
    assert len(frames) == (41 if name == "translate" else 31)
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    far = np.abs(frames[-1].astype(int) - frames[0]).mean()
    # Short trails on small pictures point in few directions.
    assert np.mean(steps > 0) > (0.3 if name in ("motion_blur", "snow") else 0.99)
    assert steps.mean() < (2 * far if "noise" in name else far)


def test_frames_move_as_they_are_said_to() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    picture, random = Image.fromarray(ramp), np.random.default_rng(0)
    moved = perturb(picture, "translate", random, side=224)
    np.testing.assert_array_equal(moved[20], ramp[16:240, 16:240])
    np.testing.assert_array_equal(moved[19, :, :, 0], moved[20, :, :, 0].astype(int) + 1)
    turned = perturb(picture, "rotate", random, side=224)
    np.testing.assert_array_equal(turned[15], ramp[16:240, 16:240])
    small = perturb(picture, "scale", random, side=224)
    np.testing.assert_array_equal(small[24], ramp[16:240, 16:240])
    assert small[0][0, 0].max() == 0
    tilted = perturb(picture, "tilt", random, side=224)
    np.testing.assert_array_equal(tilted[15], ramp[16:240, 16:240])

"""Crops by Pillow and by torch's filters for bytes: the same picture to a level."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sercli.data.crops import cut, random_crop
from sercli.data.cutting import CUTTERS, FastCutter, PilCutter
from tests.data.images.test_native import photo
from tests.support.pictures import Pictures

SOURCE = Pictures(6, sizes=((40, 30), (33, 64), (50, 50)))


def boxes(size, count=12, seed=0):
    draws = np.random.default_rng(seed)
    drawn = [
        random_crop(*size, area=(0.08, 1), aspect=(3 / 4, 4 / 3), draws=draws) for _ in range(count)
    ]
    return [*drawn, (0, 0, *size), (3, 2, 1, 1), (0, 1, size[0], 1)]


def target(size):
    return np.zeros((size, size, 3), np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_reference_is_pillow_to_the_bit(interpolation):
    image = photo(80, 60)
    for box in boxes(image.size):
        out = target(32)
        PilCutter(image).cut(out, box, interpolation)
        assert np.array_equal(out, np.asarray(cut(image, box, 32, interpolation)))


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("size", [(500, 375), (37, 53), (5, 7)])
def test_the_fast_crops_are_pillows_to_a_level(interpolation, most, size):
    image = photo(*size)
    pil, fast = PilCutter(image), FastCutter(np.array(image))
    assert pil.size == fast.size == size
    apart = []
    for box in boxes(size):
        for side in (224, 32):
            one, two = target(side), target(side)
            pil.cut(one, box, interpolation)
            fast.cut(two, box, interpolation)
            apart.append(np.abs(one.astype(int) - two).ravel())
    apart = np.concatenate(apart)
    assert apart.max() <= most
    assert (apart > 0).mean() < 0.05


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_fast_crops_are_the_filter_in_float64(interpolation):
    image = photo(90, 70)
    fast, whole = FastCutter(np.array(image)), torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for x, y, w, h in boxes(image.size):
        out = target(24)
        fast.cut(out, (x, y, w, h), interpolation)
        exact = functional.interpolate(
            whole[None, :, y : y + h, x : x + w].double(),
            (24, 24),
            mode=interpolation,
            antialias=True,
        )[0].clamp(0, 255)
        assert (torch.from_numpy(out).permute(2, 0, 1) - exact).abs().max() < 2


@pytest.mark.parametrize("decoder", CUTTERS)
def test_a_crop_of_the_right_size_is_left_alone(decoder):
    cutter, pixels = CUTTERS[decoder].of(SOURCE, 2), SOURCE.pixels(2)
    out = target(20)
    cutter.cut(out, (7, 9, 20, 20), "bilinear")
    assert np.array_equal(out, pixels[9:29, 7:27])

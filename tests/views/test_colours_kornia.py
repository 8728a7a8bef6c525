"""Colours against kornia's operations, which share no code with torchvision's (extra dev-all)."""

import importlib
import math

import pytest
import torch

from sercli.views.colours import PhotometricParameters, apply

pytestmark = pytest.mark.clients

COUNT = 12
# Ours and torchvision's luma are rounded to 0.2989, kornia's to 0.299.
LUMA = 2e-4


@pytest.fixture(scope="module")
def kornia():
    return importlib.import_module("kornia")  # missing is an error: this is what is asked for


@pytest.fixture
def images():
    return torch.rand(COUNT, 3, 20, 17, generator=torch.Generator().manual_seed(0))


def only(**changes):
    """Parameters that change nothing, but for `changes`."""
    values = dict(
        jitter=torch.zeros(COUNT).bool(),
        factors=torch.tensor([1.0, 1, 1, 0]).repeat(COUNT, 1),
        order=torch.arange(4).repeat(COUNT, 1),
        grey=torch.zeros(COUNT).bool(),
        blur_sigma=torch.zeros(COUNT),
        solarise=torch.zeros(COUNT).bool(),
        spans=torch.ones(COUNT, 5),
    )
    return PhotometricParameters(**{**values, **changes})


@pytest.mark.parametrize(
    ("which", "name", "scale", "tolerance"),
    [
        (0, "adjust_brightness_accumulative", 1, 1e-6),
        (1, "adjust_contrast_with_mean_subtraction", 1, LUMA),
        (2, "adjust_saturation_with_gray_subtraction", 1, LUMA),
        (3, "adjust_hue", 2 * math.pi, 1e-4),  # kornia turns by radians
    ],
)
def test_each_jitter(kornia, images, which, name, scale, tolerance):
    amounts = torch.linspace(-0.5, 0.5, COUNT) if which == 3 else torch.linspace(0.1, 1.9, COUNT)
    factors = torch.tensor([1.0, 1, 1, 0]).repeat(COUNT, 1)
    factors[:, which] = amounts
    ours = apply(images, only(jitter=torch.ones(COUNT).bool(), factors=factors))
    theirs = getattr(kornia.enhance, name)(images, amounts * scale)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert (ours - images).abs().amax() > 0.1


def test_grey(kornia, images):
    ours = apply(images, only(grey=torch.ones(COUNT).bool()))
    theirs = kornia.color.rgb_to_grayscale(images).expand_as(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LUMA)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur(kornia, images, sigma):
    size = 2 * math.ceil(3 * sigma) + 1
    ours = apply(images, only(blur_sigma=torch.full((COUNT,), sigma)))
    theirs = kornia.filters.gaussian_blur2d(images, (size, size), (sigma, sigma))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_solarise(kornia, images):
    ours = apply(images, only(solarise=torch.ones(COUNT).bool()))
    torch.testing.assert_close(ours, kornia.enhance.solarize(images, 0.5), rtol=0, atol=0)

"""Colours against torchvision's operations, image by image."""

import itertools
import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from sercli.recipe.schema import Photometrics
from sercli.views import colours as photometrics
from sercli.views import passes
from sercli.views.colours import (
    NUM_UNIFORMS,
    PhotometricParameters,
    apply,
    carry_out,
    draw,
    plan_work,
)

ALL_ON = Photometrics(
    jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=1, grey_p=0.3, blur_p=0.5, solarise_p=0.4
)
ALMOST_ONE = 0.99999994  # the largest float32 below 1


def batch(count=12, height=20, width=17, seed=0):
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    images[0] = 0.25  # no chroma: the hue is undefined
    images[1, :, :5] = 0
    images[2, :, :5] = 1
    images[3, 0] = images[3, 1]  # two channels equal: a sextant's border
    images[4, 1] = images[4, 2]
    images[5] = (images[5] > 0.5).float()
    return images


def uniforms(count, seed=1):
    return torch.rand(count, NUM_UNIFORMS, generator=torch.Generator().manual_seed(seed))


def reference(image, parameters, index, *, kernel_size):
    """The chain written with torchvision's functions."""
    brightness, contrast, saturation, hue = parameters.factors[index].tolist()
    jitter = [
        lambda x: tv.adjust_brightness(x, brightness),
        lambda x: tv.adjust_contrast(x, contrast),
        lambda x: tv.adjust_saturation(x, saturation),
        lambda x: tv.adjust_hue(x, hue),
    ]
    if parameters.jitter[index]:
        for which in parameters.order[index].tolist():
            image = jitter[which](image)
    if parameters.grey[index]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    sigma = parameters.blur_sigma[index].item()
    if sigma > 0:
        image = tv.gaussian_blur(image, [kernel_size, kernel_size], [sigma, sigma])
    if parameters.solarise[index]:
        image = tv.solarize(image, 0.5)
    return image


def only(count, **changes):
    """Parameters that change nothing, but for `changes`."""
    values = dict(
        jitter=torch.zeros(count).bool(),
        factors=torch.tensor([1.0, 1, 1, 0]).repeat(count, 1),
        order=torch.arange(4).repeat(count, 1),
        grey=torch.zeros(count).bool(),
        blur_sigma=torch.zeros(count),
        solarise=torch.zeros(count).bool(),
        spans=torch.ones(count, 5),
    )
    return PhotometricParameters(**{**values, **changes})


@pytest.mark.parametrize("which", range(4))
def test_each_jitter_is_torchvisions(which):
    images = batch()
    factors = torch.tensor([1.0, 1, 1, 0]).repeat(12, 1)
    spread = torch.linspace(-0.5, 0.5, 12) if which == 3 else torch.linspace(0, 2, 12)
    factors[:, which] = spread[torch.randperm(12, generator=torch.Generator().manual_seed(2))]
    parameters = only(12, jitter=torch.ones(12).bool(), factors=factors)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    changed = apply(images, parameters)
    for index, image in enumerate(images):
        expected = functions[which](image, factors[index, which].item())
        torch.testing.assert_close(changed[index], expected, rtol=0, atol=1e-5)
    assert (changed - images).abs().amax() > 0.1


def test_grey_and_solarise_are_torchvisions():
    images = batch()
    every_other = torch.arange(12) % 2 == 0
    grey = apply(images, only(12, grey=every_other))
    solarised = apply(images, only(12, solarise=~every_other))
    for index, image in enumerate(images):
        gold = tv.rgb_to_grayscale(image, 3) if index % 2 == 0 else image
        torch.testing.assert_close(grey[index], gold, rtol=0, atol=1e-6)
        gold = image if index % 2 == 0 else tv.solarize(image, 0.5)
        torch.testing.assert_close(solarised[index], gold, rtol=0, atol=0)


def test_solarise_inverts_the_threshold_itself():
    images = torch.tensor([0.4999, 0.5, 0.75]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    out = apply(images, only(3, solarise=torch.ones(3).bool()))
    assert out[:, 0, 0, 0].tolist() == pytest.approx([0.4999, 0.5, 0.25])


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("size", [(20, 17), (40, 24)])
def test_blur_is_torchvisions_with_three_sigma(sigma, size):
    images = batch(6, *size)
    kernel = 2 * math.ceil(3 * sigma) + 1
    blurred = apply(images, only(6, blur_sigma=torch.full((6,), sigma)))
    torch.testing.assert_close(
        blurred, tv.gaussian_blur(images, [kernel, kernel], [sigma, sigma]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("size", [(20, 17), (1, 1), (2, 5), (7, 7)])
def test_blur_by_products_is_that_by_shifts(size):
    """The latter is what a CPU does, the former what a device does."""
    images = batch(6, 20, 17)[..., : size[0], : size[1]].contiguous()
    radius = min(6, *(side - 1 for side in size))
    places = torch.arange(radius + 1)
    kernel = torch.exp(-0.5 * (places / torch.linspace(0.1, 2, 6)[:, None]).square())
    shifts, products = (
        by(images.double(), kernel.double())
        for by in (passes.blur_by_shifts, passes.blur_by_products)
    )
    torch.testing.assert_close(shifts, products, rtol=0, atol=1e-12)


def test_blur_of_images_smaller_than_the_kernel():
    for side in (1, 2, 5):
        flat = torch.full((2, 3, side, side + 1), 0.3)
        blurred = apply(flat, only(2, blur_sigma=torch.full((2,), 2.0)))
        torch.testing.assert_close(blurred, torch.full_like(blurred, 0.3))


def test_the_chain_is_torchvisions_in_every_order():
    """48 images of one blur width: both orders of everything, all 24 orders of the jitter."""
    images = batch(48)
    u = uniforms(48)
    u[:, 5] = (torch.arange(48) % 24 + 0.5) / 24
    u[:, 8] = 0.4  # one sigma, so that one kernel size fits all
    parameters = draw(u, ALL_ON)
    assert len(set(map(tuple, parameters.order.tolist()))) == 24
    sigma = 0.1 + 0.4 * 1.9
    changed = apply(images, parameters)
    for index, image in enumerate(images):
        expected = reference(image, parameters, index, kernel_size=2 * math.ceil(3 * sigma) + 1)
        difference = (changed[index] - expected).abs()
        # Rounding may fall on the other side of solarisation's threshold at single pixels.
        assert (difference > 1e-5).float().mean() < 2e-3, index
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_an_image_does_not_depend_on_its_batch():
    """What a view looks like must not depend on which rank it is on."""
    images, u = batch(), uniforms(12)
    parameters = draw(u, Photometrics(blur_p=1.0))
    together = apply(images, parameters)
    for index in range(12):
        alone = apply(images[index : index + 1], parameters.take(slice(index, index + 1)))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("images_a_chunk", [1, 5, 12, 100])
def test_chunks_of_any_size_give_the_same(monkeypatch, images_a_chunk):
    """A chunk of one image skips what it does not need; in one of all every pass has something."""
    monkeypatch.setattr(photometrics, "_CHUNK_BYTES", {"cpu": 12 * 20 * 17 * images_a_chunk})
    images, parameters = batch(), draw(uniforms(12), ALL_ON)
    work = plan_work(parameters, size=(20, 17), device=images.device)
    assert len(work.chunks) == -(-12 // images_a_chunk)
    gold = apply(images.double(), parameters)
    changed = apply(images, parameters)
    assert ((changed - gold).abs() > 2e-6).float().mean() < 1e-3  # solarisation's threshold
    slots = {step[0] for chunk in work.chunks for step in chunk.steps}
    assert slots == set(range(7))
    if images_a_chunk == 1:
        assert sum(len(chunk.steps) for chunk in work.chunks) == 3 * 12 + parameters.grey.sum()
        assert all(chunk.is_sorted for chunk in work.chunks)


def test_bytes_are_scaled_and_normalised():
    images = (batch() * 255).byte()
    parameters = draw(uniforms(12), ALL_ON)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    normalised = apply(images, parameters, mean=mean, std=std)
    assert normalised.dtype == torch.float32
    plain = apply(images.double() / 255, parameters)
    m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    off = (normalised - (plain - m) / s).abs() > 1e-5
    assert off.float().mean() < 1e-3
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(apply(last, parameters, mean=mean, std=std), normalised)


def test_passes_can_be_replaced():
    """By compiled ones: what they are given are tensors, and whether there are terms at all."""
    seen = []

    def spy(name):
        def call(*arguments, **terms):
            assert all(a is None or isinstance(a, torch.Tensor) for a in arguments)
            assert all(isinstance(term, bool) for term in terms.values())
            seen.append(name)
            return getattr(passes, name)(*arguments, **terms)

        return call

    names = ("blend", "turn_hue", "finish")
    images, parameters = batch(), draw(uniforms(12), ALL_ON)
    work = plan_work(parameters, size=(20, 17), device=images.device)
    by = passes.Passes(**{name: spy(name) for name in names})
    plain = dict(mean=(0, 0, 0), std=(1, 1, 1))
    found = carry_out(work, images, work.tensors, **plain, by=by)
    assert torch.equal(found, apply(images, parameters))
    assert seen == ["blend"] * 3 + ["turn_hue"] + ["blend"] * 4 + ["finish"]


def test_the_input_is_kept_and_values_stay_in_range():
    images = batch()
    before = images.clone()
    wild = Photometrics(jitter=(3.0, 3.0, 3.0, 0.5), jitter_p=1, blur_p=1, solarise_p=1)
    changed = apply(images, draw(uniforms(12), wild))
    assert torch.equal(images, before)
    assert changed.data_ptr() != images.data_ptr()
    assert changed.min() >= 0
    assert changed.max() <= 1
    untouched = apply(images, only(12))
    assert torch.equal(untouched, images)
    assert untouched.data_ptr() != images.data_ptr()


# -- draw -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [0.0, ALMOST_ONE])
def test_probability_0_is_never_and_1_always(edge):
    u = torch.full((1, NUM_UNIFORMS), edge)
    never = draw(u, Photometrics(jitter_p=0, grey_p=0, blur_p=0, solarise_p=0))
    assert not torch.cat([never.jitter, never.grey, never.solarise]).any()
    assert never.blur_sigma.item() == 0
    always = draw(u, Photometrics(jitter_p=1, grey_p=1, blur_p=1, solarise_p=1))
    assert always.jitter.all()
    assert always.grey.all()
    assert always.solarise.all()
    assert 0.1 <= always.blur_sigma.item() <= 2.0 + 1e-6


def test_edge_uniforms_give_the_ends_of_the_ranges():
    config = Photometrics(jitter=(0.4, 1.5, 0.2, 0.1), blur_p=1)
    low = draw(torch.zeros(1, NUM_UNIFORMS), config)
    high = draw(torch.full((1, NUM_UNIFORMS), ALMOST_ONE), config)
    assert low.factors[0].tolist() == pytest.approx([0.6, 0, 0.8, -0.1])
    assert high.factors[0].tolist() == pytest.approx([1.4, 2.5, 1.2, 0.1], abs=1e-5)
    assert low.blur_sigma.item() == pytest.approx(0.1)
    assert high.blur_sigma.item() == pytest.approx(2.0)
    assert sorted(high.order[0].tolist()) == [0, 1, 2, 3]


def test_draws_have_the_asked_distribution():
    count = 40_000
    parameters = draw(uniforms(count, seed=3), ALL_ON)
    assert parameters.grey.double().mean() == pytest.approx(0.3, abs=0.01)
    assert parameters.solarise.double().mean() == pytest.approx(0.4, abs=0.01)
    blurred = parameters.blur_sigma[parameters.blur_sigma > 0]
    assert len(blurred) / count == pytest.approx(0.5, abs=0.01)
    assert blurred.double().mean() == pytest.approx(1.05, abs=0.02)
    for column, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
        values = parameters.factors[:, column].double()
        assert low <= values.min() + 1e-6
        assert values.max() <= high + 1e-6
        quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75]).double())
        expected = [low + (high - low) * q for q in (0.25, 0.5, 0.75)]
        assert quartiles.tolist() == pytest.approx(expected, abs=(high - low) * 0.02)
    orders = [tuple(order) for order in parameters.order.tolist()]
    assert set(orders) == set(itertools.permutations(range(4)))
    assert min(orders.count(order) for order in set(orders)) > count / 24 * 0.8
    # Independent: what decides one thing must not decide another.
    flags = torch.stack(
        [parameters.grey, parameters.blur_sigma > 0, parameters.solarise, u_half(parameters)]
    ).double()
    correlation = torch.corrcoef(flags) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def u_half(parameters):
    return parameters.factors[:, 0] > 1


def test_take_selects_images():
    parameters = draw(uniforms(6), ALL_ON)
    images = batch(6)
    rows = torch.tensor([4, 1])
    few = parameters.take(rows)
    assert torch.equal(few.factors, parameters.factors[rows])
    assert len(few.order) == 2
    unblurred = draw(uniforms(6), Photometrics(blur_p=0))
    expected = apply(images, unblurred)[rows]
    torch.testing.assert_close(apply(images[rows], unblurred.take(rows)), expected)


def test_no_images():
    empty = apply(torch.zeros(0, 3, 8, 8), draw(torch.zeros(0, NUM_UNIFORMS), ALL_ON))
    assert empty.shape == (0, 3, 8, 8)
    assert photometrics.NUM_UNIFORMS == NUM_UNIFORMS == 10

"""D4 × scaling: against the authors' arrays, group laws, and the patch-mean map."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sercli.actions import GeometricAction, transport
from tests.support.golden import CASES, golden_action
from tests.support.operators import Operators

elements = st.tuples(st.booleans(), st.integers(0, 3))


def action(items, grid):
    mirrors, turns = ([item[i] for item in items] for i in range(2))
    return GeometricAction(torch.tensor(mirrors).bool(), torch.tensor(turns).long(), grid)


@pytest.mark.parametrize("file", CASES, ids=lambda f: f.stem)
def test_agrees_with_the_authors(file):
    arrays = np.load(file)
    actions = [golden_action(arrays, view) for view in (0, 1)]
    images = torch.from_numpy(arrays["image"])
    for view in (0, 1):
        torch.testing.assert_close(
            actions[view].on_image(images, patch=int(arrays["patch"])),
            torch.from_numpy(arrays[f"view{view}"]), atol=1e-4, rtol=0)  # fmt: skip
        other = 1 - view
        moved = transport(
            torch.from_numpy(arrays[f"teacher{view}"]), source=actions[view], target=actions[other]
        )
        expected = torch.from_numpy(arrays[f"teacher{view}_moved_to_view{other}"])
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_golden_arrays_are_there():
    assert len(CASES) == 3


@given(st.lists(st.tuples(elements, elements, elements), min_size=1, max_size=6))
@settings(deadline=None)
def test_group_laws(triples):
    a, b, c = (action([t[i] for t in triples], (3, 3)) for i in range(3))
    identity = GeometricAction.identity(len(triples), (3, 3))

    def same(x, y):
        return torch.equal(x.hflip, y.hflip) and torch.equal(x.rot90, y.rot90)

    assert same(a.compose(b.compose(c)), a.compose(b).compose(c))
    assert same(a.compose(identity), a)
    assert same(identity.compose(a), a)
    assert same(a.compose(a.inverse((3, 3))), identity)
    assert same(a.inverse((3, 3)).compose(a), identity)


@given(elements, elements, st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_composition_acts_as_one_after_the_other(a, b, height, width):
    image = torch.randn(1, 2, height, width)

    def grid_after(item, grid):
        return grid[::-1] if item[1] % 2 else grid

    first = action([b], grid_after(b, (height, width)))
    then = action([a], grid_after(a, first.grid))
    composed = then.compose(first)
    assert composed.grid == then.grid
    assert torch.equal(
        composed.on_image(image, patch=1), then.on_image(first.on_image(image, patch=1), patch=1)
    )
    back = first.inverse((height, width))
    assert torch.equal(back.on_image(first.on_image(image, patch=1), patch=1), image)


@given(st.lists(st.tuples(elements, elements, elements), min_size=1, max_size=4), st.integers(2, 5))
@settings(deadline=None)
def test_transport_composes(triples, side):
    a, b, c = (action([t[i] for t in triples], (side, side)) for i in range(3))
    tokens = torch.randn(len(triples), 3, side, side)
    via = transport(transport(tokens, source=a, target=b), source=b, target=c)
    assert torch.equal(via, transport(tokens, source=a, target=c))
    assert torch.equal(transport(tokens, source=a, target=a), tokens)


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("size", [(24, 24), (16, 24)])
def test_patch_means_move_with_the_image(hflip, turns, size):
    patch = 4
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    grid = (size[0] // patch, size[1] // patch)
    g = action([(hflip, turns)] * 2, grid[::-1] if turns % 2 else grid)
    patch_means = torch.nn.AvgPool2d(patch)
    moved = transport(patch_means(images), source=GeometricAction.identity(2, grid), target=g)
    torch.testing.assert_close(moved, patch_means(g.on_image(images, patch=patch)))


def test_turn_is_counter_clockwise_and_mirror_comes_first():
    image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert action([(False, 1)], (2, 2)).on_image(image, patch=1).tolist() == [[[[1, 3], [0, 2]]]]
    assert action([(True, 1)], (2, 2)).on_image(image, patch=1).tolist() == [[[[0, 2], [1, 3]]]]


def test_gradient_of_transport_is_the_inverse_permutation():
    a, b = action([(True, 1), (False, 2)], (3, 3)), action([(False, 3), (True, 0)], (3, 3))
    tokens = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, 4, 3, 3)
    (transport(tokens, source=a, target=b) * weights).sum().backward()
    assert torch.equal(tokens.grad, transport(weights, source=b, target=a))


ALL = [(mirror, turns) for turns in range(4) for mirror in (False, True)]


def one_by_one(items, maps, size):
    """Each image by torch's own flip, rot90 and interpolate."""
    moved = []
    for (mirror, turns), one in zip(items, maps, strict=True):
        turned = torch.rot90(one.flip(-1) if mirror else one, turns, dims=(-2, -1))[None]
        if turned.shape[-2:] != size:
            turned = torch.nn.functional.interpolate(turned, size, mode="bicubic")
        moved.append(turned)
    return torch.cat(moved)


@pytest.mark.parametrize("items", [ALL, ALL[::2] * 2, ALL[2:4], ALL[:1] * 3], ids=len)
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 6)])
@pytest.mark.parametrize("size", [None, (4, 7)])
def test_a_batch_is_moved_as_its_images_are_and_so_is_its_gradient(items, shape, size):
    if size is None and shape[0] != shape[1]:
        size = shape  # even quarter turns are exact, odd ones are resized
    size = size or shape
    maps = torch.randn(len(items), 2, *shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(items), 2, *size, dtype=torch.float64)
    gold = one_by_one(items, maps, size)
    (wanted,) = torch.autograd.grad((gold * weights).sum(), maps)
    moved = action(items, size).on_image(maps, patch=1)
    (found,) = torch.autograd.grad((moved * weights).sum(), maps)
    assert torch.equal(moved, gold)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_a_batch_needs_two_resizes_at_most_and_writes_through_no_index():
    """What sums by index has no order on a device, and the rows that go where are known here."""
    maps = torch.randn(8, 2, 3, 5, requires_grad=True)
    element = action(ALL, (4, 7))
    element.on_image(maps, patch=1)
    with Operators() as seen:
        element.on_image(maps, patch=1).sum().backward()
    names = collections.Counter()
    for call, times in seen.calls.items():
        names[call.name] += times
    assert names["upsample_bicubic2d"] == 2
    assert names["gather"] == 4  # two forward, two backward
    forbidden = {"nonzero", "index", "index_put_", "index_copy", "index_add_", "scatter_add_"}
    assert not forbidden & set(names)


def test_what_a_device_needs_can_be_sent_with_other_things():
    element = action(ALL[::-1], (4, 4))
    parts = element.to_send()
    assert parts["code"].tolist() == [7, 3, 6, 2, 5, 1, 4, 0]
    assert (element.rot90[parts["order"]] % 2).tolist() == [0] * 4 + [1] * 4
    assert parts["order"][parts["back"]].tolist() == list(range(8))
    other = {name: tensor.clone() for name, tensor in parts.items()}
    cpu = torch.device("cpu")
    assert element.sent(other, cpu).on(cpu) is other


def test_a_rank_without_a_share_stays_in_the_graph():
    maps = torch.zeros(0, 2, 3, 5, requires_grad=True)
    moved = action([], (4, 7)).on_image(maps, patch=1)
    assert moved.shape == (0, 2, 4, 7)
    moved.sum().backward()
    assert maps.grad.shape == maps.shape


def test_an_action_of_inference_mode_serves_a_training_step():
    with torch.inference_mode():
        acts = action([(True, 1), (False, 2)], (5, 7))
        acts.on_image(torch.rand(2, 1, 7, 5), patch=1)
    maps = torch.rand(2, 1, 7, 5, requires_grad=True)
    acts.on_image(maps, patch=1)[0].sum().backward()
    torch.testing.assert_close(maps.grad[0], torch.ones(1, 7, 5))
    assert not maps.grad[1].any()


def test_sample_covers_the_group_and_the_ranges():
    generator = torch.Generator().manual_seed(0)
    grids, codes = set(), torch.zeros(8, dtype=torch.long)
    for _ in range(400):
        drawn = GeometricAction.sample(20, (14, 14), generator=generator)
        grids.add(drawn.grid)
        codes += torch.bincount(drawn.rot90 + 4 * drawn.hflip, minlength=8)
    assert codes.min() > 0.8 * codes.sum() / 8
    for height, width in grids:
        assert 0.65 <= height * width / 196 <= 1.36
        assert 0.68 <= width / height <= 1.47
    assert len(grids) > 20
    fixed = GeometricAction.sample(2, (5, 7), scale=(1, 1), aspect=(1, 1))
    assert fixed.grid == (5, 7)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \[B\]"):
        GeometricAction(torch.zeros(2).bool(), torch.zeros(3).long(), (2, 2))
    with pytest.raises(ValueError, match="at least 1 patch"):
        GeometricAction.identity(1, (0, 2))
    one = GeometricAction.identity(1, (2, 2))
    with pytest.raises(ValueError, match=r"source.grid"):
        transport(torch.zeros(1, 1, 3, 3), source=one, target=one)
    with pytest.raises(ValueError, match="1 elements for 2 images"):
        one.on_image(torch.zeros(2, 1, 2, 2), patch=1)

"""Losses against float64 closed forms, the authors' arrays and finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sercli.actions import transport
from sercli.losses import info_nce, patch_nt_xent
from sercli.losses.tiles import PatchNTXent, Problem
from tests.support.golden import CASES, golden_action


def closed_form(anchors, keys, *, temperature, negatives, grid, anchor_offset=0, own_view=None):
    """The loss written out token by token, in float64, as a difference of logarithms."""
    a, k = F.normalize(anchors.double(), dim=-1), F.normalize(keys.double(), dim=-1)
    o = a if own_view is None else F.normalize(own_view.double(), dim=-1)
    (num_anchors, tokens, _), num_keys = a.shape, len(k)
    radius = float(negatives.split(":")[1]) if ":" in negatives else math.inf
    views = [k, o] if negatives.startswith("both-views") else [k]
    total = a.new_zeros(())
    for i in range(num_anchors):
        for n in range(tokens):
            image = anchor_offset + i
            positive = a[i, n] @ k[image, n] / temperature
            logits = [positive]
            for view in views:
                for j in range(num_keys):
                    for m in range(tokens):
                        apart = math.dist(divmod(n, grid[1]), divmod(m, grid[1]))
                        if j != image or apart > radius:
                            logits.append(a[i, n] @ view[j, m] / temperature)
            total = total + torch.stack(logits).logsumexp(0) - positive
    return total / (num_anchors * tokens)


FORMS = ["cross-view", "both-views", "cross-view+spatial:1.5", "both-views+spatial:1"]


@pytest.mark.parametrize("negatives", FORMS)
@pytest.mark.parametrize("temperature", [5.0, 0.3, 0.02, 0.005, 1e-4])  # to the safe range and on
@pytest.mark.parametrize("offset", [None, 1])
def test_patch_nt_xent_is_the_closed_form(negatives, temperature, offset):
    torch.manual_seed(0)
    grid, dim, num_keys = (2, 3), 5, 3
    num_anchors = num_keys if offset is None else 2
    anchors = torch.randn(num_anchors, 6, dim, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(num_keys, 6, dim, dtype=torch.float64, requires_grad=True)
    own = None
    if offset is not None and negatives.startswith("both"):
        own = torch.randn(num_keys, 6, dim, dtype=torch.float64, requires_grad=True)
    arguments = dict(
        temperature=temperature, negatives=negatives, grid=grid,
        anchor_offset=offset or 0, own_view=own)  # fmt: skip
    inputs = [t for t in (anchors, keys, own) if t is not None]
    ours, expected = (
        patch_nt_xent(anchors, keys, **arguments),
        closed_form(anchors, keys, **arguments),
    )
    # A cosine's rounding, of 1e-16, is divided by τ, and once more by τ in a gradient.
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours, inputs),
        torch.autograd.grad(3 * expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10 + 1e-14 / temperature**2)


@pytest.mark.parametrize("negatives", FORMS)
@pytest.mark.parametrize("temperature", [0.03, 0.02, 0.005, 1e-4, 1e-8])
def test_patch_nt_xent_is_finite_at_any_temperature(negatives, temperature):
    """Positives far below the largest negative, whose share of the softmax is no fp32 number."""
    torch.manual_seed(0)
    keys = torch.randn(3, 6, 5)
    anchors = (-keys + 0.1 * torch.randn(3, 6, 5)).requires_grad_()
    arguments = dict(temperature=temperature, negatives=negatives, grid=(2, 3))
    ours = patch_nt_xent(anchors, keys.requires_grad_(), **arguments)
    expected = closed_form(anchors, keys, **arguments)
    assert expected > 0.9 / temperature
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)
    found = torch.autograd.grad(ours, [anchors, keys])
    wanted = torch.autograd.grad(expected, [anchors, keys])
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("temperature", [0.3, 0.03, 0.002])
def test_small_losses_keep_their_digits(temperature):
    """One negative 0.05 below the positive: log(1 + e^(−0.05 / τ)) is far below 1."""
    angle = math.acos(1 - 0.05)
    anchors = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    keys = torch.tensor([[[1.0, 0.0]], [[math.cos(angle), math.sin(angle)]]])
    loss = patch_nt_xent(anchors, keys, temperature=temperature)
    gap = (1 - F.normalize(keys[1, 0].double(), dim=0)[0].item()) / temperature
    assert loss.item() == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, anchors)
    share = math.exp(-gap) / (1 + math.exp(-gap))
    assert gradient[0, 0, 1].item() == pytest.approx(
        share * math.sin(angle) / temperature, rel=1e-4
    )


def test_anchors_without_negatives_lose_nothing():
    """In a 1 × 3 grid only the corners have a token more than 1 patch away."""
    anchors, keys = torch.randn(2, 1, 3, 4, dtype=torch.float64).unbind()
    for temperature in (0.3, 1e-4):
        form = dict(temperature=temperature, negatives="cross-view+spatial:1", grid=(1, 3))
        leaf = anchors.clone().requires_grad_()
        ours = patch_nt_xent(leaf, keys, **form)
        torch.testing.assert_close(ours, closed_form(anchors, keys, **form))
        assert torch.autograd.grad(ours, leaf)[0][0, 1].abs().max() == 0


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 64 rows, which cut through images of 40 tokens, and products of 48 columns."""
    monkeypatch.setattr("sercli.losses.tiles._TILE_BYTES", {"cpu": 1})
    monkeypatch.setattr("sercli.losses.tiles._LEAST_ROWS", 64)
    monkeypatch.setattr("sercli.losses.tiles._COLUMNS", {"cpu": 48})


def tokens_of_five_images(dtype):
    torch.manual_seed(0)
    return [torch.randn(5, 40, 8, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("negatives", FORMS)
@pytest.mark.parametrize("temperature", [0.3, 0.01])  # with a fixed shift, and with a row's own
def test_tiles_do_not_change_the_loss(negatives, temperature, request):
    anchors, keys = tokens_of_five_images(torch.float64)

    def found():
        loss = patch_nt_xent(
            anchors, keys, temperature=temperature, negatives=negatives, grid=(5, 8)
        )
        return loss, *torch.autograd.grad(loss, [anchors, keys])

    whole = found()
    request.getfixturevalue("small_tiles")
    for one, tiled in zip(whole, found(), strict=True):
        torch.testing.assert_close(one, tiled, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("negatives", ["cross-view", "both-views"])
def test_bf16_products_are_summed_in_fp32(negatives):
    """The rounding is that of inputs and results, not of sums over tiles."""
    anchors, keys = (x.detach().bfloat16().requires_grad_() for x in tokens_of_five_images(None))
    form = dict(temperature=0.4, negatives=negatives, grid=(5, 8))
    loss = patch_nt_xent(anchors, keys, **form)
    expected = closed_form(anchors.double(), keys.double(), **form)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    found = torch.autograd.grad(loss, [anchors, keys])
    wanted = torch.autograd.grad(expected, [anchors, keys])
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).double().norm() < 0.01 * theirs.double().norm()


class LargeResults(TorchDispatchMode):
    """How many operators made something new of a size."""

    def __init__(self, least):
        super().__init__()
        self.least, self.made = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        fresh = isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given
        self.made += fresh and out.numel() >= self.least
        return out


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tile_makes_anything_as_large_as_the_keys(dtype):
    """Such a temporary for every tile made time grow faster than N²."""
    torch.manual_seed(0)
    anchors, keys = (torch.randn(8, 40, 320, dtype=dtype, requires_grad=True) for _ in range(2))
    made = []
    for tiles in (0, 1, 5):
        with LargeResults(keys.numel()) as seen:
            PatchNTXent.apply(Problem(0.4, 0, None, with_gradient=True, tiles=tiles), anchors, keys)
        made.append(seen.made)
    assert made[0] > 0  # unit vectors and gradients
    assert made == made[:1] * 3


@pytest.mark.parametrize("file", CASES, ids=lambda f: f.stem)
def test_patch_nt_xent_agrees_with_the_authors(file):
    arrays = np.load(file)
    actions = [golden_action(arrays, view) for view in (0, 1)]
    students = [torch.from_numpy(arrays[f"student{v}"]).requires_grad_() for v in (0, 1)]
    teachers = [torch.from_numpy(arrays[f"teacher{v}"]) for v in (0, 1)]
    loss = torch.zeros(())
    for view in (0, 1):
        moved = transport(teachers[1 - view], source=actions[1 - view], target=actions[view])
        loss = loss + 0.5 * patch_nt_xent(
            students[view].flatten(2).mT, moved.flatten(2).mT,
            temperature=float(arrays["temperature"]), negatives="cross-view")  # fmt: skip
    assert loss.dtype == torch.float32
    assert abs(loss.item() - float(arrays["loss"])) < 1e-4
    for view, grad in enumerate(torch.autograd.grad(loss, students)):
        expected = torch.from_numpy(arrays[f"grad_student{view}"])
        torch.testing.assert_close(grad, expected, atol=1e-7, rtol=1e-4)


def test_gradient_goes_only_where_it_is_wanted():
    anchors, keys = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    patch_nt_xent(anchors, keys, temperature=0.3).backward()
    assert anchors.grad.norm() > 0
    assert keys.grad is None
    with torch.no_grad():
        assert not patch_nt_xent(anchors, keys, temperature=0.3).requires_grad


def test_half_precision_products():
    torch.manual_seed(0)
    anchors, keys = torch.randn(2, 4, 50, 32).unbind()
    exact = patch_nt_xent(anchors, keys, temperature=0.3)
    rough = patch_nt_xent(anchors.bfloat16(), keys.bfloat16(), temperature=0.3)
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 2e-3 * exact


def test_a_rank_without_anchors_keeps_its_place_in_the_graph():
    anchors, keys = (
        torch.randn(0, 3, 4, requires_grad=True),
        torch.randn(2, 3, 4, requires_grad=True),
    )
    loss = patch_nt_xent(anchors, keys, temperature=0.3)
    loss.backward()
    assert loss.item() == 0
    assert keys.grad.abs().max() == 0


def test_constant_map_is_not_the_optimum_with_spatial_negatives():
    constant = torch.randn(4, 1, 16).expand(4, 9, 16)
    distinct = torch.eye(36, dtype=torch.float32).view(4, 9, 36)
    form = dict(temperature=0.1, grid=(3, 3), negatives="cross-view+spatial:0")
    assert patch_nt_xent(distinct, distinct, **form) < patch_nt_xent(constant, constant, **form)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(negatives="all"), "cross-view or both-views"),
        (dict(negatives="cross-view+spatial:1"), "grid None"),
        (dict(temperature=0.0), "positive"),
        (dict(temperature=math.nan), "positive"),
        (dict(anchor_offset=1), "anchor_offset 1"),
        (dict(keys=torch.randn(2, 4, 4)), "do not fit"),
        (dict(own_view=torch.randn(2, 3, 4)), "both-views"),
        (dict(anchors=torch.randn(1, 3, 4), keys=torch.randn(1, 3, 4)), "no negatives"),
        (dict(negatives="both-views", own_view=torch.randn(1, 3, 4)), "gathered like the keys"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = (
        dict(anchors=torch.randn(2, 3, 4), keys=torch.randn(2, 3, 4), temperature=0.3) | change
    )
    with pytest.raises(ValueError, match=message):
        patch_nt_xent(arguments.pop("anchors"), arguments.pop("keys"), **arguments)


def test_info_nce_is_the_closed_form():
    torch.manual_seed(0)
    queries = torch.randn(2, 6, dtype=torch.float64)
    keys = torch.randn(5, 6, dtype=torch.float64)
    q, k = F.normalize(queries, dim=1).numpy(), F.normalize(keys, dim=1).numpy()
    logits = q @ k.T / 0.2
    expected = -np.mean([row[i + 3] - np.log(np.exp(row).sum()) for i, row in enumerate(logits)])
    ours = info_nce(queries, keys, temperature=0.2, query_offset=3)
    assert abs(ours.item() - 2 * 0.2 * expected) < 1e-12

"""Mixed precision: what runs in bfloat16 is decided by us, not by a device's autocast lists."""

import pytest
import torch

from sercli.actions import GeometricAction, transport
from sercli.losses import patch_nt_xent
from sercli.objective import Objective
from tests.support.mixed_precision import HALF, OBJECTIVES, operators_of
from tests.support.operators import ATTENTION, Operators
from tests.support.recipes import recipe_of

PRODUCTS = {"addmm", "mm", "bmm", ATTENTION}
BETWEEN = {"gelu", "relu", "relu_"}
# Say nothing of precision: they move values or make room for them.
MOVES = {
    "_unsafe_view", "cat", "clone", "detach", "expand", "flip", "gather", "index_select", "permute",
    "select", "slice", "split_with_sizes", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_products_and_what_lies_between_them_run_in_bf16(name):
    calls = operators_of(name)
    rounded = {call.name for call in calls if HALF in call.inputs and HALF in call.outputs}
    assert rounded <= PRODUCTS | BETWEEN | MOVES
    assert PRODUCTS - {"bmm"} <= rounded  # STL's alone is a batch of products


def test_positions_at_another_size_are_resampled_in_float32():
    encoder = Objective(recipe_of("moco", "none", depth=4)).encoder
    with torch.autocast("cpu", dtype=HALF), Operators() as seen:
        features = encoder(torch.randn(2, 3, 48, 40), layers=(0, 2))
    assert features.cls.dtype == features.grids[0].dtype == torch.float32
    assert [c.outputs for c in seen.calls if c.name == "upsample_bicubic2d"] == [(torch.float32,)]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_a_token_map_in_bf16_is_resampled_in_float32_and_rounded_once(grid):
    torch.manual_seed(0)
    batch = 16  # every element of D4
    source = GeometricAction.sample(batch, (4, 4), generator=torch.Generator().manual_seed(0))
    source = GeometricAction(source.hflip, source.rot90, (4, 4))
    target = GeometricAction.identity(batch, grid)
    tokens = torch.randn(batch, 8, 4, 4).to(HALF)
    with torch.autocast("cpu", dtype=HALF):
        moved = transport(tokens, source=source, target=target)
    assert moved.dtype == HALF
    expected = transport(tokens.float(), source=source, target=target)
    assert torch.equal(moved, expected.to(HALF))


def test_the_patch_loss_ignores_autocast():
    torch.manual_seed(0)
    anchors, keys = torch.randn(2, 4, 9, 16, dtype=torch.float32).requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=HALF, enabled=enabled):
            loss = patch_nt_xent(anchors, keys, temperature=0.3)
        found.append([loss, *torch.autograd.grad(loss, [anchors, keys])])
    assert all(torch.equal(plain, mixed) for plain, mixed in zip(*found, strict=True))

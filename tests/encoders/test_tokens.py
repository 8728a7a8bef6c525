"""One pass over views of several sizes: the values and the gradients of a pass for each."""

import copy

import pytest
import torch
from timm.layers import GluMlp, SwiGLUPacked
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer

from sercli.encoders import attention
from sercli.encoders.blocks import ViTBlock, understood
from sercli.encoders.tokens import Layout, Span
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Model

DEPTH, WIDTH = 4, 32
MODEL = Model(name="vit_micro", width=WIDTH, depth=DEPTH, num_heads=2, patch_size=8)
# (n, height, width) of views; neither those of one size nor those that end early lie together.
SIZES = [(3, 32, 32), (2, 24, 40), (1, 32, 32), (2, 40, 24), (0, 16, 16), (3, 16, 16), (2, 32, 32)]
ENDS = [None, None, 2, None, None, 3, None]
CPU = torch.device("cpu")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def ours(cls_after):
    encoder = Encoder.from_model(MODEL, image_size=32, cls_after=cls_after).initialise(0)
    return spoiled(encoder)


def timms(cls_after=0, **changes):
    options = dict(img_size=32, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2)
    encoder = Encoder.from_timm(VisionTransformer(**options, num_classes=0, **changes))
    encoder.cls_after = cls_after
    return spoiled(encoder)


def spoiled(encoder):
    """No parameter at a value that hides what is done with it."""
    generator = draws()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return encoder.double().train()


ENCODERS = {
    "CLS from the start": lambda: ours(0),
    "CLS after block 2": lambda: ours(2),
    "CLS after block 3": lambda: ours(3),
    "registers, LayerScale, norms of q and k": lambda: timms(
        reg_tokens=2, init_values=0.5, qk_norm=True
    ),
    "registers after block 1": lambda: timms(1, reg_tokens=2, no_embed_class=True),
    "SwiGLU": lambda: timms(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU),
    "GLU": lambda: timms(mlp_layer=GluMlp),
    "norms of branches": lambda: timms(scale_attn_norm=True, scale_mlp_norm=True),
    "mean of patches": lambda: timms(class_token=False, global_pool="avg"),
    "blocks of another kind": lambda: timms(2, block_fn=ResPostBlock, no_embed_class=True),
}


def views_of(dtype=torch.float64):
    generator = draws(1)
    return [
        torch.randn(n, 3, *size, generator=generator, dtype=dtype).requires_grad_()
        for n, *size in SIZES
    ]


def keeps_of():
    generator = draws(2)
    return [2.0 * torch.randint(2, (n, DEPTH, 2), generator=generator) for n, *_ in SIZES]


def weighed(features):
    """A sum of all there is, each number with a weight of its own."""
    generator, total = draws(3), torch.zeros((), dtype=torch.float64)
    for one in features:
        for x in (one.cls, *one.grids.values(), *one.cls_tokens.values()):
            weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            total = total + (weights * x.sin()).sum()
    return total


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_one_pass_is_a_pass_for_each_view_with_its_gradients(name, drops):
    encoder = ENCODERS[name]()
    if drops and not isinstance(encoder.blocks[0], ViTBlock):
        with pytest.raises(UserError, match="ResPostBlock"):
            encoder.encode(views_of(), (1,), keeps=keeps_of())
        return
    keeps = keeps_of() if drops else None
    found = []
    for together in (True, False):
        encoder.zero_grad()
        views = views_of()
        if together:
            features = encoder.encode(views, (0, 1, 2, 4), keeps=keeps, until=ENDS)
        else:
            features = [
                encoder(view, (0, 1, 2, 4), keep=keeps[i] if drops else None, until=ENDS[i])
                for i, view in enumerate(views)
            ]
        total = weighed(features)
        total.backward()
        gradients = [p.grad.clone() for p in (*encoder.parameters(), *views)]
        found.append((features, total.detach(), gradients))
    for one, alone in zip(found[0][0], found[1][0], strict=True):
        assert sorted(one.grids) == sorted(alone.grids)
        assert sorted(one.cls_tokens) == sorted(alone.cls_tokens)
        torch.testing.assert_close(one.cls, alone.cls, rtol=1e-12, atol=1e-12)
        for layer, grid in one.grids.items():
            torch.testing.assert_close(grid, alone.grids[layer], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)
    scale = max(gradient.abs().max() for gradient in found[1][2] if gradient.numel())
    for one, alone in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, alone, rtol=1e-12, atol=1e-12 * float(scale))
        assert alone.numel() == 0 or alone.abs().max() > 0


def test_views_that_end_early_have_no_cls_and_no_later_layers():
    features = ours(1).encode(views_of(), (1, 2, 3, 4), until=ENDS)
    for one, (count, *_), end in zip(features, SIZES, ENDS, strict=True):
        assert one.cls.shape == (count, WIDTH if end is None else 0)
        assert sorted(one.grids) == list(range(1, 1 + (end or DEPTH)))
        assert sorted(one.cls_tokens) == list(range(2, 1 + (end or DEPTH)))
    everything = ours(1).encode(views_of(), (1, 2), until=[2] * len(SIZES))
    assert all(one.cls.shape[1] == 0 and sorted(one.grids) == [1, 2] for one in everything)


# -- where tokens lie -----------------------------------------------------------------------------


def test_a_layout_written_out():
    layout = Layout((Span(2, (1, 2)), Span(1, (2, 1)), Span(1, (2, 2))), prefix=1, device=CPU)
    assert layout.groups == ((3, 3), (1, 5))  # 1×2 and 2×1 patches go together
    assert (layout.num_images, layout.num_tokens, layout.longest) == (4, 14, 5)
    assert layout.boundaries.tolist() == [0, 3, 6, 9, 14]
    assert layout.boundaries.dtype == torch.int32
    tokens = torch.arange(14)[:, None]
    assert [v[..., 0].tolist() for v in layout.by_view(tokens)] == [
        [[0, 1, 2], [3, 4, 5]], [[6, 7, 8]], [[9, 10, 11, 12, 13]]
    ]  # fmt: skip
    assert [v.shape[:2] for v in layout.by_group(tokens)] == [(3, 3), (1, 5)]
    factors = torch.arange(4.0)[:, None, None] + torch.tensor([[0.0, 0.5]])
    assert layout.spread(factors)[0].tolist() == [
        [0.0] * 3 + [1.0] * 3 + [2.0] * 3 + [3.0] * 5,
        [0.5] * 3 + [1.5] * 3 + [2.5] * 3 + [3.5] * 5,
    ]
    bare = Layout(layout.spans, 0, CPU)
    with_cls, after = bare.with_prefix(torch.arange(1.0, 11.0)[:, None], torch.tensor([[0.0]]))
    assert after == layout
    assert with_cls[:, 0].tolist() == [0, 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 8, 9, 10]


# -- blocks of timm's -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (lambda: Block(8, 2), True),
        (lambda: Block(8, 2, qk_norm=True, init_values=0.1, mlp_layer=GluMlp), True),
        (lambda: Block(8, 2, drop_path=0.1), False),
        (lambda: Block(8, 2, attn_drop=0.1), False),
        (lambda: Block(8, 2, proj_drop=0.1), False),
        (lambda: ResPostBlock(8, 2), False),
        (lambda: torch.nn.Identity(), False),
    ],
)
def test_which_blocks_are_understood(block, expected):
    assert understood(block()) == expected


def test_a_block_taken_over_shares_its_modules():
    theirs = Block(8, 2, init_values=0.1).double().eval()
    mine = ViTBlock.of(theirs)
    assert {k: id(p) for k, p in mine.named_parameters()} == {
        k: id(p) for k, p in theirs.named_parameters()
    }
    assert not mine.training
    assert list(copy.deepcopy(mine).state_dict()) == list(theirs.state_dict())
    tokens = torch.randn(6, 8, generator=draws(), dtype=torch.float64)
    layout = Layout((Span(2, (1, 3)),), 0, CPU)
    gold = theirs(tokens.view(2, 3, 8)).flatten(0, 1)
    torch.testing.assert_close(mine(tokens, layout), gold, rtol=1e-13, atol=1e-13)


# -- attention ------------------------------------------------------------------------------------


def test_attention_of_all_sizes_at_once_is_used_only_if_it_is_right(monkeypatch):
    """Where `varlen` is missing, refuses, or computes something else, sizes go one by one."""
    right = attention._size_by_size

    def gives(way, by_flash=None):
        monkeypatch.setattr(attention, "_all_sizes", way)
        monkeypatch.setattr(attention, "_all_sizes_by_flash", by_flash or way)
        attention.all_sizes_by.cache_clear()
        found = attention.all_sizes_by(CPU, torch.bfloat16, 2, 8)
        attention.all_sizes_by.cache_clear()
        return found

    def refuses(*_):
        raise RuntimeError("no such kernel")

    def forgets_a_gradient(packed, layout):
        q, k, v = packed.unbind(1)
        return right(torch.stack([q, k.detach(), v], dim=1), layout)

    def mixes_images(packed, layout):
        one = Layout((Span(1, (1, layout.num_tokens)),), 0, CPU)
        return right(packed, one)

    assert gives(right) is right
    assert not gives(refuses)
    assert not gives(forgets_a_gradient)
    assert not gives(mixes_images)
    for wrong in (refuses, forgets_a_gradient, mixes_images):
        assert gives(wrong, by_flash=right) is right

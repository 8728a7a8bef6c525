"""The encoder against timm's, and what delaying [CLS] means."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed

from sercli.encoders.sizes import cls_after_of, size_of
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Model

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0)
MODEL = Model(name="vit_micro", width=32, depth=4, num_heads=2, patch_size=8)

FIXED = MODEL.model_copy(update={"pos_embed": "sincos"})


def timm_vit(**changes):
    torch.manual_seed(0)
    vit = VisionTransformer(**{**TINY, **changes}).eval()
    with torch.no_grad():  # no parameter at a value that hides what is done with it
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit


def small(cls_after=0, *, seed=0, dtype=torch.float32):
    encoder = Encoder.from_model(MODEL, image_size=32, cls_after=cls_after)
    return encoder.initialise(seed).to(dtype).eval()


def pictures(count=2, height=32, width=32, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(count, 3, height, width, dtype=dtype)


# -- against timm ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True},
        {"no_embed_class": True},
        {"pre_norm": True},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "token", "fc_norm": True},
        {"dynamic_img_size": True},
        {"img_size": (32, 48)},
    ],
    ids=str,
)
@torch.no_grad()
def test_outputs_are_timms(changes):
    vit = timm_vit(**changes)
    size = vit.patch_embed.img_size
    images = pictures(3, *size)
    expected = vit(images)
    intermediates = vit.forward_intermediates(images, intermediates_only=True)
    features = Encoder.from_timm(copy.deepcopy(vit)).eval()(images, (1, 2, 3))
    torch.testing.assert_close(features.cls, expected, rtol=1e-5, atol=1e-5)
    for layer in (1, 2, 3):
        torch.testing.assert_close(features.grids[layer], intermediates[layer - 1])
    assert features.grids[3].shape == (3, 32, size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_every_token_after_the_final_norm_is_timms():
    vit = timm_vit(reg_tokens=2)
    encoder = Encoder.from_timm(copy.deepcopy(vit)).eval()
    images = pictures()
    tokens = vit.forward_features(images)
    features = encoder(images, (3,))
    patches = encoder.norm(features.grids[3].flatten(2).transpose(1, 2))
    torch.testing.assert_close(patches, tokens[:, 3:])
    torch.testing.assert_close(encoder.norm(features.cls_tokens[3]), tokens[:, 0])


@torch.no_grad()
def test_a_recipes_vit_is_timms_with_the_same_tensors():
    """Parameter names are timm's, so state moves over as it is (positions without [CLS])."""
    encoder, images = small(dtype=torch.float64), pictures(dtype=torch.float64)
    vit = VisionTransformer(**{**TINY, "depth": 4}, no_embed_class=True).double().eval()
    missing, unexpected = vit.load_state_dict(encoder.state_dict(), strict=False)
    assert missing == unexpected == []
    torch.testing.assert_close(encoder(images).cls, vit(images), rtol=1e-12, atol=1e-12)


def test_what_is_no_plain_vit_is_refused():
    with pytest.raises(UserError):
        Encoder.from_timm(torch.nn.Linear(2, 2))
    for changes in (
        {"patch_size": (8, 4)},
        {"embed_layer": functools.partial(HybridEmbed, torch.nn.Conv2d(3, 8, 2, stride=2))},
    ):
        with pytest.raises(UserError):
            Encoder.from_timm(timm_vit(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"global_pool": "max"},
        {"global_pool": "avgmax"},
        {"class_token": False, "global_pool": "max"},
        {"global_pool": "avg", "pool_include_prefix": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_other_poolings_are_refused_or_equal(changes):
    vit = timm_vit(**changes)
    expected = vit(pictures())
    try:
        encoder = Encoder.from_timm(vit)
    except UserError:
        return
    torch.testing.assert_close(encoder.eval()(pictures()).cls, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_registers_with_positions_but_without_cls():
    vit = timm_vit(class_token=False, global_pool="avg", reg_tokens=2)
    expected = vit(pictures())
    try:
        encoder = Encoder.from_timm(vit)
    except UserError:
        return
    torch.testing.assert_close(encoder.eval()(pictures()).cls, expected, rtol=1e-5, atol=1e-5)


# -- the delayed [CLS] ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls_after", [0, 1, 2, 3])
@torch.no_grad()
def test_blocks_before_it_joins_never_see_cls(cls_after):
    encoder = small(cls_after)
    layers = range(5)
    before = encoder(pictures(), layers)
    encoder.cls_token.add_(torch.randn(32))
    after = encoder(pictures(), layers)
    for layer in layers:
        equal = torch.equal(before.grids[layer], after.grids[layer])
        assert equal == (layer <= cls_after)
    assert not torch.equal(before.cls, after.cls)
    assert sorted(before.cls_tokens) == [layer for layer in layers if layer > cls_after]


@pytest.mark.parametrize("cls_after", [0, 2])
@torch.no_grad()
def test_the_forward_pass_written_out(cls_after):
    """Patch embedding, positions, blocks, [CLS] without a position, blocks, norm."""
    encoder = small(cls_after, dtype=torch.float64)
    encoder.cls_token.normal_()
    images = pictures(dtype=torch.float64)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 192)
    projection = encoder.patch_embed.proj
    tokens = patches @ projection.weight.reshape(32, 192).T + projection.bias + encoder.pos_embed
    grids = [tokens]
    for number, block in enumerate(encoder.blocks):
        if number == cls_after:
            tokens = torch.cat([encoder.cls_token.expand(2, 1, 32), tokens], 1)
        tokens = tokens + block.attn(block.norm1(tokens))  # timm's attention
        tokens = tokens + block.mlp(block.norm2(tokens))
        grids.append(tokens[:, -16:])
    features = encoder(images, range(5))
    torch.testing.assert_close(features.cls, encoder.norm(tokens)[:, 0], rtol=1e-12, atol=1e-12)
    for layer in range(5):
        expected = grids[layer].transpose(1, 2).reshape(2, 32, 4, 4)
        torch.testing.assert_close(features.grids[layer], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_until_it_joins_tokens_are_those_of_any_later_insertion():
    images = pictures()
    early, late = small(1)(images, (0, 1, 2)), small(3)(images, (0, 1, 2))
    assert torch.equal(early.grids[1], late.grids[1])
    assert not torch.equal(early.grids[2], late.grids[2])


@pytest.mark.parametrize(
    ("layer", "taps_cls", "given", "expected"),
    [
        (None, False, None, 0), (2, False, None, 2), (3, False, None, 3), (4, False, None, 0),
        (2, True, None, 0), (2, False, 1, 1), (None, False, 3, 3), (4, False, 0, 0),
    ],
)  # fmt: skip
def test_where_cls_joins_follows_the_layer(layer, taps_cls, given, expected):
    model = MODEL.model_copy(update={"cls_after": given})
    assert cls_after_of(model, layer=layer, taps_cls=taps_cls) == expected


def test_sizes_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="cls_after 4"):
        Encoder.from_model(MODEL, image_size=32, cls_after=4)
    with pytest.raises(UserError, match="multiples"):
        Encoder.from_model(MODEL, image_size=33)
    with pytest.raises(UserError, match="vit_huge"):
        size_of(Model(name="vit_huge"))
    with pytest.raises(UserError, match="width 30"):
        Encoder.from_model(Model(width=30, num_heads=2), image_size=32)
    with pytest.raises(UserError, match="0…4"):
        small()(pictures(), (5,))
    with pytest.raises(UserError, match="33×32"):
        small()(pictures(1, 33, 32))
    assert [size_of(Model(name=name)).depth for name in ("vit_small", "vit_large")] == [12, 24]


# -- grids and batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 40), (32, 64), (8, 8), (56, 16)])
@torch.no_grad()
def test_any_grid(size):
    encoder = small(2)
    features = encoder(pictures(2, *size), (0, 2, 4))
    for layer in (0, 2, 4):
        assert features.grids[layer].shape == (2, 32, size[0] // 8, size[1] // 8)
    positions = encoder.positions((size[0] // 8, size[1] // 8))
    assert positions.shape == (1, size[0] * size[1] // 64, 32)
    # Each image is on its own.
    one = encoder(pictures(2, *size)[1:], (4,))
    torch.testing.assert_close(one.grids[4], features.grids[4][1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_resampled_positions_lie_where_the_cells_are():
    """A linear ramp stays nearly one (bicubic, align_corners=False), away from the border."""
    encoder = Encoder.from_model(MODEL, image_size=128)  # 16 × 16
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    encoder.pos_embed[0, :, 0] = rows.flatten()
    encoder.pos_embed[0, :, 1] = columns.flatten()
    resized = encoder.positions((24, 20))[0].view(24, 20, -1)
    centres_y, centres_x = (torch.arange(24) + 0.5) * 16 / 24 - 0.5, (torch.arange(20) + 0.5) * 0.8
    torch.testing.assert_close(resized[4:-4, 5, 0], centres_y[4:-4], rtol=0, atol=0.06)
    torch.testing.assert_close(resized[5, 4:-4, 1], centres_x[4:-4] - 0.5, rtol=0, atol=0.06)
    assert encoder.positions((16, 16)) is encoder.pos_embed


@torch.no_grad()
def test_views_of_mixed_sizes_are_encoded_as_if_one_by_one():
    encoder = small(2, dtype=torch.float64)
    sizes = [(3, 32, 32), (2, 24, 40), (1, 32, 32), (2, 40, 24), (4, 24, 40), (0, 16, 16)]
    views = [pictures(*size, dtype=torch.float64) for size in sizes]
    calls = []
    for part in (encoder.patch_embed, *encoder.blocks):
        part.register_forward_pre_hook(lambda part, _arguments: calls.append(part))
    together = encoder.encode(views, iter((0, 2, 3)))
    assert calls == [encoder.patch_embed, *encoder.blocks]  # whatever their size
    for view, features in zip(views, together, strict=True):
        alone = encoder(view, (0, 2, 3))
        torch.testing.assert_close(features.cls, alone.cls, rtol=1e-11, atol=1e-11)
        assert sorted(features.grids) == [0, 2, 3]
        assert sorted(features.cls_tokens) == [3]
        for layer, grid in features.grids.items():
            torch.testing.assert_close(grid, alone.grids[layer], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(features.cls_tokens[3], alone.cls_tokens[3])


def test_double_precision_and_gradients():
    encoder = small(2, dtype=torch.float64)
    features = encoder(pictures(dtype=torch.float64), (2,))
    assert features.cls.dtype == features.grids[2].dtype == torch.float64
    (features.cls.square().sum() + features.grids[2].square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    single = small(2)(pictures(dtype=torch.float64).float(), (2,))
    torch.testing.assert_close(single.cls.double(), features.cls, rtol=1e-4, atol=1e-4)


# -- initialisation -------------------------------------------------------------------------------


def test_weights_are_a_function_of_the_seed():
    encoder = small()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = encoder.initialise(3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is untouched
    torch.manual_seed(6)
    again, other = small(seed=3).state_dict(), small(seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    # Where [CLS] joins does not change what is drawn: controls start from the same weights.
    delayed = small(2, seed=3).state_dict()
    assert all(torch.equal(first[key], delayed[key]) for key in first)


@pytest.fixture(scope="module", params=["timm", "dino", "moco-v3", "ser-moco"])
def drawn(request):
    sizes = {"width": 128, "depth": 2, "num_heads": 2, "patch_size": 8}
    model = Model(name="vit_micro", init=request.param, **sizes)
    return request.param, Encoder.from_model(model, image_size=64).initialise(0)


def test_statistics_of_the_schemes(drawn):
    scheme, encoder = drawn
    for name, parameter in encoder.named_parameters():
        p = parameter.detach()
        if name.endswith("bias") and "patch_embed" not in name:
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif ".weight" in name and p.dim() == 2:
            if scheme in ("timm", "dino"):
                assert p.std().item() == pytest.approx(0.02, rel=0.05), name
            else:
                fan_out, fan_in = p.shape
                if "qkv" in name:  # three square maps, each Xavier of its own
                    fan_out //= 3
                limit = math.sqrt(6 / (fan_in + fan_out))
                assert p.abs().max().item() == pytest.approx(limit, rel=0.01), name
                assert p.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03), name
    small = 0.02 if scheme == "dino" else 1e-6
    assert encoder.cls_token.std().item() == pytest.approx(small, rel=0.3)
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    if scheme == "moco-v3":  # Xavier with the patch as fan-in and the width as fan-out
        limit = math.sqrt(6 / (3 * 8 * 8 + 128))
        assert not bias.any()
    else:  # as torch makes a convolution: uniform within 1/√fan-in
        limit = 1 / math.sqrt(3 * 8 * 8)
        assert 0 < bias.abs().max() <= limit
    assert weight.abs().max().item() == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_sincos_positions_in_closed_form(size):
    encoder = Encoder.from_model(FIXED, image_size=size[0]).initialise(0)
    side = size[0] // 8
    expected = np.empty((side * side, 32))
    for row in range(side):
        for column in range(side):
            for k in range(8):
                omega = 10000.0 ** (-k / 8)
                expected[row * side + column, [k, 8 + k, 16 + k, 24 + k]] = (
                    math.sin(row * omega), math.cos(row * omega),
                    math.sin(column * omega), math.cos(column * omega),
                )  # fmt: skip
    np.testing.assert_allclose(encoder.pos_embed[0].detach().numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_the_random_twin():
    encoder = Encoder.from_timm(timm_vit(reg_tokens=2, init_values=0.3, qk_norm=True)).eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    twin, again, other = (encoder.random_twin(seed) for seed in (1, 1, 2))
    images = pictures()
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert torch.equal(twin(images).cls, again(images).cls)
    assert not torch.allclose(twin(images).cls, other(images).cls, atol=1e-3)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    same = [key for key in before if torch.equal(before[key], twin.state_dict()[key])]
    assert same == []
    delayed = small(2).random_twin(1)
    assert delayed.cls_after == 2


def test_the_twin_of_fixed_positions_keeps_them():
    encoder = Encoder.from_model(FIXED, image_size=32).initialise(0)
    assert torch.equal(encoder.random_twin(1).pos_embed, encoder.pos_embed)


def test_the_twin_is_drawn_by_the_scheme_of_its_model():
    model = MODEL.model_copy(update={"init": "moco-v3"})
    encoder = Encoder.from_model(model, image_size=32).initialise(0)
    twin = Encoder.from_model(model, image_size=32).initialise(1)
    weights = encoder.random_twin(1).state_dict()
    assert all(torch.equal(weights[key], value) for key, value in twin.state_dict().items())

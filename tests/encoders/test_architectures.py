"""Architectures as settings: equal to timm's, described again, and one pass for all of them."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sercli.encoders.blocks import ViTBlock
from sercli.encoders.describing import model_of, settings_of_timm
from sercli.encoders.loading import encoder_metadata, read_encoder, write_encoder
from sercli.encoders.rotary import RotaryPositions, turned
from sercli.encoders.sizes import cls_after_of, mlp_width_of, size_of
from sercli.encoders.tokens import Layout, Span
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.families import resolve
from sercli.recipe.model import ARCHITECTURE
from sercli.recipe.schema import Model
from tests.support.architectures import FAMILIES, SETTINGS, tiny

CPU = torch.device("cpu")
NARROW = {"name": "vit_micro", "width": 32, "depth": 4, "num_heads": 4, "patch_size": 8}


def made(name, *, cls_after=0, dtype=torch.float32):
    model = Model(**NARROW, **SETTINGS[name])
    encoder = Encoder.from_model(model, image_size=32, cls_after=cls_after).initialise(0)
    with torch.no_grad():  # at 1e-6, [CLS] and registers would hide what is done with them
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=_draws(1)))
    return encoder.to(dtype).eval()


def _draws(seed):
    return torch.Generator().manual_seed(seed)


def pictures(*size, count=2, dtype=torch.float32):
    return torch.randn(count, 3, *size, generator=_draws(2)).to(dtype)


def rebuilt(encoder):
    """What `from_model` makes of `model_of`, with the same tensors."""
    side = encoder.grid[0] * encoder.patch_size
    again = Encoder.from_model(model_of(encoder), image_size=side, cls_after=encoder.cls_after or 0)
    again.load_state_dict(encoder.state_dict())
    return again.train(encoder.training)


# -- timm's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_timms_at_any_size(name):
    vit = tiny(name)
    encoder = Encoder.from_timm(copy.deepcopy(vit)).eval()
    assert all(isinstance(block, ViTBlock) for block in encoder.blocks)
    patch = encoder.patch_size
    for size in ((FAMILIES[name][0],) * 2, (5 * patch, 3 * patch)):
        images, theirs = (pictures(*size).requires_grad_() for _ in range(2))
        tokens = vit.forward_features(theirs)
        features = encoder(images, layers=(3,))
        ours = encoder.norm(features.grids[3].flatten(2).transpose(1, 2))
        torch.testing.assert_close(ours, tokens[:, vit.num_prefix_tokens :], rtol=1e-5, atol=1e-5)
        whole = vit.forward_head(tokens)
        torch.testing.assert_close(features.cls, whole, rtol=1e-5, atol=1e-5)
        if encoder.cls_after is not None:
            cls = encoder.norm(features.cls_tokens[3])
            torch.testing.assert_close(cls, tokens[:, 0], rtol=1e-5, atol=1e-5)
        weights = torch.randn(ours.shape, generator=_draws(3))
        (tokens[:, vit.num_prefix_tokens :] * weights).sum().add(whole.sin().sum()).backward()
        (ours * weights).sum().add(features.cls.sin().sum()).backward()
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(images.grad, theirs.grad, rtol=1e-4, atol=1e-5 * scale.item())


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_as_many_as_timms(name):
    vit = tiny(name)
    folded = 0  # positions of [CLS] and registers, which are constants beside those tokens
    if vit.pos_embed is not None and not vit.no_embed_class:
        folded = vit.num_prefix_tokens * 32
    count = sum(p.numel() for p in rebuilt(Encoder.from_timm(vit)).parameters())
    assert count == sum(p.numel() for p in vit.parameters()) - folded


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_what_is_described_is_built_again_with_the_same_tensors_and_outputs(name):
    encoder = Encoder.from_timm(tiny(name)).eval()
    again = rebuilt(encoder)
    assert list(again.state_dict()) == list(encoder.state_dict())
    assert model_of(again) == model_of(encoder)
    for size in ((again.grid[0] * again.patch_size,) * 2, (3 * again.patch_size,) * 2):
        images = pictures(*size)
        ours, theirs = (one(images, layers=(0, 1, 3)) for one in (again, encoder))
        assert torch.equal(ours.cls, theirs.cls)
        assert all(torch.equal(ours.grids[layer], theirs.grids[layer]) for layer in (0, 1, 3))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_come_back_from_the_encoder_that_they_make(name):
    model = Model(**{**NARROW, "num_heads": 2, **SETTINGS[name]})
    assert model_of(Encoder.from_model(model, image_size=32)) == model.model_copy(
        update={"name": "vit"}
    )
    usual = Model(name="vit_tiny", **SETTINGS[name])  # of a size with a name: it is said alone
    assert model_of(Encoder.from_model(usual, image_size=32)) == usual


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: setattr(e.blocks[1].mlp, "act", nn.ReLU()), "its MLP"),
        (lambda e: setattr(e.blocks[1], "norm1", nn.LayerNorm(32, eps=0.1)), "its norms add"),
        (lambda e: setattr(e.blocks[1], "ls1", nn.Identity()), "LayerScales are not alike"),
        (lambda e: setattr(e, "norm", nn.Identity()), "no final norm"),
        (lambda e: setattr(e, "norm", nn.RMSNorm(32)), "no LayerNorm"),
        (lambda e: setattr(e, "grid", (2, 8)), "no square"),
        (lambda e: e.blocks.__setitem__(2, nn.Identity()), "another kind"),
    ],
)
def test_what_no_setting_says_cannot_be_trained(change, said):
    encoder = made("reg4")
    change(encoder)
    with pytest.raises(UserError, match=f"cannot be trained: .*{said}"):
        model_of(encoder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_grid_indexing": "xy"},
        {"rope_grid_offset": 1.0},
        {"rope_type": "mixed"},
        {"rope_type": "dinov3"},  # but with neighbours as pairs
        {"use_post_norm": True},
    ],
    ids=str,
)
def test_evas_of_other_kinds_are_refused(changes):
    options = {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 4, **changes}
    with pytest.raises(UserError, match=r"ser (does not have|cannot read)"):
        Encoder.from_timm(timm.create_model("eva02_small_patch14_224", **options))


# -- by name --------------------------------------------------------------------------------------


def test_a_name_of_timms_gives_its_settings_and_what_is_said_wins():
    named = "model.name=timm:vit_small_patch14_reg4_dinov2"
    settings = (named, "data.image_size=56", "model.depth=2", "model.registers=0")
    resolved = resolve("shapes/moco-ser", settings, {})
    model = resolved.recipe.model
    assert (model.patch_size, model.registers, model.layer_scale) == (14, 0, 1e-5)
    assert (model.pos_embed, model.pos_resize) == ("learned", "bicubic-antialias")
    assert size_of(model) == size_of(Model(name="vit_small", depth=2))
    assert resolved.origins["model.patch_size"] == "timm:vit_small_patch14_reg4_dinov2"
    assert resolved.origins["model.registers"] == "--set"
    assert resolved.origins["model.init"] == "shapes/base"


def test_a_runs_recipe_says_all_of_it_and_is_read_without_timm(monkeypatch, tmp_path):
    settings = ("model.name=timm:vit_small_patch14_reg4_dinov2", "model.registers=0")
    recipe = resolve("shapes/moco-none", settings, {}).recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.setattr("sercli.families.resolving._timm_settings", pytest.fail)
    assert resolve(str(tmp_path / "recipe.yaml"), (), {}).recipe == recipe


def test_choosing_another_vit_behind_it_leaves_nothing_of_timms(tmp_path):
    below = tmp_path / "below.yaml"
    below.write_text("extends: shapes/moco-none\nmodel: {name: timm:vit_small_patch14_dinov2}\n")
    other = tmp_path / "other.yaml"
    other.write_text("extends: below\nmodel: {name: vit_tiny}\n")
    assert resolve(str(other), (), {}).recipe.model.layer_scale is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:vit_smal_patch16_224", "did you mean"),
        ("timm:resnet18", "a ResNet of a kind"),
        ("timm:vit_base_patch16_rope_mixed_224", "rotary positions"),
        ("timm:", "knows no model"),
        ("vit_huge", "known: vit_micro"),
        ("vit", "without model.width"),
    ],
)
def test_names_that_cannot_be_are_refused_in_a_line(name, said):
    def size():
        settings = (f"model.name='{name}'", "model.width=null")
        return size_of(resolve("shapes/moco-none", settings, {}).recipe.model)

    with pytest.raises(UserError, match=said) as refused:
        size()
    assert "\n" not in str(refused.value)


def test_settings_of_timm_are_all_there_is_of_an_architecture():
    assert settings_of_timm("timm:vit_small_patch16_dinov3").keys() == ARCHITECTURE
    assert set(Model.model_fields) > ARCHITECTURE


def test_what_earlier_versions_had_no_word_for_is_left_out_where_it_is_as_then():
    assert Model().model_dump().keys() == {
        "name", "patch_size", "width", "depth", "num_heads", "pos_embed", "pos_resize",
        "patch_embed", "init", "cls_after", "drop_path",
    }  # fmt: skip
    assert Model(registers=4).model_dump()["registers"] == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": "mean", "cls_after": 2}, "without a"),
        ({"cls_token": False}, "use model.pool=mean"),
        ({"final_norm": "pooled"}, "of a mean"),
        ({"rope_base": 50.0}, "without model.rope"),
        ({"rope": "dinov3", "rope_grid": 16}, "eva02 only"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    flags = {f"model.{key}": value for key, value in settings.items()}
    with pytest.raises(UserError, match=said):
        resolve("shapes/moco-none", (), flags)


def test_without_cls_none_is_delayed_and_none_tapped():
    bare = Model(name="vit_micro", pool="mean")
    assert cls_after_of(bare, layer=3, taps_cls=False) == 0
    with pytest.raises(UserError, match="there is no"):
        cls_after_of(bare, layer=3, taps_cls=True)
    assert cls_after_of(bare.model_copy(update={"cls_token": True}), layer=3, taps_cls=False) == 3
    with pytest.raises(UserError, match="a multiple of 4"):
        size_of(Model(name="vit_micro", width=24, num_heads=4, rope="dinov3"))


def test_the_width_of_an_mlp_is_exact():
    for width in (48, 60, 64, 384):
        for mlp_width in (None, 85, 4 * width + 1):
            for kind, inner in (("gelu", 4 * width), ("swiglu", -(-width * 8 // 3 // 8) * 8)):
                model = Model(
                    name="vit_micro", width=width, num_heads=2, depth=1, mlp=kind,
                    mlp_width=mlp_width,
                )  # fmt: skip
                mlp = Encoder.from_model(model, image_size=32).blocks[0].mlp
                assert mlp.fc2.in_features == mlp_width_of(model, width)
                assert mlp.fc1.out_features == mlp.fc2.in_features * (2 if kind == "swiglu" else 1)
                if mlp_width is None:
                    assert 0 <= mlp.fc2.in_features - inner <= 8
    assert mlp_width_of(Model(mlp="swiglu"), 1536) == 4096  # DINOv2's giant


# -- rotary positions -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
@pytest.mark.parametrize(("kind", "base", "reference"), [
    ("dinov3", 100.0, None), ("eva02", 10000.0, None), ("eva02", 10000.0, 16),
])  # fmt: skip
def test_queries_and_keys_are_turned_by_the_place_of_their_patch(kind, base, reference, grid):
    """In NumPy and float64, pair by pair."""
    head_dim, heads = 8, 3
    rope = RotaryPositions(kind, head_dim=head_dim, base=base, grid=reference)
    layout = Layout((Span(2, grid),), 2, CPU, rope)
    given = torch.randn(layout.num_tokens, heads, head_dim, generator=_draws(0))
    pairs = "halves" if kind == "dinov3" else "neighbours"
    found = turned(given, layout.turns, pairs).unflatten(0, (2, -1)).numpy()
    x = given.double().unflatten(0, (2, -1)).numpy()
    expected = x.copy()
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = 2 + row * grid[1] + column
            for pair in range(head_dim // 2):
                along, number = (row, grid[0]) if pair < head_dim // 4 else (column, grid[1])
                place = along if reference is None else along / number * reference
                if kind == "dinov3":
                    place = 2 * math.pi * (2 * (along + 0.5) / number - 1)
                angle = place / base ** (4 * (pair % (head_dim // 4)) / head_dim)
                one, other = (pair, pair + 4) if pairs == "halves" else (2 * pair, 2 * pair + 1)
                a, b = x[:, token, :, one], x[:, token, :, other]
                expected[:, token, :, one] = a * np.cos(angle) - b * np.sin(angle)
                expected[:, token, :, other] = b * np.cos(angle) + a * np.sin(angle)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.array_equal(found[:, :2], given.unflatten(0, (2, -1))[:, :2].numpy())


def test_periods_are_a_buffer_that_is_not_drawn_nor_trained():
    encoder = made("dinov3")
    before = encoder.rope.periods.clone()
    assert "rope.periods" in encoder.state_dict()
    assert torch.equal(encoder.random_twin(3).rope.periods, before)
    assert not any(name.startswith("rope") for name, _ in encoder.named_parameters())


# -- one pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls_after", [0, 2])
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_views_of_several_sizes_in_one_pass_are_each_as_by_itself(name, cls_after):
    encoder = made(name, cls_after=cls_after, dtype=torch.float64)
    views = [
        pictures(*size, count=count, dtype=torch.float64)
        for count, size in ((2, (32, 32)), (1, (24, 40)), (3, (16, 16)), (2, (40, 24)))
    ]
    ends = [None, 3, None, 1]
    together = encoder.encode(views, (1, 2, 3), until=ends)
    for view, end, found in zip(views, ends, together, strict=True):
        alone = encoder(view, (1, 2, 3), until=end)
        torch.testing.assert_close(found.cls, alone.cls, rtol=1e-10, atol=1e-10)
        for layer, grid in alone.grids.items():
            torch.testing.assert_close(found.grids[layer], grid, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["reg4", "dinov3", "clip"])
@torch.no_grad()
def test_registers_join_with_cls_and_patches_see_neither_before(name):
    delayed, plain = made(name, cls_after=2), made(name)
    images = pictures(32, 32)
    before = delayed(images, (2, 3))
    for token in (delayed.cls_token, delayed.reg_token):
        if token is not None:
            token.add_(1.0)
    after = delayed(images, (2, 3))
    assert torch.equal(after.grids[2], before.grids[2])
    assert not torch.equal(after.grids[3], before.grids[3])
    assert not torch.allclose(plain(images, (2,)).grids[2], before.grids[2])


@torch.no_grad()
def test_cls_that_joins_late_is_normed_as_patches_were():
    """CLIP's norm in front of the blocks: a [CLS] beyond it would be of another size."""
    encoder = made("clip", cls_after=4 - 1)
    images = pictures(32, 32)
    patches = encoder(images, (3,)).grids[3].flatten(2).transpose(1, 2)
    cls = encoder.norm_pre(encoder.cls_token).expand(2, -1, -1)
    tokens = torch.cat([cls, patches], dim=1)
    block = encoder.blocks[3]
    tokens = tokens + block.attn(block.norm1(tokens))
    tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(encoder(images).cls, encoder.norm(tokens)[:, 0])


@pytest.mark.parametrize("name", SETTINGS)
def test_checkpointing_gives_the_same_gradients(name):
    found = []
    for checkpointing in (False, True):
        encoder = made(name, cls_after=1, dtype=torch.float64).train()
        encoder.checkpointing = checkpointing
        views = [pictures(32, 32, dtype=torch.float64), pictures(16, 24, dtype=torch.float64)]
        loss = sum(f.cls.sin().sum() + f.grids[2].cos().sum() for f in encoder.encode(views, (2,)))
        loss.backward()
        found.append({key: p.grad for key, p in encoder.named_parameters()})
    for key, gradient in found[0].items():
        assert gradient is not None, key
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_attention_of_cls_is_that_of_timm_with_rotary_positions():
    """By timm's own modules, registers left out."""
    vit = tiny("vit_small_patch16_dinov3")
    encoder, images = Encoder.from_timm(copy.deepcopy(vit)).eval(), pictures(80, 48)
    tokens, turns = vit._pos_embed(vit.patch_embed(images))
    attention = vit.blocks[0].attn
    attention.fused_attn, seen = False, []
    attention.attn_drop.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    attention(vit.blocks[0].norm1(tokens), rope=turns)
    expected = seen[0][:, :, 0, 5:].unflatten(2, (5, 3))
    found = encoder(images, attention=(1,)).attention[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_is_refused_where_there_is_no_cls():
    with pytest.raises(UserError, match="there is no"):
        made("mean")(pictures(32, 32), attention=(1,))


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["timm", "dino", "moco-v3", "ser-moco"])
def test_weights_are_drawn_as_the_scheme_says_whatever_the_block(scheme):
    model = Model(
        name="vit_micro", width=64, depth=2, num_heads=2, init=scheme, **SETTINGS["eva02"],
        layer_scale=0.03, registers=2,
    )  # fmt: skip
    encoder = Encoder.from_model(model, image_size=64).initialise(0)
    block = encoder.blocks[1]
    assert torch.equal(block.ls2.gamma, torch.full((64,), 0.03))
    assert not block.attn.qkv.bias.any()
    xavier = scheme in ("moco-v3", "ser-moco")
    gate = block.mlp.fc1.weight[:176]
    limit = math.sqrt(6 / (64 + 176))  # of the gate by itself, as of two maps
    assert gate.std().item() == pytest.approx(limit / math.sqrt(3) if xavier else 0.02, rel=0.03)
    if xavier:
        assert gate.abs().max() <= limit
    registers = 0.02 if scheme == "dino" else 1e-6
    assert encoder.reg_token.std().item() == pytest.approx(registers, rel=0.3)
    twin = encoder.random_twin(1)
    assert not torch.equal(twin.blocks[1].mlp.fc1.weight, block.mlp.fc1.weight)
    assert torch.equal(twin.blocks[1].ls2.gamma, block.ls2.gamma)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_an_encoders_file_gives_it_back(name, tmp_path):
    encoder = made(name, cls_after=0 if name in ("mean", "normed") else 2)
    header = encoder_metadata(model_of(encoder), encoder, step=1)
    write_encoder(tmp_path / "encoder.safetensors", header, student=encoder, teacher=None)
    loaded = read_encoder(tmp_path / "encoder.safetensors")
    assert loaded.encoder.cls_after == encoder.cls_after
    assert torch.equal(loaded.encoder(pictures(24, 32)).cls, encoder(pictures(24, 32)).cls)

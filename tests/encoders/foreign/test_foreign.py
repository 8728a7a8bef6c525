"""Checkpoints of every public layout, by their key names and shapes, against timm's own pass."""

import argparse
import functools
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn
from torchvision.transforms import InterpolationMode

from sercli.encoders.files import load_torch_file
from sercli.encoders.loading import load_encoder, read_encoder
from tests.support.command_line import run_in_process
from tests.support.foreign_files import dino, named, projector, saved, scrambled, sincos, vit
from tests.support.refusals import refused

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 384, "depth": 12, "mlp_ratio": 0.25}


@functools.cache
def small(heads, positions="learned"):
    """A ViT-S as moco-v3 or DINO have it, on a grid of 2×2."""
    model = vit(heads, **SMALL, num_heads=heads)
    if positions != "learned":
        with torch.no_grad():
            model.pos_embed.copy_(sincos(2, 384, rows_first=positions == "moco-v3"))
    return model


@torch.no_grad()
def same(loaded, model, size=32):
    """Whether the encoder's [CLS] and last patch tokens are the reference's."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    theirs = model.forward_features(images)
    ours = loaded.encoder(images, (loaded.encoder.depth,))
    patches = loaded.encoder.norm(ours.grids[loaded.encoder.depth].flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours.cls, theirs[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(patches, theirs[:, -patches.shape[1] :], rtol=1e-4, atol=1e-4)
    assert loaded.matched == loaded.expected == len(loaded.encoder.state_dict())
    assert not loaded.encoder.training
    return True


# -- every layout ---------------------------------------------------------------------------------


def moco_v3(student, teacher):
    return {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": {
            **named(student, "module.base_encoder."),
            **projector("module.base_encoder.head."),
            **named(teacher, "module.momentum_encoder."),
            **projector("module.momentum_encoder.head."),
            **projector("module.predictor."),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": []},
        "scaler": {"scale": 1.0},
    }


def barlow_twins(student, _):
    return {
        "epoch": 1000,
        "model": {
            **named(student, "module.backbone."),
            **projector("module.projector."),
            "module.bn.running_mean": torch.randn(8),
            "module.bn.running_var": torch.rand(8),
            "module.bn.num_batches_tracked": torch.tensor(3),
        },
    }


def solo_learn(student, teacher):
    return {
        "state_dict": {
            **named(student, "backbone."),
            "classifier.weight": torch.randn(10, 32),
            **projector("projector."),
            **named(teacher, "momentum_backbone."),
            **projector("momentum_projector."),
            **projector("predictor."),
        },
        "pytorch-lightning_version": "2.1.2",
        "callbacks": {"Checkpointer": {}},
    }


def solo_learn_earlier(student, teacher):
    return {
        "state_dict": {
            **named(student, "encoder."),
            "classifier.weight": torch.randn(10, 32),
            **named(teacher, "momentum_encoder."),
        }
    }


def lightly_dino(student, teacher):
    """lightly's benchmark: there `backbone` is the teacher."""
    return {
        "state_dict": {
            "backbone.mask_token": torch.zeros(1, 1, 32),
            **named(teacher, "backbone.vit."),
            **projector("projection_head.layers."),
            "student_backbone.mask_token": torch.zeros(1, 1, 32),
            **named(student, "student_backbone.vit."),
            **projector("student_projection_head.layers."),
            "criterion.center.center": torch.randn(1, 4),
            "online_classifier.linear.weight": torch.randn(10, 32),
        },
        "hyper_parameters": {"batch_size_per_device": 64},
    }


def lightly_examples(student, teacher):
    return {
        "state_dict": {
            **named(student, "backbone."),
            **projector("projection_head.layers."),
            **named(teacher, "backbone_momentum."),
            **projector("projection_head_momentum.layers."),
        }
    }


def timm_training(student, teacher):
    return {
        "arch": "some_arch",
        "args": argparse.Namespace(model="some_arch"),
        "state_dict": {**named(student), "head.weight": torch.randn(5, 32)},
        "state_dict_ema": {**named(teacher), "head.weight": torch.randn(5, 32)},
    }


@pytest.mark.parametrize(
    ("build", "layout", "places"),
    [
        (
            moco_v3,
            "moco-v3",
            ("state_dict.module.base_encoder", "state_dict.module.momentum_encoder"),
        ),
        (dino, "dino", ("student.module.backbone", "teacher.backbone")),
        (barlow_twins, "barlow-twins", ("model.module.backbone", None)),
        (solo_learn, "solo-learn", ("state_dict.backbone", "state_dict.momentum_backbone")),
        (solo_learn_earlier, "solo-learn", ("state_dict.encoder", "state_dict.momentum_encoder")),
        (lightly_dino, "lightly", ("state_dict.student_backbone.vit", "state_dict.backbone.vit")),
        (lightly_examples, "lightly", ("state_dict.backbone", "state_dict.backbone_momentum")),
        (timm_training, "timm", ("state_dict", "state_dict_ema")),
    ],
)
def test_student_and_teacher_of_every_layout(tmp_path, build, layout, places):
    student, teacher = vit(0), vit(1)
    path = saved(tmp_path, build(student, teacher))
    loaded = read_encoder(path, num_heads=4)
    assert same(loaded, student)
    facts = loaded.describe()
    assert (facts["layout"], facts["place"], facts["num_heads"]) == (layout, places[0], 4)
    assert facts["key"] == ("encoder" if build is timm_training else "student")
    assert loaded.image_size == 32
    assert loaded.encoder.blocks[0].norm1.eps == loaded.encoder.norm.eps == 1e-6
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert layout in loaded.summary
    if places[1] is None:
        refused(lambda: load_encoder(path, teacher=True, num_heads=4), "no teacher")
        return
    loaded = read_encoder(path, teacher=True, num_heads=4)
    assert same(loaded, teacher)
    assert (loaded.key, loaded.place) == ("teacher", places[1])


@pytest.mark.parametrize("name", ["bare.pth", "bare.safetensors"])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_a_bare_state_dict(tmp_path, name, container):
    model = vit(num_classes=7)
    state = named(model, "module." if container == "state_dict" else "")
    if container and name.endswith("pth"):
        state = {container: state}
    path = saved(tmp_path, state, name)
    loaded = read_encoder(path, num_heads=4)
    assert same(loaded, model)
    assert loaded.layout == "timm"
    refused(lambda: load_encoder(path, teacher=True, num_heads=4), "no teacher")


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2(tmp_path, registers, chunked):
    """LayerScale, registers without positions, a mask token, and blocks in chunks."""
    model = vit(init_values=1.0, reg_tokens=registers, no_embed_class=True)
    state = named(model)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
    # Theirs has a position for [CLS] and none for registers.
    extra = torch.randn(1, 1, 32)
    state["pos_embed"] = torch.cat([extra, state["pos_embed"]], 1)
    with torch.no_grad():
        model.cls_token += extra
    state["mask_token"] = torch.zeros(1, 32)
    if chunked:
        state = {
            key.replace("blocks.", "blocks.0.") if key.startswith("blocks.") else key: value
            for key, value in state.items()
        }
    loaded = read_encoder(saved(tmp_path, state), num_heads=4)
    assert same(loaded, model)
    assert (loaded.layout, loaded.encoder.cls_after) == ("dinov2", 0)
    assert loaded.encoder.random_twin(0)(torch.randn(1, 3, 32, 32)).cls.isfinite().all()
    training = {
        "teacher": {
            **{f"backbone.{key}": value for key, value in state.items()},
            **projector("dino_head."),
            **projector("ibot_head."),
        }
    }
    path = saved(tmp_path, training, "teacher_checkpoint.pth")
    refused(lambda: load_encoder(path, num_heads=4), "no student", "--teacher")
    loaded = read_encoder(path, teacher=True, num_heads=4)
    assert same(loaded, model)
    assert loaded.layout == "dinov2"


def test_dinov2s_gated_mlp(tmp_path):
    model = vit(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=3, init_values=1.0)
    state = {
        key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
        for key, value in named(model).items()
    }
    state["mask_token"] = torch.zeros(1, 32)
    assert same(read_encoder(saved(tmp_path, state), num_heads=4), model)


def test_registers_with_and_without_positions_as_in_timm(tmp_path):
    for no_embed_class in (False, True):
        model = vit(reg_tokens=3, no_embed_class=no_embed_class)
        loaded = read_encoder(saved(tmp_path, named(model)), num_heads=4)
        assert same(loaded, model)


def test_torchvisions_vit(tmp_path):
    import torchvision

    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
    ).eval()
    with torch.no_grad():
        model.encoder.pos_embedding.normal_()
        model.class_token.normal_()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(images)], 1)
        reference = model.encoder(tokens)[:, 0]
    loaded = read_encoder(saved(tmp_path, model.state_dict()), num_heads=4)
    assert loaded.layout == "torchvision"
    torch.testing.assert_close(loaded.encoder(images).cls, reference, rtol=1e-4, atol=1e-5)
    inside = {"state_dict": named(model, "backbone.vit.")}
    loaded = read_encoder(saved(tmp_path, inside), num_heads=4)
    assert loaded.layout == "lightly"
    torch.testing.assert_close(loaded.encoder(images).cls, reference, rtol=1e-4, atol=1e-5)


# -- the SER authors' -----------------------------------------------------------------------------


@torch.no_grad()
def delayed_reference(model, images, layer):
    """The authors' order of things: patches and positions, blocks up to `layer`, then [CLS]."""
    tokens = model.patch_embed(images) + model.pos_embed
    for index, block in enumerate(model.blocks, 1):
        tokens = block(tokens)
        if index == layer:
            tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], 1)
    return model.norm(tokens)


def ser_moco(student, teacher, layer, **more):
    arguments = argparse.Namespace(
        arch="vit_small",
        equiv_layer=layer,
        equiv_mode="erl_inv",
        interpolation=InterpolationMode.BILINEAR,
        output_dir=pathlib.Path("results"),
    )
    norm = {"norm_equiv.weight": torch.ones(32), "norm_equiv.bias": torch.zeros(32)}
    head = nn.Sequential(nn.Linear(32, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
    return {
        "epoch": 100,
        "args": arguments,
        "student": {**named(student), **norm},
        "student_head": head,  # a module, not its state
        "teacher": {**named(teacher), **norm},
        "teacher_head": head,
        "projector_equiv": {"0.weight": torch.randn(8, 32, 1, 1)},
        "optimizer": {},
        "loss_list_inv": np.array([1.0, 0.5]),
        **more,
    }


def ser_dino(student, teacher, layer):
    state = dino(student, teacher)
    for role, prefix in (("student", "module."), ("teacher", "")):
        state[role][f"{prefix}backbone.norm_equiv.weight"] = torch.ones(32)
        state[role][f"{prefix}projector_equiv.0.weight"] = torch.randn(8, 32, 1, 1)
    state["args"] = argparse.Namespace(equiv_layer=layer, equiv_mode="erl", patch_size=8)
    return state


def ser_barlow_twins(student, _, layer):
    return {
        "args": argparse.Namespace(equiv_layer=layer, equiv_mode="erl"),
        "model": {**named(student), "norm_equiv.weight": torch.ones(32)},
        "projector_inv": projector(""),
        "projector_equiv": {"0.weight": torch.randn(8, 32, 1, 1)},
    }


@pytest.mark.parametrize("build", [ser_moco, ser_dino, ser_barlow_twins])
@pytest.mark.parametrize("layer", [1, 2])
def test_the_authors_delayed_cls(tmp_path, build, layer):
    student, teacher = (vit(seed, no_embed_class=True) for seed in (0, 1))
    path = saved(tmp_path, build(student, teacher, layer))
    images = torch.randn(2, 3, 32, 32)
    for model, role in ((student, "student"), (teacher, "teacher")):
        if role == "teacher" and build is ser_barlow_twins:
            continue
        loaded = read_encoder(path, teacher=role == "teacher", num_heads=4)
        features = loaded.encoder(images, (3,))
        reference = delayed_reference(model, images, layer)
        torch.testing.assert_close(features.cls, reference[:, 0], rtol=1e-4, atol=1e-4)
        patches = loaded.encoder.norm(features.grids[3].flatten(2).transpose(1, 2))
        torch.testing.assert_close(patches, reference[:, 1:], rtol=1e-4, atol=1e-4)
        assert loaded.describe()["cls_after"] == layer
        assert (loaded.layout, loaded.key) == ("ser-authors", role)
        assert loaded.matched == loaded.expected
    refused(lambda: load_encoder(path, num_heads=4, cls_after=0), "--cls-after 0", f"says {layer}")


def test_where_the_delay_is_not_said_it_is_asked_for(tmp_path):
    model = vit(no_embed_class=True)
    state = ser_moco(model, model, 2)
    del state["args"]
    path = saved(tmp_path, state)
    refused(lambda: load_encoder(path, num_heads=4), "--cls-after L", "no place for [CLS]")
    loaded = read_encoder(path, num_heads=4, cls_after=2)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        loaded.encoder(images).cls, delayed_reference(model, images, 2)[:, 0], rtol=1e-4, atol=1e-4
    )
    refused(lambda: load_encoder(path, num_heads=4, cls_after=3), "0…2")
    # A bare one may be theirs or timm's no_embed_class: asked for as well.
    path = saved(tmp_path, named(model))
    refused(lambda: load_encoder(path, num_heads=4), "--cls-after L")
    assert same(read_encoder(path, num_heads=4, cls_after=0), model)


def test_the_authors_ordinary_vit(tmp_path):
    model = vit()
    state = ser_moco(model, model, 12)
    state["args"].equiv_mode = "inv"
    state["student"] = named(model)
    path = saved(tmp_path, state)
    loaded = read_encoder(path, num_heads=4)
    assert same(loaded, model)
    assert (loaded.layout, loaded.encoder.cls_after) == ("ser-authors", 0)
    refused(lambda: load_encoder(path, num_heads=4, cls_after=1), "place for [CLS]")


# -- heads are known, or asked for ----------------------------------------------------------------


def test_equal_shapes_different_heads(tmp_path):
    """A MoCo-v3 ViT-S and a DINO ViT-S differ only in what cannot be seen in a shape."""
    twelve, six = small(12, "moco-v3"), small(6)
    loaded = read_encoder(saved(tmp_path, moco_v3(twelve, twelve)))
    assert (loaded.num_heads, loaded.encoder.fixed_positions) == (12, True)
    assert same(loaded, twelve)
    state = dino(six, six)
    state["args"].patch_size = 16
    loaded = read_encoder(saved(tmp_path, state))
    assert (loaded.num_heads, loaded.encoder.fixed_positions) == (6, False)
    assert same(loaded, six)
    loaded = read_encoder(saved(tmp_path, ser_moco(six, six, 12)))
    assert (loaded.num_heads, loaded.layout) == (6, "ser-authors")
    assert same(loaded, six)


def test_a_bare_vit_s_is_told_by_its_positions_or_asked_for(tmp_path):
    fixed = small(12, "moco-v3")
    loaded = read_encoder(saved(tmp_path, named(fixed)))
    assert loaded.num_heads == 12
    assert same(loaded, fixed)
    for positions in ("learned", "mae"):
        model = small(6, positions)
        path = saved(tmp_path, named(model))
        refused(lambda p=path: load_encoder(p), "--num-heads N", "6 in DINO", "12 in MoCo-v3")
        assert same(read_encoder(path, num_heads=6), model)


@pytest.mark.parametrize("positions", ["learned", "moco-v3", "mae"])
def test_solo_learn_has_three_kinds_of_vit_s(tmp_path, positions):
    model = small(6 if positions == "learned" else 12, positions)
    loaded = read_encoder(saved(tmp_path, solo_learn(model, model)))
    assert loaded.num_heads == (6 if positions == "learned" else 12)
    assert same(loaded, model)


def test_a_wrong_number_of_heads_would_show(tmp_path):
    """So that the tests above can fail."""
    model = small(6)
    loaded = read_encoder(saved(tmp_path, named(model)), num_heads=12)
    with pytest.raises(AssertionError):
        same(loaded, model)


def test_timms_training_checkpoint_names_its_model(tmp_path):
    model = timm.create_model("test_vit", num_classes=5).eval()
    state = {"arch": "test_vit", "state_dict": named(model)}
    loaded = read_encoder(saved(tmp_path, state))
    assert loaded.num_heads == model.blocks[0].attn.num_heads
    assert loaded.mean == tuple(model.pretrained_cfg["mean"])
    assert same(loaded, model, size=160)
    refused(lambda: load_encoder(saved(tmp_path, state), num_heads=1), "--num-heads 1", "it says")


@pytest.mark.parametrize("build", [barlow_twins, lightly_examples])
def test_heads_that_no_public_code_fixes_are_asked_for(tmp_path, build):
    refused(lambda: load_encoder(saved(tmp_path, build(small(6), small(6)))), "--num-heads N")


def test_an_unusual_size_is_asked_for(tmp_path):
    for build in (moco_v3, dino, solo_learn, lightly_dino):
        path = saved(tmp_path, build(vit(), vit()))
        refused(lambda p=path: load_encoder(p), "3 blocks, 32 wide", "--num-heads N")
    refused(lambda: load_encoder(path, num_heads=5), "--num-heads 5", "32 wide", "divide")
    refused(lambda: load_encoder(path, num_heads=0), "--num-heads 0")


def test_half_precision(tmp_path):
    model = small(12, "moco-v3")
    half = {key: value.half() for key, value in named(model).items()}
    loaded = read_encoder(saved(tmp_path, half))
    assert loaded.num_heads == 12
    assert {p.dtype for p in loaded.encoder.parameters()} == {torch.float32}


def test_other_image_sizes_resample_positions(tmp_path):
    loaded = read_encoder(saved(tmp_path, named(vit())), num_heads=4)
    assert loaded.encoder(torch.randn(1, 3, 48, 64), (3,)).grids[3].shape == (1, 32, 6, 8)
    assert loaded.encoder.random_twin(0)(torch.randn(1, 3, 32, 32)).cls.shape == (1, 32)


# -- a place that must be named -------------------------------------------------------------------


def test_an_unknown_layout_is_taken_where_it_is_said_to_be(tmp_path):
    model, other = vit(0), vit(1)
    state = {
        "checkpoint": {"weights": {**named(model, "net.vit."), "net.neck": torch.ones(3)}},
        "other": named(other, "net."),
    }
    path = saved(tmp_path, state)
    message = refused(lambda: load_encoder(path, num_heads=4), "layout that ser does not know")
    assert "checkpoint.weights.net.vit" in message
    assert "other.net" in message
    loaded = read_encoder(path, num_heads=4, key="checkpoint.weights.net.vit")
    assert same(loaded, model)
    assert loaded.place == "checkpoint.weights.net.vit"
    assert same(read_encoder(path, num_heads=4, key="other.net"), other)
    refused(lambda: load_encoder(path, num_heads=4, key="other"), "--key other", "other.net")


def test_a_key_chooses_and_leaves_the_rest(tmp_path):
    student, teacher = vit(0), vit(1)
    state = moco_v3(student, teacher)
    state["state_dict"]["module.extra.weight"] = torch.ones(2)
    path = saved(tmp_path, state)
    refused(lambda: load_encoder(path, num_heads=4), "extra.weight", "--key state_dict.module.base")
    for key in ("state_dict.module.momentum_encoder", "state_dict.momentum_encoder"):
        assert same(read_encoder(path, num_heads=4, key=key), teacher)
    refused(lambda: load_encoder(path, num_heads=4, key="x", teacher=True), "--teacher")


def test_two_students_must_be_chosen_from(tmp_path):
    model = vit()
    path = saved(tmp_path, {"a": named(model), "b": named(vit(1))})
    refused(lambda: load_encoder(path, num_heads=4), "2 encoders", "--key a")
    assert same(read_encoder(path, num_heads=4, key="a"), model)
    path = saved(tmp_path, {**named(vit(1)), "b": named(model)})
    refused(lambda: load_encoder(path, num_heads=4), "(at ., b)", "--key .")
    assert same(read_encoder(path, num_heads=4, key="."), vit(1))


def test_what_ser_knows_of_its_own_is_not_asked_for(tmp_path):
    refused(
        lambda: load_encoder("timm:test_vit", random_init=True, num_heads=2), "--num-heads", "timm:"
    )
    refused(lambda: load_encoder(tmp_path, key="a"), "--key")


# -- wrong files ----------------------------------------------------------------------------------


def without(state, *names):
    return {key: value for key, value in state.items() if not key.startswith(names)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "blocks.1."), ["30 of 42", "blocks.1.", "missing"]),
        (lambda s: without(s, "norm."), ["40 of 42", "norm.weight is missing"]),
        (lambda s: without(s, "cls_token"), ["no cls_token"]),
        (lambda s: without(s, "pos_embed"), ["no pos_embed", "absolute"]),
        (lambda s: without(s, "patch_embed"), ["no ViT"]),
        (lambda s: without(s, "blocks."), ["no blocks"]),
        (
            lambda s: {**s, "dist_token": torch.ones(1, 1, 32)},
            ["42 of 42", "1 of theirs left over", "dist_token"],
        ),
        (lambda s: {**s, "pos_embed": torch.ones(1, 15, 32)}, ["[1, 15, 32]", "square"]),
        (lambda s: {**s, "pos_embed": torch.ones(17, 32)}, ["[17, 32]"]),
        (lambda s: {**s, "norm.weight": torch.ones(31)}, ["41 of 42", "[31]", "not [32]"]),
        (lambda s: {**s, "norm.bias": torch.full((32,), torch.nan)}, ["norm.bias", "not finite"]),
        (
            lambda s: {**s, "patch_embed.proj.weight": torch.ones(32, 3, 8, 16)},
            ["[32, 3, 8, 16]", "square"],
        ),
        (lambda s: {**s, "patch_embed.proj.weight": torch.ones(32, 1, 8, 8)}, ["RGB"]),
        (lambda s: {**s, "patch_embed.proj.weight": torch.ones(0, 3, 8, 8)}, ["[0, 3, 8, 8]"]),
        (lambda s: {**s, "cls_token": torch.ones(3)}, ["41 of 42", "cls_token", "[3]"]),
        (lambda s: {**s, "reg_token": torch.ones(3)}, ["registers", "[3]"]),
        (lambda s: {**s, "blocks.0.mlp.fc1.weight": torch.tensor(1.0)}, ["fc1.weight", "[]"]),
        (lambda s: {**s, "blocks.987654321.norm1.bias": torch.ones(32)}, ["987654321", "missing"]),
        (
            lambda s: {
                **without(s, "patch_embed"),
                "patch_embed.proj.0.weight": torch.ones(4, 3, 3, 3),
            },
            ["convolutional stem"],
        ),
        (
            lambda _: {"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.ones(2)},
            ["ResNet", "ViT"],
        ),
        (
            lambda _: {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(2)},
            ["transformers", "config.json"],
        ),
        (lambda _: {}, ["no ViT", "nothing"]),
        (lambda _: {"epoch": 3}, ["no ViT", "epoch"]),
    ],
)
def test_files_that_are_not_right_say_why(tmp_path, change, words):
    path = saved(tmp_path, change(named(vit())))
    message = refused(lambda: load_encoder(path, num_heads=4), "theirs.pth", *words)
    assert len(message) < 400


@torch.no_grad()
@pytest.mark.parametrize("act", ["", "quickgelu_"])
def test_clips_vit_where_the_file_names_it(tmp_path, monkeypatch, act):
    """Pre-norm, ε of 1e-5, and an activation that no weight shows: the name says them."""
    arch = f"vit_base_patch16_clip_{act}224"
    create = timm.create_model

    def small_one(name, **options):
        assert name == arch
        return create(name, **{**options, "embed_dim": 64, "depth": 3, "num_heads": 2})

    monkeypatch.setattr(timm, "create_model", small_one)
    model = scrambled(small_one(arch, num_classes=0))
    path = saved(tmp_path, {"arch": arch, "state_dict": named(model)})
    loaded = read_encoder(path)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    theirs = model.double().forward_features(images.double())
    ours = loaded.encoder.double()(images.double(), (3,))
    torch.testing.assert_close(ours.cls, theirs[:, 0], rtol=0, atol=1e-6)
    patches = loaded.encoder.norm(ours.grids[3].flatten(2).transpose(1, 2))
    torch.testing.assert_close(patches, theirs[:, 1:], rtol=0, atol=1e-6)
    assert loaded.mean == (0.48145466, 0.4578275, 0.40821073)
    assert loaded.matched == loaded.expected == len(model.state_dict())
    bare = saved(tmp_path, named(model.float()), "bare.pth")
    refused(lambda: load_encoder(bare), "CLIP", "GELU or QuickGELU", "--activation")
    refused(lambda: load_encoder(bare, num_heads=2), "CLIP")
    for said in ({"arch": arch}, {"activation": "quick-gelu" if act else "gelu"}):
        told = read_encoder(bare, **said, **({} if "arch" in said else {"num_heads": 2}))
        assert told.encoder.norm.eps == 1e-5
        assert torch.equal(told.encoder.double()(images.double()).cls, ours.cls)
        assert told.mean == loaded.mean


@torch.no_grad()
def test_a_vit_that_pools_its_patches(tmp_path):
    """As timm's and MAE's fine-tuned ones: no `norm`, but `fc_norm` behind the mean."""
    model = vit(global_pool="avg", num_classes=0)
    loaded = read_encoder(saved(tmp_path, named(model)), num_heads=4)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.encoder(images).cls, model(images), rtol=1e-4, atol=1e-5)


def test_deit_iiis_layer_scale(tmp_path):
    """Its own names: gamma_1 and gamma_2; no position for [CLS], an ordinary ViT all the same."""
    model = vit(init_values=1.0, no_embed_class=True)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in named(model).items()
    }
    loaded = read_encoder(saved(tmp_path, {"model": state}), num_heads=4)
    assert same(loaded, model)
    assert (loaded.encoder.cls_after, loaded.encoder.pos_resize) == (0, "bicubic")
    assert loaded.layout == "deit-iii"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cait_xxs24_224", ["blocks hold attn.proj_l", "CaiT"]),
        ("xcit_nano_12_p16_224", ["convolutional stem"]),
        ("beit_base_patch16_224", ["no pos_embed", "rotary"]),
        ("vit_relpos_small_patch16_224", ["no pos_embed"]),
    ],
)
def test_other_kinds_are_refused_for_what_they_are(tmp_path, name, words):
    """At once, not after the number of heads was asked for."""
    model = timm.create_model(name, depth=1, num_classes=0)
    for state in (named(model), {"arch": name, "state_dict": named(model)}):
        message = refused(lambda s=state: load_encoder(saved(tmp_path, s)), *words)
        assert "--num-heads" not in message


def test_a_convolutional_stem_has_counters(tmp_path):
    """moco-v3's vit_conv_*: the batch norms' int64 counters are no quantised weights."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model = vit()
    state = without(named(model), "patch_embed")
    state |= named(stem, "patch_embed.proj.")
    assert state["patch_embed.proj.1.num_batches_tracked"].dtype == torch.int64
    refused(lambda: load_encoder(saved(tmp_path, state)), "convolutional stem")


@pytest.mark.parametrize("array", [np.array([]), np.array([], np.float32), np.zeros((0, 3))])
def test_an_array_of_no_numbers_runs_no_code(tmp_path, array):
    """Its pickle calls `bytes`; a run without equivariance stores one."""
    path = saved(tmp_path, {**dino(vit(0), vit(1)), "loss_list_equiv": array, "lr": np.float64(1)})
    assert same(read_encoder(path, num_heads=4), vit(0))
    state = load_torch_file(path)
    assert not isinstance(state["loss_list_equiv"], np.ndarray)


class Allocates:
    def __reduce__(self):
        return bytes, (1 << 40,)


def test_bytes_of_a_file_are_not_made(tmp_path):
    path = saved(tmp_path, {**dino(vit(0), vit(1)), "x": Allocates()})
    assert same(read_encoder(path, num_heads=4), vit(0))


def test_the_public_resnets_are_named_as_such(tmp_path):
    for state in (
        {"model": {"module.backbone.layer1.0.conv1.weight": torch.ones(2)}},  # Barlow Twins
        {"state_dict": {"module.base_encoder.layer1.0.conv1.weight": torch.ones(2)}},  # MoCo-v3
        {"state_dict": {"backbone.4.0.conv2.weight": torch.ones(2)}},  # lightly
    ):
        refused(lambda s=state: load_encoder(saved(tmp_path, s)), "ResNet", "ViT is needed")


def test_patches_that_contradict_the_arguments(tmp_path):
    state = dino(vit(), vit())
    state["args"].patch_size = 16
    refused(lambda: load_encoder(saved(tmp_path, state), num_heads=4), "8 px", "16")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files(tmp_path, keep):
    for name in ("x.pth", "x.safetensors"):
        path = saved(tmp_path, named(vit()), name)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        refused(lambda p=path: load_encoder(p, num_heads=4), str(path))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path, zipped):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    state = {**moco_v3(vit(), vit()), "args": Evil(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    refused(
        lambda: load_encoder(path, num_heads=4), "evil.pth", "system", "never run", "ser export"
    )
    assert not marker.exists()
    # The conversion that `ser export --help` shows, in a place that may run the file's code.
    state = torch.load(path, map_location="cpu", weights_only=False)
    assert marker.exists()
    tensors = {k: v for k, v in state["state_dict"].items() if torch.is_tensor(v)}
    torch.save({"state_dict": tensors}, tmp_path / "plain.pth")
    assert load_encoder(tmp_path / "plain.pth", num_heads=4).depth == 3


class SetsState:
    def __setstate__(self, state):
        pytest.fail("code of the file was run")

    def __getstate__(self):
        return {"a": 1}


def test_stored_objects_are_neither_built_nor_kept(tmp_path):
    refused(
        lambda: load_encoder(saved(tmp_path, {**named(vit()), "x": SetsState()}), num_heads=4),
        "SetsState",
    )


# -- blocks, wrappers, numbers --------------------------------------------------------------------


def cut_short(state, *, depth=12):
    """Without the last block, as its numbering alone does not show."""
    last = f"blocks.{depth - 1}."
    return {key: value for key, value in state.items() if last not in key}


def test_a_lost_last_block_is_told_by_the_teacher_the_width_or_the_name(tmp_path):
    tiny = moco_v3(vit(0), vit(1))
    tiny["state_dict"] = {
        key: value
        for key, value in tiny["state_dict"].items()
        if not key.startswith("module.base_encoder.blocks.2.")
    }
    path = saved(tmp_path, tiny)
    refused(lambda: load_encoder(path, num_heads=4), "student", "no blocks.2.", "teacher has")
    assert read_encoder(path, num_heads=4, teacher=True).encoder.depth == 3
    assert read_encoder(path, num_heads=4, key="state_dict.base_encoder").encoder.depth == 2
    model = small(6)
    path = saved(tmp_path, cut_short(named(model)))
    refused(lambda: load_encoder(path, num_heads=6), "11 blocks", "384 wide has 12", "--key")
    assert read_encoder(path, num_heads=6, key=".").encoder.depth == 11
    named_one = timm.create_model("test_vit", num_classes=0)
    depth = len(named_one.blocks)
    state = {"arch": "test_vit", "state_dict": cut_short(named(named_one), depth=depth)}
    refused(
        lambda: load_encoder(saved(tmp_path, state)), f"{depth - 1} blocks", f"test_vit has {depth}"
    )


def test_the_named_model_must_have_that_width_and_patch(tmp_path):
    state = {"arch": "vit_small_patch32_224", "state_dict": named(small(6))}
    refused(lambda: load_encoder(saved(tmp_path, state)), "patches of 16 px", "patch32_224", "32")
    state["arch"] = "vit_base_patch16_224"
    refused(lambda: load_encoder(saved(tmp_path, state)), "width of 384", "768")
    path = tmp_path / "named.safetensors"
    header = {"format": "pt", "architecture": "vit_small_patch16_224"}
    safetensors.torch.save_file(named(small(6)), path, metadata=header)
    assert same(read_encoder(path), small(6))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_around_a_part(tmp_path, wrapper):
    student, teacher = vit(0), vit(1)
    state = moco_v3(student, teacher)
    inner = "module.base_encoder."
    state["state_dict"] = {
        key.replace(inner, inner + wrapper): value for key, value in state["state_dict"].items()
    }
    path = saved(tmp_path, state)
    loaded = read_encoder(path, num_heads=4)
    assert same(loaded, student)
    assert loaded.place == f"state_dict.{inner}{wrapper}".rstrip(".")
    assert same(read_encoder(path, num_heads=4, key="state_dict.base_encoder"), student)
    assert same(read_encoder(path, num_heads=4, teacher=True), teacher)


def test_quantised_weights_are_not_read_as_numbers(tmp_path):
    state = {key: (20 * value).to(torch.int8) for key, value in named(vit()).items()}
    refused(lambda: load_encoder(saved(tmp_path, state), num_heads=4), "int8", "floating-point")


def test_heads_that_the_layouts_own_code_does_not_have_are_told(tmp_path):
    path = saved(tmp_path, moco_v3(small(12, "moco-v3"), small(12, "moco-v3")))
    assert "12 heads, patch" in read_encoder(path).summary
    told = read_encoder(path, num_heads=6).summary
    assert "6 heads (its own code gives it 12), patch" in told


@torch.no_grad()
@pytest.mark.parametrize("bare", [False, True])
def test_the_authors_vit_in_other_wrappers(tmp_path, bare):
    """In MoCo-v3's wrapper, or alone: `norm_equiv` tells whose it is, and so 6 heads."""
    student, teacher = (vit(s, **SMALL, num_heads=6, no_embed_class=True) for s in (0, 1))
    norm = {"norm_equiv.weight": torch.ones(384), "norm_equiv.bias": torch.zeros(384)}
    if bare:
        state = {**named(student), **norm}
    else:
        state = moco_v3(student, teacher)
        state["state_dict"] |= {f"module.base_encoder.{k}": v for k, v in norm.items()}
        state["state_dict"]["module.projector_equiv.0.weight"] = torch.randn(8, 384, 1, 1)
        state["args"] = argparse.Namespace(equiv_layer=3, equiv_mode="erl_inv")
    path = saved(tmp_path, state)
    loaded = read_encoder(path, cls_after=3)
    assert (loaded.layout, loaded.num_heads, loaded.encoder.cls_after) == ("ser-authors", 6, 3)
    images = torch.randn(2, 3, 32, 32)
    reference = delayed_reference(student, images, 3)
    torch.testing.assert_close(loaded.encoder(images).cls, reference[:, 0], rtol=1e-4, atol=1e-4)
    if bare:
        refused(lambda: load_encoder(path), "--cls-after L")
    else:
        assert read_encoder(path).encoder.cls_after == 3
        assert read_encoder(path, teacher=True).place == "state_dict.module.momentum_encoder"


# -- the commands ---------------------------------------------------------------------------------


def test_an_evaluator_takes_a_foreign_file(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path, moco_v3(vit(), vit()))
    out = tmp_path / "run"
    line = ["knn", path, "--data", "shapes", "--limit", 20, "--device", "cpu", "--no-floor"]
    line += ["--out", out]
    status, error = run_in_process(line, monkeypatch, capsys)
    assert status == 2
    assert "--num-heads N" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
    status, error = run_in_process([*line, "--num-heads", 4], monkeypatch, capsys)
    assert status == 0, error
    assert "layout moco-v3" in error
    model = json.loads((out / "results/knn.json").read_text())["model"]
    assert (model["key"], model["layout"], model["num_heads"]) == ("student", "moco-v3", 4)
    assert model["place"] == "state_dict.module.base_encoder"
    assert model["matched"] == model["expected"]

"""Positions at another size, as each model's own code resamples them.

`golden/weights_*.npz` hold what the authors' own models give for weights that `weights` draws:
names and shapes of all tensors as their trainers save them, and [CLS] and patch tokens after the
final norm, at the native size, at two others, and on as many patches in another shape. They were
computed in float64 with the public code of aitrics-chris/SER, facebookresearch/dino,
facebookresearch/dinov2 and facebookresearch/moco-v3 (which takes one size only: resized as DeiT's
script does with what its convert_to_deit.py makes).
"""

import argparse
import json
import os
import zlib

import numpy as np
import pytest
import safetensors
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.support.foreign_files import named, saved, sincos, vit
from tests.support.paths import GOLDEN
from tests.support.refusals import refused

# Some versions of lightly ask a server for their latest version on import, unless this is set.
os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"
from lightly.models.modules import MaskedVisionTransformerTIMM

from sercli.encoders.export.timm_naming import timm_model
from sercli.encoders.export.writing import export
from sercli.encoders.loading import (
    encoder_metadata,
    encoder_sha256,
    load_encoder,
    read_encoder,
    write_encoder,
)
from sercli.encoders.vit import Encoder
from sercli.families import addon_configs, method_configs, resolve
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.recipe.schema import Model

OTHER_SIZES = ((48, 40), (16, 24), (16, 64))
WAYS = ("bicubic", "bicubic-antialias", "bicubic-offset", "bicubic-aligned")


# -- the authors' own models ----------------------------------------------------------------------


def weights(name, shape, role):
    """Weights so large that every one of them matters, by a draw of each tensor's own."""
    draws = np.random.RandomState(zlib.crc32(f"{role}/{name}".encode()))
    value = draws.standard_normal(shape)
    if len(shape) >= 2 and shape[0] != 1:
        value = value * (1.5 * np.prod(shape[1:]) ** -0.5)
    elif name.endswith("weight"):
        value = 1 + 0.2 * value
    else:
        value = 0.3 * value
    return torch.from_numpy(np.asarray(value, np.float32))


def images(size):
    return torch.from_numpy(np.random.RandomState(1).standard_normal((2, 3, *size)))


def head():
    return nn.Sequential(nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())


def ser_facts(mode, layer, *, equiv=(0.5,)):
    """What all three of the SER authors' scripts store beside weights."""
    return {
        "epoch": 100,
        "args": argparse.Namespace(equiv_mode=mode, equiv_layer=layer, equiv_scale=[0.7, 1.3]),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "loss_list_inv": np.array([1.5, 0.5]),
        "loss_list_equiv": np.array(equiv),
    }


# name: (role: (sub-dictionary, beginning of the encoder's names)), what else is in the file,
# layout, [CLS] joins after, way.
BOTH = {"student": ("student", ""), "teacher": ("teacher", "")}
WRAPPED = {"student": ("student", "module.backbone."), "teacher": ("teacher", "backbone.")}
MODELS = {
    "ser_moco": (
        BOTH,
        {**ser_facts("erl_inv", 2), "student_head": head(), "teacher_head": head(), "scaler": {}},
        ("ser-authors", 2, "bicubic-offset"),
    ),
    "ser_moco_inv": (
        BOTH,
        {
            **ser_facts("inv", 12, equiv=()),
            "student_head": head(),
            "teacher_head": head(),
            "projector_equiv": None,
        },
        ("ser-authors", 0, "bicubic-offset"),
    ),
    "ser_barlow_twins": (
        {"model": ("model", "")},
        ser_facts("erl", 1),
        ("ser-authors", 1, "bicubic-offset"),
    ),
    "ser_dino": (
        WRAPPED,
        {**ser_facts("erl", 2), "dino_loss": {"center": torch.zeros(1, 8)}},
        ("ser-authors", 2, "bicubic-offset"),
    ),
    "dino": (
        WRAPPED,
        {
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", patch_size=8),
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
        ("dino", 0, "bicubic-offset"),
    ),
    "dinov2": ({"encoder": ("", "")}, {}, ("dinov2", 0, "bicubic-offset")),
    "dinov2_reg": ({"encoder": ("", "")}, {}, ("dinov2", 0, "bicubic-antialias")),
    "dinov2_training": (
        {"student": ("model", "student.backbone."), "teacher": ("model", "teacher.backbone.")},
        {"iteration": 7},
        ("dinov2", 0, "bicubic-offset"),
    ),
    "moco_v3": (
        {
            "student": ("state_dict", "module.base_encoder."),
            "teacher": ("state_dict", "module.momentum_encoder."),
        },
        {"epoch": 300, "arch": "vit_small", "scaler": {}},
        ("moco-v3", 0, "bicubic"),
    ),
}


def authors_file(name, tmp_path):
    """The file as their trainer saves it, and what their model gives: (role, size) → arrays."""
    places, extra, _ = MODELS[name]
    golden = np.load(GOLDEN / f"weights_{name}.npz")
    state = dict(extra)
    for container, shapes in json.loads(str(golden["spec"])).items():
        tensors = {}
        for key, shape in shapes.items():
            encoders = (
                (role, key.removeprefix(beginning))
                for role, (place, beginning) in places.items()
                if place == container and key.startswith(beginning)
            )
            role, inner = next(encoders, ("head", key))
            if f"given/{inner}" in golden:
                tensors[key] = torch.from_numpy(golden[f"given/{inner}"])
            elif key.endswith("num_batches_tracked"):
                tensors[key] = torch.tensor(3)
            else:
                tensors[key] = weights(inner, shape, role)
        state = {**state, container: tensors} if container else {**state, **tensors}
    return saved(tmp_path, state), golden


@torch.no_grad()
def outputs(encoder, size):
    """[CLS] and patch tokens after the final norm, in float64."""
    features = encoder.double()(images(size), (encoder.depth,))
    patches = encoder.norm(features.grids[encoder.depth].flatten(2).transpose(1, 2))
    return features.cls, patches


@pytest.mark.parametrize("name", MODELS)
def test_the_authors_models_at_every_size(tmp_path, name):
    places, _, (layout, cls_after, way) = MODELS[name]
    path, golden = authors_file(name, tmp_path)
    for role in places:
        loaded = read_encoder(path, num_heads=2, teacher=role == "teacher")
        assert (loaded.layout, loaded.encoder.cls_after) == (layout, cls_after)
        assert loaded.describe()["positions"] == loaded.encoder.pos_resize == way
        assert way in loaded.summary
        assert "assumed" not in loaded.summary
        for size in ((32, 32), *OTHER_SIZES):
            for found, what in zip(outputs(loaded.encoder, size), ("cls", "patches"), strict=True):
                theirs = torch.from_numpy(golden[f"{role}/{size[0]}x{size[1]}/{what}"]).double()
                torch.testing.assert_close(found, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["dino", "dinov2_reg", "moco_v3"])
def test_another_way_is_another_number(tmp_path, name):
    """So that the test above could fail: any other way moves [CLS] by more than 1e-3."""
    path, golden = authors_file(name, tmp_path)
    right = MODELS[name][2][2]
    role = "encoder" if name == "dinov2_reg" else "student"
    theirs = torch.from_numpy(golden[f"{role}/48x40/cls"]).double()
    for way in WAYS:
        encoder = load_encoder(path, num_heads=2, positions=way)
        same = (outputs(encoder, (48, 40))[0] - theirs).abs().max() < 1e-3
        assert same == (way == right), way


def test_dinov2s_training_file_by_its_place(tmp_path):
    """FSDP's names, chunks of blocks, and the place named."""
    path, golden = authors_file("dinov2_training", tmp_path)
    state = torch.load(path, weights_only=True)
    nested = {
        key.replace("backbone.", "backbone._fsdp_wrapped_module.").replace(
            "blocks.1.", "blocks.1._fsdp_wrapped_module."
        ): value
        for key, value in state["model"].items()
    }
    for model in (state["model"], nested):
        path = saved(tmp_path, {**state, "model": model})
        for options in ({"key": "model.teacher.backbone"}, {"teacher": True}):
            loaded = read_encoder(path, num_heads=2, **options)
            assert (loaded.layout, loaded.key) == ("dinov2", "teacher")
            theirs = torch.from_numpy(golden["teacher/16x24/cls"]).double()
            found = outputs(loaded.encoder, (16, 24))[0]
            torch.testing.assert_close(found, theirs, rtol=0, atol=5e-6)


# -- timm, lightly, torchvision -------------------------------------------------------------------


def timm_at(model, size):
    """timm's own tokens after the final norm, in float64."""
    with torch.no_grad():
        tokens = model.double().forward_features(images(size))
    return tokens[:, 0], tokens[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("size", OTHER_SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 3},
        {"no_embed_class": True, "init_values": 1.0, "reg_tokens": 4},  # as deit3, dinov2 in timm
    ],
)
def test_timms_vit(tmp_path, size, options):
    model = vit(dynamic_img_size=True, **options)
    loaded = read_encoder(saved(tmp_path, named(model)), num_heads=4)
    assert loaded.encoder.pos_resize == "bicubic-antialias"
    for found, theirs in zip(outputs(loaded.encoder, size), timm_at(model, size), strict=True):
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)  # it resizes in float32
    direct = Encoder.from_timm(model)
    torch.testing.assert_close(outputs(direct, size), timm_at(model, size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [16, 48])
def test_lightlys_wrapper(tmp_path, side):
    wrapper = MaskedVisionTransformerTIMM(
        vit(dynamic_img_size=True), weight_initialization="skip"
    ).eval()
    state = {"state_dict": {f"student_backbone.{k}": v for k, v in wrapper.state_dict().items()}}
    loaded = read_encoder(saved(tmp_path, state), num_heads=4)
    assert (loaded.layout, loaded.encoder.pos_resize) == ("lightly", "bicubic-antialias")
    with torch.no_grad():
        theirs = wrapper.double().encode(images((side, side)))
    found = outputs(loaded.encoder, (side, side))
    torch.testing.assert_close(found[0], theirs[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], theirs[:, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [16, 48])
def test_torchvisions_vit(tmp_path, side):
    """Which takes one size only, and has a function that resizes the positions in a file."""
    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}

    def build(image_size):
        return torchvision.models.VisionTransformer(image_size=image_size, **sizes).eval()

    state = {
        key: weights(key, tuple(value.shape), "encoder")
        for key, value in build(32).state_dict().items()
    }
    loaded = read_encoder(saved(tmp_path, state), num_heads=4)
    assert (loaded.layout, loaded.encoder.pos_resize) == ("torchvision", "bicubic-aligned")
    other = build(side)
    other.load_state_dict(interpolate_embeddings(side, 8, state))
    other.heads = nn.Identity()
    with torch.no_grad():
        theirs = other.double()(images((side, side)))
    torch.testing.assert_close(outputs(loaded.encoder, (side, side))[0], theirs, atol=1e-5, rtol=0)


# -- a fact of the model --------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 4), (7, 2), (37, 64), (101, 3)])
def test_the_grid_is_the_one_asked_for(way, grid):
    """Also with a factor that is meant to be rounded down."""
    for side in (4, 14):
        encoder = Encoder.from_timm(vit(img_size=8 * side)).double()
        encoder.pos_resize = way
        assert encoder.positions(grid).shape == (1, grid[0] * grid[1], 32)
    assert encoder.positions((14, 14)) is encoder.pos_embed


def test_the_offset_is_a_tenth_of_a_patch():
    """Bicubic weights by hand, at the places that the factor (n + 0.1) / m gives."""
    encoder = Encoder.from_timm(vit()).double()
    encoder.pos_resize = "bicubic-offset"
    a = -0.75  # PyTorch's cubic kernel

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def matrix(n, m=4):
        rows = np.zeros((n, m))
        for i in range(n):
            place = (i + 0.5) * m / (n + 0.1) - 0.5
            for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                rows[i, min(max(j, 0), m - 1)] += kernel(place - j)
        return rows

    native = encoder.pos_embed.detach()[0].unflatten(0, (4, 4)).numpy()
    expected = np.einsum("ia,jb,abd->ijd", matrix(6), matrix(3), native)
    found = encoder.positions((6, 3))[0].unflatten(0, (6, 3)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def model_of(way="bicubic-offset"):
    return Model(name="vit_micro", width=32, depth=3, num_heads=2, patch_size=8, pos_resize=way)


def small(way="bicubic-offset"):
    return Encoder.from_model(model_of(way), image_size=32, cls_after=2).initialise(0).eval()


@pytest.mark.parametrize("way", WAYS)
def test_our_files_say_it(tmp_path, way):
    path, student = tmp_path / "encoder.safetensors", small(way)
    write_encoder(
        path, encoder_metadata(model_of(way), student, step=1), student=student, teacher=None
    )
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["positions"] == way
    loaded = read_encoder(path)
    assert loaded.describe()["positions"] == way
    x = torch.randn(1, 3, 48, 24)
    assert torch.equal(loaded.encoder(x).cls, student(x).cls)
    assert loaded.encoder.random_twin(1).pos_resize == way


def test_files_that_do_not_say_it_keep_the_plain_way(tmp_path):
    path, student = tmp_path / "encoder.safetensors", small("bicubic")
    header = encoder_metadata(model_of("bicubic"), student, step=1)
    section = json.loads(header["model"])
    del header["positions"], section["pos_resize"]
    header["model"] = json.dumps(section)
    write_encoder(path, header, student=student, teacher=None)
    assert load_encoder(path).pos_resize == "bicubic"
    header["positions"] = "nearest"
    write_encoder(path, header, student=student, teacher=None)
    refused(lambda: load_encoder(path), "positions is 'nearest'")


def test_a_checkpoint_of_training_says_it(tmp_path):
    tree = {
        "data": {"image_size": 32},
        "model": json.loads(model_of().model_dump_json(exclude_none=True)),
        "method": {"name": "moco", "hidden_width": 32, "output_width": 16},
        "addon": {"name": "ser", "layer": 2, "fraction": 0.5, "projector_width": 16},
    }
    recipe = from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
    objective = Objective(recipe)
    assert objective.encoder.pos_resize == "bicubic-offset"
    assert objective.teacher.encoder.pos_resize == "bicubic-offset"
    header = encoder_metadata(recipe.model, objective.encoder, step=3)
    torch.save({"encoder": header, "objective": objective.state_dict()}, tmp_path / "step.pt")
    assert load_encoder(tmp_path / "step.pt").pos_resize == "bicubic-offset"


def test_imagenet_trains_as_the_authors_do_and_the_world_with_exact_size():
    for name, way in (("imagenet/moco-ser", "bicubic-offset"), ("shapes/moco-ser", "bicubic")):
        resolved = resolve(name, (), {})
        assert resolved.recipe.model.pos_resize == way


def test_an_exported_file_says_it(tmp_path):
    """To `ser_vit` by an argument, to ser by the header; timm's own ViTs have one way only."""
    for cls_after in (0, 2):
        encoder = Encoder.from_model(model_of(), image_size=32, cls_after=cls_after)
        path = tmp_path / "encoder.safetensors"
        header = encoder_metadata(model_of(), encoder.initialise(0), step=1)
        write_encoder(path, header, student=encoder, teacher=None)
        exported = export(read_encoder(path), tmp_path / f"{cls_after}.safetensors")
        assert load_encoder(exported.path).pos_resize == "bicubic-offset"
        timms = timm_model(model_of(), image_size=32, cls_after=cls_after)
        name, options = timms.name, timms.options
        assert options.get("pos_resize") == ("bicubic-offset" if cls_after else None)
        if cls_after:
            model = timm.create_model(name, checkpoint_path=str(exported.path), **options).eval()
            x = torch.randn(1, 3, 48, 24)
            torch.testing.assert_close(model(x), encoder.eval()(x).cls)
            refused_by_timm = {**options, "pos_resize": "nearest"}
            with pytest.raises(ValueError, match="nearest"):
                timm.create_model(name, **refused_by_timm)


def test_heads_know_an_encoder_by_it():
    """A head that was trained with one way is not applied with another."""
    hashes = {encoder_sha256(small(way)) for way in WAYS}
    assert len(hashes) == len(WAYS)


# -- files that do not say whose they are ---------------------------------------------------------


def test_a_bare_file_is_timms_unless_it_is_told_otherwise(tmp_path):
    path = saved(tmp_path, named(vit()))
    loaded = read_encoder(path, num_heads=4)
    assert loaded.encoder.pos_resize == "bicubic-antialias"
    assert "bicubic-antialias (assumed, see --positions)" in loaded.summary
    told = read_encoder(path, num_heads=4, positions="bicubic-antialias")
    assert "assumed" not in told.summary
    assert load_encoder(path, num_heads=4, positions="bicubic-offset").pos_resize == (
        "bicubic-offset"
    )
    fixed = vit()
    for order in ("moco-v3", "mae"):
        fixed.pos_embed.data = sincos(4, 32, rows_first=order == "moco-v3")
        bare = saved(tmp_path, named(fixed), "bare.pth")
        assert load_encoder(bare, num_heads=4).pos_resize == "bicubic"
        inside = saved(tmp_path, {"state_dict": named(fixed, "student_backbone.vit.")}, "in.pth")
        assert load_encoder(inside, num_heads=4).pos_resize == "bicubic-antialias"
    refused(
        lambda: load_encoder(path, num_heads=4, positions="linear"),
        "--positions linear",
        "bicubic-offset",
    )


def test_what_is_known_of_a_model_is_not_asked_for(tmp_path):
    path, student = tmp_path / "encoder.safetensors", small()
    write_encoder(
        path, encoder_metadata(model_of(), student, step=1), student=student, teacher=None
    )
    refused(lambda: load_encoder(path, positions="bicubic"), "--positions")
    refused(
        lambda: load_encoder("timm:test_vit", random_init=True, positions="bicubic"),
        "--positions",
    )

"""Each form × each kind of encoder: equal outputs by the other library, or refused in words."""

import importlib.util
import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
import yaml

from sercli.encoders.export.asked import SUFFIXES
from sercli.encoders.export.formats import onnx as onnx_form
from sercli.encoders.export.writing import export
from sercli.encoders.loading import encoder_metadata, read_encoder, write_encoder
from sercli.encoders.vit import Encoder
from sercli.recipe.model import Model
from tests.support.command_line import run_in_process
from tests.support.foreign_files import dino, saved, vit
from tests.support.refusals import refused

SMALL = {"name": "vit", "width": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
DINOV3 = {
    "rope": "dinov3",
    "registers": 4,
    "layer_scale": 1e-5,
    "norm_eps": 1e-5,
    "pos_embed": "none",
}
EVA02 = {
    "rope": "eva02",
    "rope_grid": 4,
    "mlp": "swiglu",
    "mlp_norm": True,
    "qkv_bias": "qv",
    "pool": "mean",
    "cls_token": True,
    "final_norm": "pooled",
}
# Settings, the block after which [CLS] joins, timm's name, what torchvision's ViT lacks of it.
KINDS = {
    "plain": ({}, 0, "vit_small_patch16_224", ""),
    "patch 14": ({"patch_size": 14}, 0, "vit_small_patch16_224", ""),
    "bias of q and v": ({"qkv_bias": "qv"}, 0, "vit_small_patch16_224", ""),
    "registers": ({"registers": 4, "layer_scale": 1e-5}, 0, "vit_small_patch16_224", "registers"),
    "delayed": ({"registers": 4, "layer_scale": 1e-5}, 2, "ser_vit", "joins after block 2"),
    "mean": ({"pool": "mean"}, 0, "vit_small_patch16_224", "a pool by mean"),
    "dinov3": (DINOV3, 0, "vit_small_patch16_dinov3", "rotary positions (dinov3)"),
    "dinov3, delayed": (DINOV3, 1, "ser_vit", "rotary positions (dinov3)"),
    "eva02": (EVA02, 0, "eva02_small_patch14_224", "rotary positions (eva02)"),
    "clip": (
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "mlp": "quick-gelu"},
        0,
        "vit_base_patch16_clip_224",
        "a norm before its blocks",
    ),
    "giant": ({"mlp": "swiglu", "layer_scale": 1.0}, 0, "vit_giant_patch14_dinov2", "swiglu"),
    "another ε": ({"norm_eps": 1e-3}, 0, "ser_vit", "norms with"),
}
HAS_ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra `onnx` is not installed")


def made(tmp_path, kind="plain", side=None, **more):
    """A file of ours, as it is read; every weight matters."""
    settings, cls_after, *_ = KINDS[kind]
    model = Model(**{**SMALL, **settings, **more})
    side = side or 4 * model.patch_size
    encoder = Encoder.from_model(model, image_size=side, cls_after=cls_after).initialise(3).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path / "encoder.safetensors"
    header = encoder_metadata(model, encoder, step=7)
    header |= {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"}
    write_encoder(path, header, student=encoder, teacher=None)
    return read_encoder(path)


@torch.no_grad()
def same(encoder, other, side):
    """Equal to the last bits at this size."""
    images = torch.randn(2, 3, side, side)
    ours, theirs = encoder(images, (3,)), other(images, (3,))
    torch.testing.assert_close(theirs.cls, ours.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.grids[3], ours.grids[3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_and_a_folder_are_read_back(tmp_path, kind):
    loaded = made(tmp_path, kind)
    side, name = loaded.image_size, KINDS[kind][2]
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = loaded.encoder(images).cls
    for form, out in (("timm", "out.safetensors"), ("hf", "folder")):
        exported = export(loaded, tmp_path / out, form=form)
        assert exported.difference <= 1e-5
        scope = {}
        exec(exported.code, scope)  # the printed line
        with torch.no_grad():
            output = scope["model"].eval()(images)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
        assert scope["model"].pretrained_cfg["architecture"] == name
        assert ("sercli" in exported.code.partition(";")[0]) == (name == "ser_vit")
        prefix = "timm:local-dir:" if form == "hf" else ""
        back = read_encoder(f"{prefix}{tmp_path / out}")
        same(loaded.encoder, back.encoder, side)
        same(loaded.encoder, back.encoder, 2 * side)  # positions by its own way
        assert back.encoder.cls_after == loaded.encoder.cls_after
        assert (back.image_size, back.mean, back.std) == (side, loaded.mean, loaded.std)


@pytest.mark.parametrize("kind", KINDS)
def test_torchvision_has_it_or_refuses_it_in_words(tmp_path, kind):
    loaded, out = made(tmp_path, kind), tmp_path / "out.pth"
    if lacks := KINDS[kind][3]:
        refused(lambda: export(loaded, out, form="torchvision"), lacks, "--format timm")
        assert not out.exists()
        return
    exported = export(loaded, out, form="torchvision")
    assert 0 < exported.difference <= 1e-5
    scope = {}
    exec(exported.code, scope)
    assert type(scope["model"]) is torchvision.models.VisionTransformer
    images = torch.randn(2, 3, loaded.image_size, loaded.image_size)
    with torch.no_grad():
        output, expected = scope["model"].eval()(images), loaded.encoder(images).cls
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    back = read_encoder(out, num_heads=2)
    same(loaded.encoder, back.encoder, loaded.image_size)


@needs_onnx
@pytest.mark.parametrize("kind", ["delayed", "dinov3", "mean", "eva02"])
def test_a_graph_takes_any_number_of_images(tmp_path, kind, capfd):
    runtime = pytest.importorskip("onnxruntime")
    loaded, out = made(tmp_path, kind), tmp_path / "out.onnx"
    exported = export(loaded, out, form="onnx", header={"method": "moco"})
    assert 0 < exported.difference <= 1e-5
    assert capfd.readouterr() == ("", "")
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (images,), outputs = session.get_inputs(), session.get_outputs()
    side = loaded.image_size
    assert (images.name, images.shape) == ("images", ["batch", 3, side, side])
    first = "pooled" if loaded.encoder.pools_mean else "cls"
    assert [(o.name, o.shape) for o in outputs] == [
        (first, ["batch", 32]),
        ("patches", ["batch", (side // 8) ** 2, 32]),
    ]
    for number in (1, 5):
        given = torch.randn(number, 3, side, side)
        found = session.run(None, {"images": given.numpy()})
        with torch.no_grad():
            expected = loaded.encoder(given, (3,))
        tokens = loaded.encoder.norm(expected.grids[3].flatten(2).transpose(1, 2))
        torch.testing.assert_close(torch.from_numpy(found[0]), expected.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(found[1]), tokens, rtol=0, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert (told["method"], told["mean"]) == ("moco", "[0.1, 0.2, 0.3]")
    assert b"/sercli/" not in out.read_bytes()  # no path of this machine


@needs_onnx
def test_a_graph_is_checked_without_onnxruntime_too(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    exported = export(made(tmp_path), tmp_path / "out.onnx", form="onnx")
    assert exported.reader == "ONNX's reference"
    assert exported.difference <= 1e-5


def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_form.importlib.util, "find_spec", lambda _: None)
    refused(
        lambda: export(made(tmp_path), tmp_path / "out.onnx", form="onnx"),
        "without onnx and onnxscript",
        "pip install 'sercli[onnx]'",
    )
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("way", ["bicubic", "bicubic-offset", "bicubic-aligned"])
@pytest.mark.parametrize("form", ["timm", "hf", "torchvision"])
def test_at_another_size_positions_go_by_the_models_own_way(tmp_path, form, way):
    loaded = made(tmp_path, pos_resize=way)
    out = tmp_path / f"out{SUFFIXES[form]}"
    exported = export(loaded.at(48), out, form=form)
    scope = {}
    exec(exported.code, scope)
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        output, expected = scope["model"].eval()(images), loaded.encoder(images).cls
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    if form != "torchvision":
        told = timm.data.resolve_model_data_config(scope["model"])
        assert tuple(told["input_size"]) == (3, 48, 48)
    assert loaded.encoder.grid == (4, 4)  # what was given stays


# -- the folder -----------------------------------------------------------------------------------


def test_a_folder_is_what_the_hub_has(tmp_path):
    loaded, out = made(tmp_path, "delayed"), tmp_path / "folder"
    header = {"method": "moco", "addon": "ser", "data": "/home/me/ima*ges", "seed": "0"}
    export(loaded, out, form="hf", header=header, results="| kNN |\n| --- |\n| 58.1 |")
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "ser_vit"
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "timm"
    assert "license" not in front  # whoever publishes it has to choose
    for words in (
        "| kNN |",
        "import timm, sercli",
        "32 × 32",
        "0.1, 0.2, 0.3",
        "ima\\*ges",
        "Soft Equivariance Regularization",
        "after block 2",
    ):
        assert words in text, words
    assert "/home/me" not in text


@pytest.mark.run
@pytest.mark.parametrize("kind", ["plain", "delayed", "dinov3"])
def test_a_stranger_opens_the_folder(tmp_path, kind):
    """In a new process: size, mean and std are those of the run."""
    loaded, out = made(tmp_path, kind), tmp_path / "folder"
    export(loaded, out, form="hf")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.save((images, loaded.encoder(images).cls), tmp_path / "pair.pt")
    extra = "import sercli" if KINDS[kind][2] == "ser_vit" else ""
    code = f"""
{extra}
import timm, torch
model = timm.create_model("local-dir:{out}", pretrained=True).eval()
told = timm.data.resolve_model_data_config(model)
assert tuple(told["input_size"]) == (3, 32, 32), told
assert tuple(told["mean"]) == (0.1, 0.2, 0.3) and tuple(told["std"]) == (0.4, 0.5, 0.6), told
assert told["crop_pct"] == 0.875
images, expected = torch.load("pair.pt")
torch.testing.assert_close(model(images).detach(), expected, rtol=0, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_folder_replaces_only_what_an_export_wrote(tmp_path, monkeypatch):
    loaded, out = made(tmp_path), tmp_path / "folder"
    export(loaded, out, form="hf")
    refused(lambda: export(loaded, out, form="hf"), "exists", "--force")
    first = (out / "config.json").read_text()
    export(loaded.at(48), out, form="hf", force=True)
    assert (out / "config.json").read_text() != first
    # One that goes wrong leaves what was there.
    before = (out / "config.json").read_text()
    monkeypatch.setattr(
        "sercli.encoders.export.formats.hf.card",
        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")),
    )
    with pytest.raises(Exception, match="full"):
        export(loaded, out, form="hf", force=True)
    assert (out / "config.json").read_text() == before
    assert {p.name for p in tmp_path.iterdir()} == {"encoder.safetensors", "folder"}
    (out / "thesis.tex").touch()
    refused(lambda: export(loaded, out, form="hf", force=True), "holds thesis.tex", "name another")
    (tmp_path / "file").touch()
    refused(lambda: export(loaded, tmp_path / "file", form="hf", force=True), "exists")


@pytest.mark.parametrize("form", ["timm", "hf", "torchvision"])
def test_ctrl_c_leaves_nothing(tmp_path, form, monkeypatch):
    loaded, out = made(tmp_path), tmp_path / f"new{SUFFIXES[form]}"

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sercli.encoders.export.writing.difference_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(loaded, out, form=form)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_the_command_takes_anothers_file(tmp_path, monkeypatch, capsys):
    theirs = saved(tmp_path, dino(vit(), vit(1)))
    line = ["export", theirs, tmp_path / "folder", "--num-heads", 4, "--format", "hf"]
    status, said = run_in_process(line, monkeypatch, capsys)
    assert status == 0, said
    assert "cite their authors" in (tmp_path / "folder" / "README.md").read_text()
    back = read_encoder(f"timm:local-dir:{tmp_path / 'folder'}")
    same(read_encoder(theirs, num_heads=4).encoder, back.encoder, 32)
    status, said = run_in_process([*line[:2], "x.bin"], monkeypatch, capsys)
    assert (status, said.count("\n")) == (2, 1)
    assert ".onnx (onnx)" in said

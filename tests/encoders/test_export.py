"""Files for timm: loaded afresh by timm they give our outputs, and they are read back."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn

from sercli.encoders.export import writing
from sercli.encoders.export.asked import form_of
from sercli.encoders.export.formats.timm import TimmFile
from sercli.encoders.export.subject import Outputs
from sercli.encoders.export.timm_naming import timm_model
from sercli.encoders.export.writing import export
from sercli.encoders.loading import encoder_metadata, read_encoder, write_encoder
from sercli.encoders.vit import Encoder
from sercli.errors import RunFailed
from sercli.runs.owner import Owner
from tests.support.command_line import run_in_process
from tests.support.encoder_files import MODEL, equal
from tests.support.foreign_files import dino, named, saved, vit
from tests.support.processes import left_zombie
from tests.support.refusals import refused


def encoder_file(tmp_path, cls_after, **options):
    model = MODEL.model_copy(update=options)
    encoder = Encoder.from_model(model, image_size=32, cls_after=cls_after).initialise(3).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder_metadata(model, encoder, step=7), student=encoder, teacher=None)
    return path, encoder


def header_of(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("cls_after", [0, 1, 2])
def test_round_trip_through_timm_and_back(tmp_path, cls_after):
    path, encoder = encoder_file(tmp_path, cls_after)
    out = tmp_path / "out.safetensors"
    exported = export(read_encoder(path), out, header={"method": "moco"})
    assert exported.difference <= 1e-5
    # The printed line.
    scope = {}
    exec(exported.code, scope)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder(images, (1, 3))
        output = scope["model"].eval()(images)
    torch.testing.assert_close(output, features.cls, rtol=0, atol=1e-5)
    # Back again.
    loaded = read_encoder(out)
    assert equal(loaded.encoder, encoder)
    assert (loaded.layout, loaded.key, loaded.num_heads) == ("ser-export", "student", 2)
    assert (loaded.encoder.cls_after, loaded.image_size) == (cls_after, 32)
    header = header_of(out)
    assert header["method"] == "moco"
    assert header["writer"].startswith("ser ")
    assert json.loads(header["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(header["arguments"])["num_classes"] == 0
    assert header["architecture"] == ("ser_vit" if cls_after else "vit_small_patch16_224")


@pytest.mark.parametrize("cls_after", [0, 1])
def test_timm_is_told_of_the_images(tmp_path, cls_after):
    """Without that, timm prepares images of 224 px, and for vit_small by means of 0.5."""
    path, _ = encoder_file(tmp_path, cls_after)
    seen = replace(read_encoder(path), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    out = tmp_path / "out.safetensors"
    scope = {}
    exec(export(seen, out).code, scope)
    told = timm.data.resolve_model_data_config(scope["model"])
    assert tuple(told["input_size"]) == (3, seen.image_size, seen.image_size) == (3, 32, 32)
    assert (tuple(told["mean"]), tuple(told["std"])) == (seen.mean, seen.std)
    assert (told["interpolation"], told["crop_pct"]) == ("bicubic", 0.875)
    transform = timm.data.create_transform(**told, is_training=False)
    assert transform(Image.new("RGB", (80, 60))).shape == (3, 32, 32)
    config = scope["model"].pretrained_cfg
    assert config["num_classes"] == 0
    header = json.loads(header_of(out)["pretrained_cfg"])
    assert header == json.loads(json.dumps({key: config[key] for key in header}))
    # Read back, by ser too.
    again = read_encoder(out)
    assert (again.image_size, again.mean, again.std) == (32, seen.mean, seen.std)


@pytest.mark.run
def test_a_stranger_loads_the_files(tmp_path):
    """In a new process: timm alone for an ordinary ViT, one import more for a delayed one."""
    lines = []
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    expected = []
    for cls_after in (0, 2):
        path, encoder = encoder_file(tmp_path, cls_after)
        with torch.no_grad():
            expected.append(encoder(images).cls)
        out = tmp_path / f"{cls_after}.safetensors"
        lines.append(export(read_encoder(path), out).code)
    code = f"""
import sys, torch
{lines[0]}
assert "sercli" not in sys.modules
images, outputs = torch.load("images.pt"), []
outputs.append(model.eval()(images).detach())
{lines[1]}
outputs.append(model.eval()(images).detach())
torch.save(outputs, "outputs.pt")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), expected, rtol=0, atol=1e-5)


@pytest.mark.run
@pytest.mark.parametrize(
    "imports",
    [
        "import sercli, timm",
        "import timm, sercli",
        "import sercli, timm.models",
        "import sercli.encoders.timm_vit, timm",
        "from sercli import load_encoder; import timm",
        "import sercli, importlib.util; importlib.util.find_spec('timm'); import timm",
    ],
)
def test_importing_sercli_in_any_order_registers_the_delayed_vit(imports):
    code = f"""
import sys
{imports}
assert timm.list_models("ser_vit*") == ["ser_vit"]
model = timm.create_model("ser_vit", cls_after=3, depth=4)
assert (model.cls_after, len(model.blocks)) == (3, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_sercli_imports_neither_torch_nor_timm():
    code = "import sys, sercli; assert not {'torch', 'timm', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_ordinary_vit_of_a_usual_size_needs_only_its_name():
    from sercli.recipe.schema import Model

    for name, patch, timms in (
        ("vit_small", 16, "vit_small_patch16_224"),
        ("vit_tiny", 16, "vit_tiny_patch16_224"),
        ("vit_base", 8, "vit_base_patch8_224"),
    ):
        model = Model(name=name, patch_size=patch)
        with torch.device("meta"):
            encoder = Encoder.from_model(model, image_size=224)
            reference = timm.create_model(timms, num_classes=0)
        found = timm_model(model, image_size=224, cls_after=0)
        assert (found.name, found.options) == (timms, {"num_classes": 0})
        shapes = {key: value.shape for key, value in encoder.state_dict().items()}
        theirs = {key: value.shape for key, value in reference.state_dict().items()}
        position = shapes.pop("pos_embed")
        assert theirs.pop("pos_embed") == (1, position[1] + 1, position[2])
        assert shapes == theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 1.0, "reg_tokens": 2, "no_embed_class": True},
        {"init_values": 1.0, "reg_tokens": 2},
        {"qkv_bias": False, "mlp_ratio": 49 / 32},
    ],
)
def test_foreign_encoders_are_exported_and_read_back(tmp_path, options):
    model = vit(**options)
    path = saved(tmp_path, named(model))
    out = tmp_path / "out.safetensors"
    exported = export(read_encoder(path, num_heads=4), out)
    assert exported.difference <= 1e-5
    images = torch.randn(2, 3, 32, 32)
    back = read_encoder(out)
    with torch.no_grad():
        torch.testing.assert_close(back.encoder(images).cls, model(images), rtol=1e-4, atol=1e-4)
    assert back.key == "encoder"


def test_an_export_that_differs_is_removed(tmp_path, monkeypatch):
    path, _ = encoder_file(tmp_path, 1)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"earlier")
    loaded = read_encoder(path)
    correct = TimmFile.opened

    def wrong(self, draft):
        asked = correct(self, draft)
        return lambda images: Outputs(asked(images).summary + 1e-4, asked(images).patches)

    monkeypatch.setattr(TimmFile, "opened", wrong)
    with pytest.raises(RunFailed, match=r"timm's output of .* differs from ours by 0\.0001"):
        export(loaded, out, force=True)
    assert out.read_bytes() == b"earlier"
    assert {file.name for file in tmp_path.iterdir()} == {"encoder.safetensors", out.name}


def test_an_export_that_was_killed_goes_with_the_next(tmp_path, monkeypatch):
    path, _ = encoder_file(tmp_path, 0)
    # As long as file systems allow, and no text.
    out = tmp_path / os.fsdecode(b"\xff" + b"a" * 242 + b".safetensors")
    loaded = read_encoder(path)
    seen = []
    monkeypatch.setattr(writing, "difference_of", lambda *_: seen.extend(tmp_path.iterdir()) or 0.0)
    export(loaded, out)
    (beside,) = {*seen} - {path}
    machine, pid = Owner.here().machine, left_zombie()
    pid.wait()
    (tmp_path / f".x.{machine}-{pid.pid}-1.abcd1234").mkdir()
    assert f".{machine}-{os.getpid()}-" in beside.name  # its process can be told
    export(loaded, out, force=True)
    assert {*tmp_path.iterdir()} == {path, out}


def test_places_that_are_taken_or_wrong(tmp_path):
    path, _ = encoder_file(tmp_path, 0)
    loaded = read_encoder(path)
    refused(lambda: export(loaded, path), "exists", "--force")
    refused(lambda: form_of(tmp_path / "x.pth", "timm"), ".safetensors")
    refused(lambda: form_of(tmp_path / "x.bin", None), ".onnx (onnx)", "--format hf")
    (tmp_path / "d.safetensors").mkdir()
    refused(lambda: export(loaded, tmp_path / "d.safetensors", force=True), "exists")
    out = tmp_path / "new" / "out.safetensors"
    export(loaded, out)
    export(loaded, out, force=True)
    assert [file.name for file in out.parent.iterdir()] == ["out.safetensors"]


def test_a_damaged_header_is_one_line(tmp_path):
    path, _ = encoder_file(tmp_path, 1)
    out = tmp_path / "out.safetensors"
    export(read_encoder(path), out)
    header = header_of(out)
    # Copies: some releases of safetensors map the file, which is written anew below.
    tensors = {name: t.clone() for name, t in safetensors.torch.load_file(out).items()}
    for change in ({"num_heads": "many"}, {"mean": "[1]"}, {"cls_after": "7"}, {"num_heads": "5"}):
        safetensors.torch.save_file(tensors, out, metadata={**header, **change})
        refused(lambda: read_encoder(out))
    safetensors.torch.save_file(tensors, out, metadata=header)
    for hint in ({"num_heads": 4}, {"cls_after": 2}):
        refused(lambda hint=hint: read_encoder(out, **hint), "that is known of it")


# -- the timm model -------------------------------------------------------------------------------


@pytest.fixture
def delayed():
    model = timm.create_model(
        "ser_vit", cls_after=2, embed_dim=32, depth=3, num_heads=2, patch_size=8, img_size=32
    ).eval()
    nn.init.normal_(model.pos_embed)
    return model


@torch.no_grad()
def test_ser_vit_is_a_timm_model(delayed):
    images = torch.randn(2, 3, 32, 32)
    assert delayed(images).shape == (2, 32)
    assert delayed.forward_features(images).shape == (2, 17, 32)
    tokens, grids = delayed.forward_intermediates(images, indices=[0, 2])
    assert [tuple(grid.shape) for grid in grids] == [(2, 32, 4, 4)] * 2
    torch.testing.assert_close(tokens[:, 0], delayed(images))
    early = delayed.forward_intermediates(
        images, indices=[0], intermediates_only=True, stop_early=True
    )
    torch.testing.assert_close(early[0], grids[0])
    normed = delayed.forward_intermediates(images, 1, norm=True, output_fmt="NLC")[1][0]
    torch.testing.assert_close(normed, tokens[:, 1:])
    assert delayed(torch.randn(1, 3, 48, 64)).shape == (1, 32)
    delayed.reset_classifier(5)
    assert delayed(images).shape == (2, 5)


def test_ser_vit_trains_and_delays(delayed):
    images = torch.randn(2, 3, 32, 32)
    delayed.train()(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in delayed.parameters())
    delayed.zero_grad()
    _, grids = delayed.forward_intermediates(images, indices=[1])
    grids[0].sum().backward()
    assert delayed.cls_token.grad is None  # not there yet


def test_ser_vit_refuses_what_it_is_not():
    for options in ({"cls_after": 12}, {"global_pool": "max"}, {"in_chans": 1}, {"colour": "red"}):
        with pytest.raises(ValueError, match="ser_vit with"):
            timm.create_model("ser_vit", **options)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_on_a_run_and_on_anothers_file(run, tmp_path, monkeypatch, capsys):
    path, encoder = encoder_file(tmp_path, 2)
    run.encoder.write_bytes(path.read_bytes())
    run.recipe.write_text(
        "method: {name: moco}\naddon: {name: ser, layer: 2}\ntrain: {epochs: 3}\n"
    )
    run.update_run(recipe_name="shapes/moco-ser")
    out = tmp_path / "out.safetensors"
    status, said = run_in_process(["export", run.path, out], monkeypatch, capsys)
    assert (status, said.count("\n")) == (0, 1)
    assert "delayed [CLS]: it is ser_vit, which `import sercli` adds" in said
    header = header_of(out)
    assert (header["method"], header["addon"], header["addon_layer"]) == ("moco", "ser", "2")
    assert (header["recipe"], header["epochs"]) == ("shapes/moco-ser", "3")
    assert equal(read_encoder(out).encoder, encoder)
    status, error = run_in_process(["export", run.path, out], monkeypatch, capsys)
    assert status == 2
    assert "--force" in error
    theirs = saved(tmp_path, dino(vit(), vit(1)))
    line = ["export", theirs, tmp_path / "teacher.safetensors", "--teacher"]
    assert run_in_process(line, monkeypatch, capsys)[0] == 2
    status, error = run_in_process([*line, "--num-heads", 4], monkeypatch, capsys)
    assert status == 0
    assert "teacher.backbone" in error
    assert header_of(tmp_path / "teacher.safetensors")["weights"] == "teacher"
    assert read_encoder(tmp_path / "teacher.safetensors").key == "teacher"
    assert read_encoder(tmp_path / "teacher.safetensors", teacher=True).key == "teacher"
    refused(lambda: read_encoder(out, teacher=True), "no teacher")

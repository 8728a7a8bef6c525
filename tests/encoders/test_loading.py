"""Encoders in and out of files, and every wrong file as one line."""

import json
import pickle
import socket
import time

import pytest
import safetensors.torch
import timm
import torch

import sercli
from sercli.encoders.files import load_torch_file
from sercli.encoders.loading import encoder_metadata, load_encoder, read_encoder, write_encoder
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.runs.files import file_sha256
from tests.support.encoder_files import MODEL, checkpoint, equal, small
from tests.support.refusals import refused

# -- round trips ----------------------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(written):
    path, student, teacher = written
    loaded = read_encoder(path)
    assert equal(loaded.encoder, student)
    assert equal(read_encoder(path, teacher=True).encoder, teacher)
    images = torch.randn(2, 3, 32, 48)
    ours, gold = loaded.encoder(images, (0, 3)), student(images, (0, 3))
    assert torch.equal(ours.cls, gold.cls)
    assert torch.equal(ours.grids[3], gold.grids[3])
    assert (loaded.encoder.cls_after, loaded.image_size) == (2, 32)
    assert (loaded.matched, loaded.expected) == (len(student.state_dict()),) * 2
    assert (loaded.key, loaded.source) == ("student", str(path))
    assert read_encoder(path, teacher=True).describe()["key"] == "teacher"
    assert not loaded.encoder.training
    assert not any(p.requires_grad for p in loaded.encoder.parameters())


def test_the_documented_entry_point(written):
    path, student, _ = written
    encoder = sercli.load_encoder(str(path))
    features = encoder(torch.randn(1, 3, 32, 32), layers=(0, 3))
    assert features.cls.shape == (1, 32)
    assert features.grids[0].shape == features.grids[3].shape == (1, 32, 4, 4)
    assert equal(encoder, student)


def test_plain_tools_read_our_files(written):
    path, student, _ = written
    tensors = safetensors.torch.load_file(path)
    plain = {key: value for key, value in tensors.items() if not key.startswith("teacher.")}
    assert plain.keys() == student.state_dict().keys()
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "ser-encoder"
    assert header["step"] == "7"
    assert json.loads(header["mean"]) == [0.485, 0.456, 0.406]


def test_without_a_teacher_there_is_none_to_load(tmp_path):
    student = small(0)
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder_metadata(MODEL, student, step=0), student=student, teacher=None)
    assert equal(load_encoder(path), student)
    refused(lambda: load_encoder(path, teacher=True), "no teacher")


@pytest.fixture
def objective():
    tree = {
        "data": {"image_size": 32},
        "model": {"name": "vit_micro", "width": 32, "depth": 3, "num_heads": 2, "patch_size": 8},
        "method": {"name": "moco", "hidden_width": 32, "output_width": 16},
        "addon": {"name": "ser", "layer": 2, "fraction": 0.5, "projector_width": 16},
    }
    recipe = from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
    objective = Objective(recipe)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.add_(1)
    return objective


def test_a_training_checkpoint_gives_student_and_teacher(tmp_path, objective):
    path = tmp_path / "step.pt"
    checkpoint(objective, path, MODEL)
    assert equal(load_encoder(path), objective.encoder)
    assert equal(load_encoder(path, teacher=True), objective.teacher.encoder)


def test_a_run_directory(run, objective, capsys):
    refused(lambda: load_encoder(run.path), "no weights", "running", "--resume")
    checkpoint(objective, run.checkpoint(3), MODEL)
    refused(lambda: load_encoder(run.path), "no weights")  # a checkpoint without its hash
    run.checkpoint_hash(3).write_text(f"{file_sha256(run.checkpoint(3))}  step-00000003.pt\n")
    assert equal(load_encoder(run.path), objective.encoder)
    assert "encoder.safetensors is missing: the student of" in capsys.readouterr().err
    other = small(9)
    write_encoder(run.encoder, encoder_metadata(MODEL, other, step=4), student=other, teacher=None)
    assert equal(load_encoder(run.path), other)
    assert capsys.readouterr().err == ""
    # The teacher is not in encoder.safetensors, but the checkpoint has it.
    assert equal(load_encoder(run.path, teacher=True), objective.teacher.encoder)


# -- wrong files ----------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    refused(lambda: load_encoder(tmp_path / "nothing.pth"), "nothing.pth")
    refused(lambda: load_encoder(tmp_path), "run.json")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pt", "x"])
@pytest.mark.parametrize("content", [b"", b"just some text\n" * 50, b"\x00\xff" * 400])
def test_files_that_are_something_else(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(lambda: load_encoder(path), str(path))


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.99])
def test_truncated_files(tmp_path, written, objective, keep):
    path = written[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(lambda: load_encoder(path), str(path))
    path = tmp_path / "step.pt"
    checkpoint(objective, path, MODEL)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(lambda: load_encoder(path), str(path))


def test_a_foreign_state_dict(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}, "epoch": 3}, path)
    refused(lambda: load_encoder(path), "no ViT that ser knows", "conv1.weight")
    torch.save([1, 2], path)
    refused(lambda: load_encoder(path), "list")
    safetensors.torch.save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    refused(lambda: load_encoder(tmp_path / "x.safetensors"), "no ViT that ser knows")


class Evil:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"objective": Evil(), "encoder": {}}, path)
    refused(lambda: load_torch_file(path), "evil.pth")
    path.write_bytes(pickle.dumps({"objective": Evil()}, protocol=2))
    refused(lambda: load_encoder(path), "evil.pth")


def rewrite(path, change):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = safetensors.torch.load_file(path)
    del (
        metadata["tensors_sha256"],
        metadata["header_sha256"],
    )  # else any change is one of a damaged file
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t.pop("blocks.1.norm1.weight"), ["blocks.1.norm1.weight", "of"]),
        (lambda t, _: t.update({"norm.weight": torch.zeros(31)}), ["norm.weight"]),
        (lambda t, _: t.update({"head.weight": torch.zeros(3)}), ["head.weight"]),
        (lambda _, m: m.update(format="other"), ["written by ser"]),
        (lambda _, m: m.pop("model"), ["written by ser"]),
        (lambda _, m: m.update(image_size="large"), ["written by ser"]),
        (lambda _, m: m.update(cls_after="9"), ["cls_after 9"]),
        (lambda _, m: m.update(image_size="64"), ["pos_embed"]),
    ],
)
def test_tensors_or_headers_that_do_not_fit(written, change, words):
    path = written[0]
    rewrite(path, change)
    refused(lambda: load_encoder(path), *words)


@pytest.mark.parametrize("model", ['{"name": "vit_micro", "new_option": 3}', "no json"])
def test_a_header_with_another_model_section_is_one_line(written, model):
    path = written[0]
    rewrite(path, lambda _, metadata: metadata.update(model=model))
    refused(lambda: load_encoder(path), str(path))


@pytest.mark.parametrize(
    "state",
    [
        {"objective": 3, "encoder": "metadata"},
        {"objective": {"student.encoder.norm.weight": 3}, "encoder": "metadata"},
        {"objective": {}, "encoder": {"format": "ser-encoder", "model": "{}", "image_size": None}},
    ],
)
def test_a_file_that_looks_a_little_like_ours_is_one_line(tmp_path, state):
    path = tmp_path / "x.pt"
    if state["encoder"] == "metadata":
        state = {**state, "encoder": encoder_metadata(MODEL, small(0), step=0)}
    torch.save(state, path)
    refused(lambda: load_encoder(path), str(path))


def test_a_stray_file_among_the_checkpoints(run, objective):
    checkpoint(objective, run.checkpoint(3), MODEL)
    (run.checkpoints / "step-best.pt").write_bytes(b"")
    assert run.checkpoint_steps() == [3]


# -- timm -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_timm_model_with_random_weights_gives_timms_output(monkeypatch):
    made = []
    create = timm.create_model

    def spy(*arguments, **options):
        made.append(create(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", spy)
    loaded = read_encoder("timm:test_vit", random_init=True)
    images = torch.randn(2, 3, loaded.image_size, loaded.image_size)
    torch.testing.assert_close(
        loaded.encoder(images).cls, made[0].eval()(images), rtol=1e-4, atol=1e-5
    )
    assert (loaded.key, loaded.source) == ("random", "timm:test_vit")
    assert loaded.matched == loaded.expected
    assert loaded.mean == tuple(made[0].pretrained_cfg["mean"])
    again = read_encoder("timm:test_vit", random_init=True)
    assert equal(loaded.encoder, again.encoder)


def test_timm_names_that_cannot_be_read():
    refused(lambda: load_encoder("timm:no_such_model", random_init=True), "no_such_model")
    refused(lambda: load_encoder("timm:", random_init=True), "timm:")
    refused(lambda: load_encoder("timm:resnet10t", random_init=True), "ResNet")
    refused(lambda: load_encoder("timm:test_vit", teacher=True, random_init=True), "teacher")


def test_random_init_goes_with_timm_only(written, tmp_path):
    refused(lambda: load_encoder(written[0], random_init=True), "--random-init")
    refused(lambda: load_encoder(tmp_path, random_init=True), "--random-init")


@pytest.fixture
def network(monkeypatch, tmp_path):
    """Hosts that were asked for; every look-up fails, no retry waits."""
    asked = []

    def look_up(host, *_arguments, **_options):
        asked.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return asked


def test_weights_are_never_downloaded(network):
    refused(lambda: load_encoder("timm:test_vit.r160_in1k"), "--random-init")
    assert network == []


def test_an_unknown_tag_is_not_called_missing_weights():
    message = refused(lambda: load_encoder("timm:test_vit.no_such_tag", random_init=True))
    assert "use --random-init" not in message

"""Tensors in files: bytes that follow from the content, and what is damaged or not finite."""

import os
import struct
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch

from sercli.encoders.files import read_safetensors, require_finite, safetensors_bytes
from sercli.encoders.loading import encoder_metadata, load_encoder, read_encoder, write_encoder
from sercli.evals.linear.heads import HeadFacts, ProbeHead, load_head
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.runs.files import file_sha256, hash_of, verifies
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process
from tests.support.encoder_files import MODEL, checkpoint, small
from tests.support.foreign_files import dino, named, saved, vit
from tests.support.refusals import refused

METADATA = {name: f"value of {name} “é”" for name in "abcdefgh"}


def tensors():
    return {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.arange(3).half(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(1.5, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
    }


def encoder_file(path, seed=0):
    student = small(seed)
    write_encoder(path, encoder_metadata(MODEL, student, step=7), student=student, teacher=None)
    return path


# -- bytes ----------------------------------------------------------------------------------------


def test_a_file_is_a_function_of_its_content(tmp_path):
    made = {safetensors_bytes(tensors(), METADATA) for _ in range(20)}
    turned = dict(reversed(list(tensors().items())))
    made.add(safetensors_bytes(turned, dict(reversed(list(METADATA.items())))))
    assert len(made) == 1
    assert safetensors_bytes({**tensors(), "b": torch.ones(2, 3)}, METADATA) not in made
    data = made.pop()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    header, found = read_safetensors(path)
    assert header == METADATA
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[key], value) for key, value in tensors().items())
    assert all(found[key].dtype == value.dtype for key, value in tensors().items())
    loaded = safetensors.torch.load_file(path)  # other tools read it
    assert torch.equal(loaded["b"], tensors()["b"])


@pytest.mark.run
def test_other_processes_write_the_same_bytes(tmp_path):
    code = (
        "import sys, torch; from sercli.encoders.files import safetensors_bytes; "
        "metadata = {name: name for name in sys.argv[2]}; "
        "data = safetensors_bytes({'b': torch.ones(2), 'a': torch.zeros(3)}, metadata); "
        "open(sys.argv[1], 'wb').write(data)"
    )
    command = [sys.executable, "-c", code, tmp_path / "theirs", "abcdefgh"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run(command, env=environment, check=True, timeout=120)
    own = safetensors_bytes(
        {"a": torch.zeros(3), "b": torch.ones(2)}, {name: name for name in "hgfedcba"}
    )
    assert (tmp_path / "theirs").read_bytes() == own


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_flipped_bit_is_told(tmp_path, place):
    path = encoder_file(tmp_path / "encoder.safetensors")
    data = bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    data[place if place < 0 else begin + place] ^= 1
    path.write_bytes(data)
    refused(lambda: load_encoder(path), str(path), "damaged", "SHA-256")


def test_files_without_a_hash_are_read(tmp_path):
    path = encoder_file(tmp_path / "encoder.safetensors")
    header, found = read_safetensors(path)
    safetensors.torch.save_file(found, path, header)
    assert load_encoder(path).depth == 3


@pytest.fixture
def objective():
    tree = {
        "data": {"image_size": 32},
        "model": {"name": "vit_micro", "width": 32, "depth": 3, "num_heads": 2, "patch_size": 8},
        "method": {"name": "moco", "hidden_width": 32, "output_width": 16},
        "addon": {"name": "none"},
    }
    return Objective(from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe)


def test_a_damaged_checkpoint_named_itself(tmp_path, objective):
    path = tmp_path / "step-00000003.pt"
    checkpoint(objective, path, MODEL)
    assert not verifies(path)
    assert load_encoder(path).depth == 3  # nothing beside it says what was written
    hash_of(path).write_text(f"{file_sha256(path)}  {path.name}\n")
    assert verifies(path)
    assert load_encoder(path).depth == 3
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    refused(lambda: load_encoder(path), "damaged", "step-00000003.pt.sha256")
    hash_of(path).write_bytes(b"\xff\xfe")
    assert not verifies(path)


# -- finite ---------------------------------------------------------------------------------------


def spoil(state, key, *, value=float("nan"), count=2):
    state = {name: tensor.clone() for name, tensor in state.items()}
    state[key].view(-1)[:count] = value
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value):
    state = spoil(
        {"a": torch.ones(2, 3), "b": torch.ones(4), "n": torch.tensor(3)}, "b", value=value
    )
    message = refused(lambda: require_finite(state, "x.pth"), "x.pth: 2 of 4 numbers of b")
    assert "1 of 3 tensors" in message
    assert "earlier checkpoint" in message
    require_finite({"a": torch.ones(2), "n": torch.tensor(3)}, "x.pth")


def test_wherever_weights_are_read(tmp_path, objective, monkeypatch):
    """Ours and others', a run, timm's; what is not taken of a file may be as it is."""
    student = small(0)
    with torch.no_grad():
        student.blocks[1].norm1.bias[:2] = torch.nan
    key = "blocks.1.norm1.bias"
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder_metadata(MODEL, student, step=7), student=small(1), teacher=student)
    assert load_encoder(path).depth == 3
    refused(lambda: load_encoder(path, teacher=True), f"2 of 32 numbers of {key}")

    run = RunDir.create(tmp_path / "run", recipe=None, run={"status": "done"})
    write_encoder(run.encoder, encoder_metadata(MODEL, student, step=7), student=student,
                  teacher=None)  # fmt: skip
    refused(lambda: load_encoder(run.path), str(run.path), key)

    with torch.no_grad():
        objective.teacher.encoder.norm.weight[0] = torch.inf
    checkpoint(objective, tmp_path / "step.pt", MODEL)
    assert load_encoder(tmp_path / "step.pt").depth == 3
    refused(lambda: load_encoder(tmp_path / "step.pt", teacher=True), "1 of 32", "norm.weight")

    state = dino(vit(0), vit(1))
    state["teacher"] = spoil(state["teacher"], f"backbone.{key}")
    theirs = saved(tmp_path, state)
    assert load_encoder(theirs, num_heads=4).depth == 3
    refused(lambda: load_encoder(theirs, num_heads=4, teacher=True), f"2 of 32 numbers of {key}")
    beyond = {k: v.double() for k, v in named(vit()).items()}  # finite in 64 bits, not in our 32
    theirs = saved(tmp_path, spoil(beyond, key, value=1e300))
    refused(lambda: load_encoder(theirs, num_heads=4), key)

    import timm

    create = timm.create_model

    def spoilt(*arguments, **options):
        model = create(*arguments, **options)
        with torch.no_grad():
            model.norm.bias[0] = torch.nan
        return model

    monkeypatch.setattr(timm, "create_model", spoilt)
    refused(lambda: load_encoder("timm:test_vit", random_init=True), "timm:test_vit", "norm.bias")


def probe_head(weight):
    facts = HeadFacts(
        classes=("a", "b"),
        feature_set="cls1",
        parts=("cls",),
        learning_rate=0.1,
        epoch=1,
        encoder_sha256="0" * 64,
        image_size=32,
        resize=36,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        protocol_id="x",
    )
    return ProbeHead(facts, weight, torch.zeros(2), small(0).norm)


def test_a_probe_head(tmp_path):
    path = tmp_path / "head.safetensors"
    weight = torch.ones(2, 32)
    probe_head(weight).save(path)
    assert torch.equal(load_head(path).weight, weight)
    first = path.read_bytes()
    probe_head(weight).save(path)
    assert path.read_bytes() == first
    weight[1, 3] = torch.nan
    probe_head(weight).save(path)
    refused(lambda: load_head(path), str(path), "1 of 64 numbers of weight")


@pytest.mark.parametrize(
    "command",
    ["knn", "equiv-score", "linear-eval", "robustness", "coco-detect", "export"],
)
def test_in_every_command(tmp_path, monkeypatch, capsys, command):
    student = small(0)
    with torch.no_grad():
        student.norm.weight[0] = torch.nan
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder_metadata(MODEL, student, step=7), student=student, teacher=None)
    out, head = ["--out", tmp_path / "run"], tmp_path / "head.safetensors"
    probe_head(torch.ones(2, 32)).save(head)
    line = {
        "knn": ["--data", "shapes", *out],
        "equiv-score": ["--data", "shapes", *out],
        "linear-eval": ["--data", "shapes", *out],
        "robustness": ["--imagenet-c-otf", "--data", "shapes", "--head", head, *out],
        "coco-detect": ["--coco", "shapes", *out],
        "export": [tmp_path / "x.safetensors"],
    }[command]
    status, error = run_in_process([command, path, *line], monkeypatch, capsys)
    assert status == 2, error
    assert "1 of 32 numbers of norm.weight are not finite" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_layouts_of_others_are_still_read(tmp_path):
    path = saved(tmp_path, named(vit()), "x.safetensors")
    assert read_encoder(path, num_heads=4).layout == "timm"

"""`ser features`: files as NumPy and pandas read them, against what `load_encoder` gives."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import sercli
from sercli.cli import app
from sercli.data import ShapesSource
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, EvaluationImages, normalise
from sercli.encoders.loading import (
    LoadedEncoder,
    encoder_metadata,
    encoder_sha256,
    read_encoder,
    write_encoder,
)
from sercli.encoders.vit import Encoder, final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, UserError
from sercli.evals.features import FeatureFile, _write_npz
from sercli.evals.linear.features import plan_parts
from sercli.recipe.schema import Model
from sercli.runs.result import protocol_id
from sercli.runs.run_dir import RunDir
from tests.support.processes import run_ranks
from tests.support.refusals import refused

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=3, num_heads=2)
RECIPE = "data: {path: shapes, image_size: 32, num_train: 30, num_val: 20}"
CPU = Runtime(torch.device("cpu"), None)


@pytest.fixture
def run(tmp_path):
    encoder = Encoder.from_model(MODEL, image_size=32, cls_after=1).initialise(1)
    run = RunDir.create(tmp_path / "run", recipe=RECIPE, run={"status": "done"})
    write_encoder(
        run.encoder, encoder_metadata(MODEL, encoder, step=1), student=encoder, teacher=None
    )
    return run


def ser(*arguments):
    result = CliRunner().invoke(app, ["features", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def read(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("facts")))


def expected(run, split, count):
    """[CLS], and the mean patch token of block 2 after the final norm, one image at a time."""
    encoder = sercli.load_encoder(run.path)
    source = ShapesSource(split, image_size=32, num_images=count)
    found = []
    for index in range(count):
        image = EvaluationImages(source, 32)[index][None].float() / 255
        with torch.no_grad():
            out = encoder(normalise(image, IMAGENET_MEAN, IMAGENET_STD), layers=(2,))
            patches = final_norm(encoder)(out.grids[2].flatten(2).transpose(1, 2)).mean(1)
        found.append(torch.cat([out.cls, patches], 1)[0].numpy())
    return source, np.stack(found)


def test_an_npz_has_the_encoders_features_and_what_they_are_of(run, tmp_path):
    out = tmp_path / "new" / "train.npz"
    options = ("--split", "train", "--parts", "cls+pooled@2", "--batch-size", 7, "--workers", 0)
    ser(run.path, "--out", out, *options)
    arrays, facts = read(out)
    source, values = expected(run, "train", 30)
    assert arrays["features"].dtype == np.float32
    assert arrays["features"] == pytest.approx(values, abs=1e-6)
    assert (arrays["labels"] == source.labels).all()
    assert arrays["classes"].tolist() == list(source.classes)
    assert arrays["identifiers"].tolist() == [source.identifier(i) for i in range(30)]
    assert facts["parts"] == ["cls", "pooled@2"]
    assert facts["model"]["precision"] == "fp32"
    assert facts["model"]["sha256"] == encoder_sha256(read_encoder(run.path).encoder)
    assert facts["protocol_id"] == protocol_id(facts["protocol"])
    assert facts["data"] == {"path": "shapes", "split": "train", "n": 30, "partial": False}
    assert (facts["image_size"], facts["resize"]) == (32, 37)
    assert facts["mean"] == list(IMAGENET_MEAN)


def test_by_itself_val_goes_into_the_run_directory(run):
    said = ser(run.path, "--workers", 0)
    path = run.path / "features" / "val.npz"
    assert f"wrote {path}" in said
    arrays, facts = read(path)
    assert arrays["features"] == pytest.approx(expected(run, "val", 20)[1][:, :16], abs=1e-6)
    assert facts["parts"] == ["cls"]
    refused(lambda: ser(run.path, "--workers", 0), "exists", "--force")
    ser(run.path, "--workers", 0, "--force", "--precision", "bf16", "--limit", 5)
    some, facts = read(path)
    assert (facts["model"]["precision"], facts["data"]["partial"]) == ("bf16", True)
    places = [arrays["identifiers"].tolist().index(name) for name in some["identifiers"].tolist()]
    assert places == sorted(places)
    assert len(places) == 5
    whole = arrays["features"][places]
    assert 1e-5 < np.abs(some["features"] - whole).max() / np.abs(whole).max() < 0.05


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cls1", ("cls",)),
        ("cls4", ("cls@2", "cls")),
        ("cls1+pooled", ("cls", "pooled@3")),
        ("pooled@0", ("pooled@0",)),
        ("cls@3+cls@2", ("cls@3", "cls@2")),
    ],
)
def test_parts_are_the_probes_sets_or_named(text, parts):
    encoder = Encoder.from_model(MODEL, image_size=32, cls_after=1)
    assert plan_parts(encoder, text).parts == parts


@pytest.mark.parametrize(
    "text", ["", "pooled", "pooled@4", "cls@1", "cls@x", "grid@1", "cls+", "cls+cls", "cls1+cls4"]
)
def test_parts_that_are_not_there_are_refused(text):
    with pytest.raises(UserError, match="--parts"):
        plan_parts(Encoder.from_model(MODEL, image_size=32, cls_after=1), text)


def test_what_cannot_be_is_refused_before_any_work(run, tmp_path, monkeypatch):
    refused(lambda: ser(run.path, "--out", tmp_path / "x.csv"), ".npz or .parquet")
    (tmp_path / "there.npz").write_bytes(b"kept")
    refused(lambda: ser(run.path, "--out", tmp_path / "there.npz"), "exists", "--force")
    assert (tmp_path / "there.npz").read_bytes() == b"kept"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    install = "pip install 'sercli[parquet]'"
    refused(lambda: ser(run.path, "--out", tmp_path / "x.parquet"), "pyarrow", install)


def small(count=12):
    encoder = Encoder.from_model(MODEL, image_size=32).initialise(1).eval()
    loaded = LoadedEncoder(encoder, "somewhere", "student", 9, 9, 32)
    source = ShapesSource("train", image_size=32, num_images=count)
    return FeatureFile.of(loaded, source, plan_parts(encoder, "cls"), limit=None)


def test_a_failure_leaves_the_earlier_file(tmp_path):
    made, path = small(), tmp_path / "x.npz"
    path.write_bytes(b"kept")
    with torch.no_grad():
        made.loaded.encoder.cls_token.fill_(torch.nan)
    with pytest.raises(RunFailed, match="not finite"):
        made.write(path, runtime=CPU, workers=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]
    assert path.read_bytes() == b"kept"


def test_a_disk_without_room_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 12 * 64 - 1}))
    with pytest.raises(RunFailed, match="GiB are free"):
        small().require_room(tmp_path / "not yet" / "x.npz")


def test_memory_is_a_piece(tmp_path):
    """64 MiB of features in pieces of 1 MiB."""
    count, piece = 1 << 20, 1 << 14  # of 16 numbers
    file = dataclasses.replace(small(), indices=np.zeros(count, np.int8))
    rows = (np.full((piece, 16), number, np.float32) for number in range(count // piece))
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sercli.evals.features._beside", lambda _file, _facts: {})
        _write_npz(tmp_path / "x.npz", rows, file, "{}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["features"].shape == (count, 16)
        assert (arrays["features"][::999, 3] == np.arange(0, count, 999) // piece).all()


def in_process(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    small(13).write(Path(folder, "two.npz"), runtime=CPU, batch_size=3, workers=0)
    dist.destroy_process_group()


@pytest.mark.run
def test_two_processes_write_what_one_does(tmp_path):
    run_ranks(in_process, str(tmp_path))
    small(13).write(tmp_path / "one.npz", runtime=CPU, batch_size=5, workers=0)
    one, two = (read(tmp_path / f"{name}.npz")[0] for name in ("one", "two"))
    assert one["features"] == pytest.approx(two["features"], abs=1e-6)
    assert one["identifiers"].tolist() == two["identifiers"].tolist()


@pytest.mark.clients
def test_a_parquet_is_read_by_pandas(run, tmp_path):
    import pandas as pd
    import pyarrow.parquet as pq

    ser(run.path, "--out", tmp_path / "x.parquet", "--workers", 0, "--batch-size", 7)
    ser(run.path, "--out", tmp_path / "x.npz", "--workers", 0)
    arrays, facts = read(tmp_path / "x.npz")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert np.stack(frame.features) == pytest.approx(arrays["features"], abs=1e-6)
    assert frame.labels.tolist() == arrays["labels"].tolist()
    assert frame.identifiers.tolist() == arrays["identifiers"].tolist()
    assert frame.classes.tolist() == arrays["classes"][arrays["labels"]].tolist()
    stored = json.loads(pq.read_schema(tmp_path / "x.parquet").metadata[b"ser"])
    assert {**stored, "created": ""} == {**facts, "created": ""}

"""One flipped bit in a file that carries a hash is refused, or changes no number."""

from __future__ import annotations

import json
import os
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch

from sercli import compare_runs
from sercli.encoders.files import load_torch_file, signed
from sercli.encoders.loading import (
    encoder_metadata,
    encoder_sha256,
    read_encoder,
    write_encoder,
)
from sercli.encoders.vit import final_norm
from sercli.errors import SerError
from sercli.evals.linear.heads import load_head
from sercli.evals.linear.kept import cached
from sercli.runs.arrays import read_arrays
from sercli.runs.files import file_sha256, verifies, write_json, write_text
from sercli.runs.result import Result
from tests.fuzz import head_header, npz, result_json, run_json
from tests.support.encoder_files import MODEL, small
from tests.support.mutations import flipped
from tests.support.refusals import refused

SHAPE = (6, 2, 4)


def encoder_numbers(path):
    loaded = read_encoder(path)
    facts = (loaded.image_size, loaded.mean, loaded.std, loaded.key)
    return encoder_sha256(loaded.encoder), facts


def encoder_file(path):
    student = small(0)
    write_encoder(path, encoder_metadata(MODEL, student, step=7), student=student, teacher=small(1))
    return path, encoder_numbers


def checkpoint_file(path):
    """A copy without the .sha256 that stood beside it."""
    student = small(0)
    tensors = {f"student.encoder.{key}": value for key, value in student.state_dict().items()}
    metadata = encoder_metadata(MODEL, student, step=7)
    path = path.with_suffix(".pt")
    torch.save({"step": 7, "encoder": metadata, "objective": tensors, "optimiser": {}}, path)
    return path, encoder_numbers


def head_file(path):
    path.write_bytes(head_header.corpus()[2])

    def numbers(path):
        head = load_head(path)
        with torch.no_grad():
            logits = head(small(0)(torch.ones(1, 3, 32, 32), layers=head.layers))
        return logits.tolist(), head.facts, final_norm(small(0)).eps

    return path, numbers


def features_file(path):
    tensors = {"features": torch.arange(48.0).view(SHAPE)}
    path.write_bytes(safetensors.torch.save(tensors, metadata=signed(tensors, {"key": "key"})))

    def numbers(path):
        made = tensors["features"].clone  # what is damaged is made again
        return cached(path, "key", made, shape=SHAPE).tolist()

    return path, numbers


def predictions_file(path):
    path = path.with_suffix(".npz")
    path.write_bytes(npz.corpus()[4])
    sha256 = file_sha256(path)

    def numbers(path):
        arrays = read_arrays(path, npz.NAMES, sha256=sha256)
        return None if arrays is None else [array.tolist() for array in arrays.values()]

    return path, numbers


def result_file(path):
    stored = json.loads(result_json.corpus()[0])
    keys = ("protocol", "model", "data", "metrics", "created")
    result = Result(**{key: stored[key] for key in keys})
    path = path.with_suffix(".json")
    write_json(path, result.to_json())
    return path, Result.from_file


FILES = (encoder_file, checkpoint_file, head_file, features_file, predictions_file, result_file)


@pytest.mark.parametrize("make", FILES)
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, make):
    path, numbers = make(tmp_path / "file.safetensors")
    whole, random = path.read_bytes(), Random(12)
    right = numbers(path)
    refusals = 0
    for _ in range(60):
        path.write_bytes(flipped(whole, random))
        try:
            assert numbers(path) == right
        except SerError as error:
            refusals += str(error).count("\n") == 0
    assert refusals or make is features_file  # which is made again
    path.write_bytes(whole)
    assert numbers(path) == right


@pytest.mark.parametrize("key", ["mean", "std", "cls_after", "model", "positions", "image_size"])
def test_an_encoders_header_is_held_to_what_was_written(tmp_path, key):
    path, _ = encoder_file(tmp_path / "encoder.safetensors")
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    value = header["__metadata__"][key]
    old = json.dumps({key: value})[1:-1].replace(": ", ":").encode()
    digit = next(i for i in range(len(old) - 2, 0, -1) if chr(old[i]).isalnum())
    new = old[:digit] + (b"1" if old[digit : digit + 1] != b"1" else b"2") + old[digit + 1 :]
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    refused(lambda: read_encoder(path), "damaged", "header_sha256")


def test_a_checkpoint_without_any_checksum_was_written_so(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(300)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_torch_file(tmp_path / "x.pt")["a"].sum() == 300


def test_predictions_of_another_result_are_refused_in_a_table(tmp_path):
    labels = np.arange(32) % 4
    arrays = {"image_ids": np.arange(32), "labels": labels, "predictions": labels * 0}
    stored = json.loads(result_json.corpus()[0])
    result = Result(stored["protocol"], stored["model"], {"path": "mine", "n": 32}, {"top1": 25.0})
    runs = []
    for name, addon in (("a", "{name: ser, layer: 3}"), ("b", "{name: none}")):
        run = tmp_path / name
        (run / "results").mkdir(parents=True)
        (run / "run.json").write_bytes(run_json.corpus()[0])
        write_text(run / "recipe.yaml", f"method: {{name: moco}}\naddon: {addon}\n")
        np.savez(run / "results" / "knn.npz", **arrays)
        sha256 = file_sha256(run / "results" / "knn.npz")
        value = Result(**{**vars(result), "predictions_sha256": sha256}).to_json()
        write_json(run / "results" / "knn.json", value)
        runs.append(run)
    compare_runs(runs)
    np.savez(runs[0] / "results" / "knn.npz", **{**arrays, "labels": labels[::-1]})
    refused(lambda: compare_runs(runs), "knn.npz", "predictions_sha256")


def test_a_hash_that_is_a_pipe_or_endless_is_none(tmp_path):
    path, beside = tmp_path / "x.pt", tmp_path / "x.pt.sha256"
    path.write_bytes(b"x")
    beside.write_text(f"{file_sha256(path)}  x.pt\n")
    assert verifies(path)
    for content in (b"", b"\xff", b"0" * (2 << 20)):
        beside.write_bytes(content)
        assert not verifies(path)
    beside.unlink()
    os.mkfifo(beside)
    assert not verifies(path)

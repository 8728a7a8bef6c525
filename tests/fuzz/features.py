"""cache/features-*.safetensors and heads/*.unfinished: read, or made again."""

from __future__ import annotations

import json
from functools import cache

import safetensors.torch
import torch

from sercli.encoders.files import safetensors_bytes, signed
from sercli.engine.stepper import Position
from sercli.evals.linear.classifiers import HeadRow
from sercli.evals.linear.kept import cached
from sercli.evals.linear.training import Unfinished
from tests.fuzz.encoder_header import without_hashes
from tests.support.fuzzing import folder, put

SHAPE = (6, 2, 4)
_IDENTITY = {"protocol": {"epochs": 3}, "encoder": "0" * 64, "images": "0" * 16}


def _rows() -> dict[str, HeadRow]:
    return {"cls1": HeadRow("cls1", 4, learning_rates=(0.1, 1.0), num_classes=3, seed=0)}


@cache
def corpus() -> list[bytes]:
    table = {"features": torch.arange(48.0).view(SHAPE)}
    kept = safetensors.torch.save(table, metadata=signed(table, {"key": "key"}))
    other = {"features": torch.zeros(5, 2, 4)}
    short = safetensors.torch.save(other, metadata=signed(other, {"key": "key"}))
    path = folder() / "written.unfinished"
    Unfinished(path, _IDENTITY, _rows()).save(Position(7))
    unfinished = path.read_bytes()
    bad = safetensors_bytes({"cls1/weight": torch.zeros(1)}, {"step": "7", "identity": "{}"})
    whole = [kept, short, unfinished, bad]
    header = json.dumps({"__metadata__": {"key": "key"}}).encode()
    return [*whole, *map(without_hashes, whole), len(header).to_bytes(8, "little") + header]


def target(data: bytes) -> None:
    path = put("features.safetensors", data)
    table = cached(path, "key", lambda: torch.zeros(SHAPE), shape=SHAPE)
    assert table.shape == SHAPE
    assert table.dtype == torch.float32
    rows = _rows()
    Unfinished(put("heads.unfinished", data), _IDENTITY, rows).load(lambda _: None)
    assert rows["cls1"].weight.shape == (4, 2, 3)

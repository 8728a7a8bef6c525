"""step-*.pt and other people's checkpoints, without a hash beside them: archives and pickles."""

from __future__ import annotations

import argparse
import io
import zipfile
from functools import cache
from random import Random
from typing import Any

import torch

from sercli.encoders.loading import encoder_metadata, read_encoder
from sercli.errors import UserError
from tests.support import mutations
from tests.support.encoder_files import MODEL, small
from tests.support.foreign_files import dino, vit
from tests.support.fuzzing import put


@cache
def corpus() -> list[bytes]:
    student = small(0)
    metadata = encoder_metadata(MODEL, student, step=7)
    tensors = {f"student.encoder.{key}": value for key, value in student.state_dict().items()}
    ours = {"step": 7, "encoder": metadata, "objective": tensors, "optimiser": {"state": {}}}
    name = "student.encoder.norm.weight"
    hostile: list[dict[Any, Any]] = [
        {**tensors, 1: torch.zeros(2)},
        {**tensors, (1, 2): torch.zeros(2)},
        {**tensors, None: torch.zeros(2)},
        {**tensors, name: torch.zeros(1).expand(2**40)},
        {**tensors, name: torch.zeros(8, dtype=torch.complex64)},
        {**tensors, name: torch.zeros(32).to_sparse()},
        {**tensors, name: torch.zeros(32, device="meta")},
    ]
    deep: Any = torch.zeros(1)
    for _ in range(60):
        deep = {"a": deep}
    theirs = dino(vit(), vit(1))
    theirs_huge = {"state_dict": {"pos_embed": torch.zeros(1).expand(1, 2**32, 384)}}
    said = argparse.Namespace(arch="vit_tiny_patch16_224", mean="x", std=[1], patch_size=-8)
    other = {"state_dict": vit().state_dict(), "arch": "vit_tiny_patch16_224", "args": said}
    states = [
        other,
        ours,
        *({**ours, "objective": one} for one in hostile),
        theirs,
        theirs_huge,
        deep,
    ]
    return [_saved(state) for state in states] + [_saved(ours, legacy=True)]


def _saved(state: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Half of the time the pickle alone is changed, and packed with right checksums."""
    if data[:2] != b"PK" or random.random() < 0.5:
        return mutations.changed(data, others, random)
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as packed:
            for info in archive.infolist():
                content = archive.read(info)
                if info.filename.endswith("data.pkl"):
                    content = mutations.shaken(content, random)
                packed.writestr(info.filename, content)
    except Exception:
        return mutations.shaken(data, random)
    return out.getvalue()


def target(data: bytes) -> None:
    path = put("checkpoint.pt", data)
    try:
        read_encoder(path)
    except UserError as error:
        if "--num-heads" not in str(error):
            raise
        read_encoder(path, num_heads=2)

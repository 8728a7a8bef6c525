"""heads/*.safetensors without their hashes: read, held against an encoder, and used."""

from __future__ import annotations

from functools import cache

import torch

from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import final_norm
from sercli.evals.linear.heads import HeadFacts, ProbeHead, load_head
from tests.fuzz.encoder_header import without_hashes
from tests.support.encoder_files import small
from tests.support.fuzzing import folder, put


@cache
def _encoder():
    return small(0).eval()


@cache
def corpus() -> list[bytes]:
    found = []
    for parts, dtype in ((("cls",), torch.float32), (("cls", "pooled@3", "cls@3"), torch.float32)):
        facts = HeadFacts(
            classes=("a", "b", "c"),
            feature_set="cls1",
            parts=parts,
            learning_rate=0.1,
            epoch=3,
            encoder_sha256=encoder_sha256(_encoder()),
            image_size=32,
            resize=36,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            protocol_id="0" * 12,
        )
        weight = torch.ones(3, 32 * len(parts), dtype=dtype)
        path = folder() / "written.safetensors"
        ProbeHead(facts, weight, torch.zeros(3), final_norm(_encoder())).save(path)
        found += [path.read_bytes(), without_hashes(path.read_bytes())]
    return found


def target(data: bytes) -> None:
    head = load_head(put("head.safetensors", data))
    head.require_encoder(_encoder())
    with torch.no_grad():
        logits = head(_encoder()(torch.zeros(1, 3, 32, 32), layers=head.layers))
    assert logits.shape == (1, len(head.classes))

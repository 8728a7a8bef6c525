"""The cached list of a folder's images, its hash made right again: believed whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from functools import cache
from random import Random

import numpy as np

from sercli.data.images.manifest import Manifest, pack, scan, unpack
from sercli.errors import UserError
from tests.support import mutations
from tests.support.fuzzing import folder

_START = 32  # of the hash, which stands in front of what it is of


def _root() -> str:
    return str(folder() / "images")


@cache
def corpus() -> list[bytes]:
    root = folder() / "images"
    for name in ("n01/a.jpg", "n02/b.jpg", "n02/deep/é.png", "n02/@eaDir/x.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    whole = pack(scan(_root()))
    odd = dataclasses.replace(scan(_root()), passed_over={"x": float("inf")})
    return [whole, whole[:-1], b"", pack(odd)]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """What follows the hash is changed, and hashed anew nine times of ten."""
    magic = others[0][: others[0].index(hashlib.sha256(_body(others[0])).digest())]
    start = len(magic) + _START
    body = data[start:]
    lengths = np.frombuffer(body[:64].ljust(64, b"\0"), "<i8").tolist()
    if random.random() < 0.4 and 0 < lengths[0] < len(body):
        facts = mutations.json_changed(body[64 : 64 + lengths[0]], random)
        first = len(facts).to_bytes(8, "little")
        body = first + body[8:64] + facts + body[64 + lengths[0] :]
    else:
        body = mutations.shaken(body, random)
    digest = hashlib.sha256(body).digest() if random.random() < 0.9 else random.randbytes(_START)
    return magic + digest + body


@cache
def _body(whole: bytes) -> bytes:
    for start in range(_START, 200):
        if hashlib.sha256(whole[start:]).digest() == whole[start - _START : start]:
            return whole[start:]
    raise ValueError("no hash in front of a list")


def target(data: bytes) -> None:
    found = unpack(data, _root())
    if found is None:
        raise UserError("a list", "it is not what was written")
    assert isinstance(found, Manifest)
    found.class_counts()
    for index in range(len(found)):
        path = os.fsdecode(found.relative(index)).split("/")
        assert not {"", ".", ".."} & {*path}
    json.dumps([*found.classes, found.passed_over])

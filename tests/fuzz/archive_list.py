"""The kept list of what archives hold, its hash made right again: believed whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache
from random import Random

import numpy as np

from sercli.data.archives.members import Members, pack, unpack
from sercli.errors import UserError
from tests.support import mutations

_MAGIC_END, _START = b"\n", 32  # of the hash, which stands in front of what it is of
_NUM_PARTS = 8
_FILES = ("/d/a.tar", "/d/b.tar")


def _members(**changed: object) -> Members:
    names = b"n01/a.pngn01/b.pngn02/c.png"
    whole = Members(
        files=_FILES,
        beside=("/d/classes.txt",),
        form="class folders",
        classes=("n01", "n02"),
        stamps=np.array([[1, 2, 5000, 3, 4], [5, 6, 7000, 3, 8], [1, 1, 8, 3, 9]], np.int64),
        archive=np.array([0, 1, 1], np.int32),
        offset=np.array([512, 512, 6000], np.int64),
        size=np.array([4000, 100, 1000], np.int64),
        labels=np.array([0, 0, 1], np.int64),
        names=np.frombuffer(names, np.uint8),
        starts=np.array([0, 9, 18, 27], np.int64),
        passed_over={".txt": 3},
    )
    return dataclasses.replace(whole, **changed)  # type: ignore[arg-type]


@cache
def corpus() -> list[bytes]:
    whole = pack(_members())
    odd = pack(_members(passed_over={"x": float("inf")}))
    beyond = pack(_members(size=np.array([4000, 100, 1001], np.int64)))
    return [whole, whole[:-1], b"", odd, beyond]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """What follows the hash is changed, and hashed anew nine times of ten."""
    magic = others[0].partition(_MAGIC_END)[0] + _MAGIC_END
    body = data[len(magic) + _START :]
    table = 8 * _NUM_PARTS
    lengths = np.frombuffer(body[:table].ljust(table, b"\0"), "<i8").tolist()
    if random.random() < 0.4 and 0 < lengths[0] < len(body):
        facts = mutations.json_changed(body[table : table + lengths[0]], random)
        first = len(facts).to_bytes(8, "little")
        body = first + body[8:table] + facts + body[table + lengths[0] :]
    else:
        body = mutations.shaken(body, random)
    digest = hashlib.sha256(body).digest() if random.random() < 0.9 else random.randbytes(_START)
    return magic + digest + body


def target(data: bytes) -> None:
    found = unpack(data, _FILES)
    if found is None:
        raise UserError("a list", "it is not what was written")
    for index in range(len(found)):
        span = found.span(index)
        assert span.path in _FILES
        assert 0 <= span.offset <= span.offset + span.size <= span.length
        assert found.name(index)
        assert not found.classes or found.classes[found.labels[index]] is not None
    json.dumps([found.beside, found.form, *found.classes, found.passed_over])

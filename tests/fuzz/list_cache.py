"""The cached list of images: any bytes, and bodies made by hand whose hash is right."""

from __future__ import annotations

import hashlib

import numpy as np

from sercli.data.images.manifest import _MAGIC, Manifest, pack, unpack
from sercli.errors import UserError

_ROOT = "/set"


def _one() -> Manifest:
    return Manifest(
        root=_ROOT,
        classes=("a", "b"),
        directories=(b"", b"a", b"b", b"b/deep"),
        directory_class=np.array([-1, 0, 1, 1], np.int32),
        stamps=np.arange(20).reshape(4, 5),
        file_directory=np.array([1, 2, 3], np.int32),
        names=np.frombuffer(b"1.jpg2.jpg3.png", np.uint8),
        offsets=np.array([0, 5, 10, 15]),
        passed_over={"@eaDir": 2},
    )


def corpus() -> list[bytes]:
    whole = pack(_one())
    body = whole[len(_MAGIC) + 32 :]
    return [whole, body, b"", _MAGIC, body.replace(b"b/deep", b"../../")]


def target(data: bytes) -> None:
    stamped = _MAGIC + hashlib.sha256(data).digest() + data
    found = unpack(data, _ROOT) or unpack(stamped, _ROOT)
    if found is None:
        raise UserError("no list: the folder is scanned")
    names = [found.relative(index) for index in range(len(found))]
    assert not any(b".." in name.split(b"/") for name in names)
    assert found.class_counts().sum() == len(found)

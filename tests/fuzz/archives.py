"""Tar and zip: each image that is listed lies in the archive, by a name that leads nowhere else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from functools import cache
from random import Random

from sercli.data.archives.finding import Archive, ArchiveSet
from sercli.data.archives.members import stamps_of
from sercli.data.archives.opening import list_anew
from sercli.data.images.stored import read_span
from sercli.errors import UserError
from tests.support import mutations
from tests.support.archives import tar_bytes
from tests.support.fuzzing import put

_BLOCK, _SUM, _MAGIC = 512, slice(148, 156), slice(257, 262)
_FIELDS = ((0, 100), (124, 136), (156, 157), (157, 257), (345, 500), (0, 512))


@cache
def corpus() -> list[bytes]:
    folders = {f"{split}/{name}/{i}.png": b"x" * i for split in ("train", "val")
               for name in "ab" for i in (1, 700)}  # fmt: skip
    samples = {
        "k.jpg": b"x",
        "k.cls": b"3",
        "l.y.jpg": b"",
        "l.json": b'{"label": 1}',
        "l.cls": b"a",
    }
    long = {f"n/{'é' * 70}/{'x' * 150}{i}.png": b"" for i in (1, 2)}
    inner = {
        "n01440764.tar": tar_bytes({"1.png": b"yy"}),
        "n01443537.tar": tar_bytes({"2.png": b""}),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in folders.items():
            archive.writestr(name, data)
    whole = tar_bytes(folders)
    return [
        whole,
        tar_bytes(samples),
        tar_bytes({"l.json": b'{"label": 1}', "l.jpg": b""}),
        tar_bytes(long, tarfile.PAX_FORMAT),
        tar_bytes(long, tarfile.GNU_FORMAT),
        tar_bytes(inner),
        packed.getvalue(),
        whole[:-11_000],
        b"",
    ]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Of a tar mostly a field of a header, with its sum made right again."""
    headers = [at for at in range(0, len(data), _BLOCK) if data[at:][_MAGIC] == b"ustar"]
    if random.random() < 0.1:
        return mutations.spliced(data, random.choice(others), random)
    if not headers or random.random() < 0.3:
        return mutations.shaken(data, random)
    at, (start, stop) = random.choice(headers), random.choice(_FIELDS)
    header = bytearray(data[at : at + _BLOCK].ljust(_BLOCK, b"\0"))
    new = mutations.shaken(bytes(header[start:stop]), random)
    header[start:stop] = new[: stop - start].ljust(stop - start, b"\0")
    header[_SUM] = b" " * 8
    header[_SUM] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + _BLOCK :]


def target(data: bytes) -> None:
    path = str(put("archives/x.tar", data))
    archive = Archive(path, "x.tar")
    named = ArchiveSet(str(put("archives/empty/x", b"").parent), (archive,), {})  # type: ignore[arg-type]
    lists = list_anew(named, [archive], stamps_of([path]), names=None, split=None)
    for members in lists.values():
        for index in range(len(members)):
            assert not {b"..", b"", b"."} & {*members.name(index).split(b"/")}
            span = members.span(index)
            assert len(read_span(span)) == span.size
        if members.faults:
            raise UserError(members.faults[0])

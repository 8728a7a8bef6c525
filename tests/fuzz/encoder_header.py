"""encoder.safetensors, its hashes left out half of the time: the header decides what is built."""

from __future__ import annotations

import json
from functools import cache

from sercli.encoders.export.writing import export
from sercli.encoders.files import safetensors_bytes
from sercli.encoders.loading import encoder_metadata, read_encoder
from tests.support.encoder_files import MODEL, small
from tests.support.fuzzing import folder, put


@cache
def corpus() -> list[bytes]:
    student = small(0)
    metadata = encoder_metadata(MODEL, student, step=7)
    both = dict(student.state_dict()) | {
        f"teacher.{key}": value for key, value in small(1).state_dict().items()
    }
    signed = [safetensors_bytes(tensors, metadata) for tensors in (student.state_dict(), both)]
    huge = [
        without_hashes(safetensors_bytes(student.state_dict(), {**metadata, **change}))
        for change in (
            {"image_size": "44848848"},
            {"image_size": "1" + "0" * 30},
            {"model": json.dumps({**json.loads(metadata["model"]), "depth": 10**9})},
            {"model": json.dumps({**json.loads(metadata["model"]), "width": 2**40})},
            {"model": json.dumps({**json.loads(metadata["model"]), "patch_size": 2**60})},
            {"mean": "[NaN, 0, 0]"},
        )
    ]
    return [*signed, *map(without_hashes, signed), *huge, without_hashes(_exported())]


def _exported() -> bytes:
    """What `ser export` writes, which is read as other people's files are."""
    written, out = folder() / "written.safetensors", folder() / "exported.safetensors"
    student = small(0)
    metadata = encoder_metadata(MODEL, student, step=7)
    written.write_bytes(safetensors_bytes(student.state_dict(), metadata))
    export(read_encoder(written), out, force=True)
    return out.read_bytes()


def without_hashes(data: bytes) -> bytes:
    """A safetensors file whose header says nothing of what was written."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for key in ("tensors_sha256", "header_sha256"):
        header["__metadata__"].pop(key, None)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def target(data: bytes) -> None:
    read_encoder(put("encoder.safetensors", data))

"""The bytes of an image as a shard has them: its own, or those of a smaller picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from sercli.data.images.decode import failure, read_header, read_rgb
from sercli.data.images.files import StoredImages
from sercli.data.images.listing import has_suffix
from sercli.data.images.stored import open_stored

_JPEG = ("jpg", "jpeg")
_SUBSAMPLING = "4:2:0"
# How a file begins → the suffix that says so.
_KINDS = (
    (b"\xff\xd8\xff", b"jpg"),
    (b"\x89PNG", b"png"),
    (b"BM", b"bmp"),
    (b"II*\0", b"tif"),
    (b"MM\0*", b"tif"),
)


@dataclass(frozen=True)
class Encoding:
    """What is done to images.

    Attributes:
        resize: Pixels that the shorter side is brought to, where it is longer; None: bytes stay.
        quality: Of the JPEG that such an image becomes, with colours at half resolution.
    """

    resize: int | None = None
    quality: int = 95


def payload(source: StoredImages, index: int, encoding: Encoding) -> tuple[bytes, bytes]:
    """The bytes of an image, and the suffix that they need where its name has none or another.

    Raises:
        UnreadableImage: It cannot be read, or not be decoded where it has to be.
        RunFailed: No descriptor or no memory is left.
        UserError: Its archive has changed since it was listed.
    """
    called = source.describe(index)
    try:
        with open_stored(source.where(index)) as (file, _):
            data = file.read()
    except Exception as error:
        raise failure(called, error) from error
    name = source.identifier(index).rpartition("/")[2].encode("utf-8", "surrogateescape")
    if encoding.resize is not None:
        smaller = _resized(data, encoding.resize, encoding.quality, called=called)
        if smaller is not None:
            return smaller, b"" if has_suffix(name, _JPEG) else b"jpg"
    return data, b"" if has_suffix(name) else _kind(data)


def _resized(data: bytes, side: int, quality: int, *, called: str) -> bytes | None:
    """A JPEG whose shorter side has `side` pixels; None: the image is no larger.

    Resized by Pillow, bicubic with antialiasing, with the levels that all readers here decode.
    """
    header = read_header(memoryview(data), called=called, decode=False)
    shorter = min(header.width, header.height)
    if shorter <= side:
        return None
    image = read_rgb(memoryview(data), called=called)
    size = [max(1, round(length * side / shorter)) for length in image.size]
    made = io.BytesIO()
    smaller = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    smaller.save(made, "JPEG", quality=quality, subsampling=_SUBSAMPLING)
    return made.getvalue()


def _kind(data: bytes) -> bytes:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return b"webp"
    return next((suffix for begins, suffix in _KINDS if data.startswith(begins)), b"jpg")

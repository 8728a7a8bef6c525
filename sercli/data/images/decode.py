"""Image files to RGB, one rule for every pixel format.

EXIF orientation is *not* applied: ImageNet's protocols read the stored pixels, and so do the
published numbers. Of a file with several frames the first is read.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sercli.data import spent
from sercli.data.images import native
from sercli.data.images.stored import Where, open_stored
from sercli.data.source import UnreadableImage
from sercli.errors import SerError, exhausted

# The formats of the suffixes that a folder is scanned for, and those that such files often hold
# under a wrong suffix. Nothing else is tried: some of Pillow's readers start other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_READ_AT_ONCE = 64 * 2**20  # bytes; what is larger, Pillow reads as far as it needs


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels.

    Attributes:
        width: In pixels.
        height: In pixels.
        mode: Pillow's name of the stored pixel format ("RGB", "L", "CMYK", "I;16", …).
    """

    width: int
    height: int
    mode: str


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any decoded image to RGB.

    Transparent pixels are composited on white; 16-bit grey is scaled to 8 bits (v / 257, rounded),
    not clipped as Pillow's own `convert` does.

    Raises:
        ValueError: 32-bit integers or floats, whose white point no file states.
    """
    # Older Pillows read a 16-bit grey PNG as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_rgb(where: Where, *, called: str) -> Image.Image:
    """Decode a file to RGB.

    Args:
        where: Where the bytes of an image file are, in any format that Pillow knows.
        called: Its name in messages.

    Raises:
        UnreadableImage: It is missing, truncated, corrupt, too large, or of an unknown format.
        RunFailed: No descriptor or no memory is left.
    """
    try:
        with _opened(where) as (_, image):
            image.load()
            return to_rgb(image)
    except Exception as error:
        raise failure(called, error) from error


def read_pixels(where: Where, *, called: str) -> NDArray[np.uint8]:
    """Decode a file to uint8 [H, W, 3], with the levels of `read_rgb`, sooner where it can be.

    Raises:
        UnreadableImage, RunFailed: As `read_rgb`, for the same files.
    """
    try:
        with _opened(where) as (data, image):
            found = None if data is None else native.decode(data, image)
            if found is not None:
                return found
            image.load()
            return np.array(to_rgb(image))
    except Exception as error:
        raise failure(called, error) from error


def read_indices(where: Where, *, called: str) -> NDArray[np.uint8]:
    """The stored values of a file of 8 bits a pixel, uint8 [H, W]: indices, whatever their colours.

    Raises:
        UnreadableImage: As `read_rgb`, or it has colours or other than 8 bits.
        RunFailed: As `read_rgb`.
    """
    try:
        with _opened(where) as (_, image):
            require_indices(image.mode, called=called)
            image.load()
            return np.array(image)
    except Exception as error:
        raise failure(called, error) from error


def require_indices(mode: str, *, called: str) -> None:
    """Pixels must be indices: of a palette, or grey of 8 bits.

    Args:
        mode: Pillow's name of the stored pixel format.
        called: The file's name in messages.

    Raises:
        UnreadableImage: They are something else, colours for instance.
    """
    if mode not in ("P", "L"):
        raise UnreadableImage(
            called,
            f"its pixels are {mode}, no indices of classes: a PNG with a palette, or grey of 8 "
            "bits, is needed",
        )


@contextlib.contextmanager
def _opened(where: Where) -> Iterator[tuple[bytearray | None, Image.Image]]:
    """A file as Pillow opens it, and what it holds, which is read at once unless it is large."""
    with open_stored(where) as (file, size):
        data = bytearray(file.read()) if size <= _READ_AT_ONCE else None
        spent.here.lap("read")
        with Image.open(file if data is None else io.BytesIO(data), formats=_FORMATS) as image:
            yield data, image


def read_header(where: Where, *, called: str, decode: bool) -> Header:
    """What a file says of its pixels; with `decode`, after decoding all of them as for training.

    Raises:
        UnreadableImage: As `read_rgb`; without `decode`, only for what the header shows.
    """
    try:
        with open_stored(where) as (file, _), Image.open(file, formats=_FORMATS) as image:
            header = Header(*image.size, image.mode)
            if decode:
                image.load()
                to_rgb(image)
            return header
    except Exception as error:
        raise failure(called, error) from error


def failure(called: str, error: Exception) -> SerError:
    """The file's fault, unless this process has run out of something, or its archive is another.

    Pillow's readers raise whatever a corrupt file trips over (OSError, SyntaxError, ValueError,
    struct.error, zlib.error, …). A MemoryError is the file's too: its header says what it takes.
    """
    if isinstance(error, SerError):
        return error
    short = exhausted(error, f"reading {called}") if isinstance(error, OSError) else None
    return short or UnreadableImage(called, _reason(error))


def _reason(error: Exception) -> str:
    """One line that says what is wrong, without the path and without Pillow's jargon."""
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {limit:,} pixels; scale it down"
    if isinstance(error, UnidentifiedImageError):
        return "its content is not a known image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return (str(error) or type(error).__name__).splitlines()[0]

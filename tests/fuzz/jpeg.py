"""Image files by both decoders: the same pixels, or refused in the same words."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

from sercli.data.images.decode import read_pixels, read_rgb
from sercli.data.source import UnreadableImage
from tests.data.images.test_native import BY_LIBJPEG, BY_PILLOW
from tests.support.fuzzing import put


@cache
def corpus() -> list[bytes]:
    whole = [data for name, data in BY_LIBJPEG.items() if name != "large"]
    return [*whole, *BY_PILLOW.values(), whole[0][:-2], b"\xff\xd8\xff", b""]


def target(data: bytes) -> None:
    path = str(put("a.jpg", data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata
        try:
            expected = np.asarray(read_rgb(path, called="it"))
        except UnreadableImage as error:
            told = str(error)
        else:
            pixels = read_pixels(path, called="it")
            assert np.array_equal(pixels, expected)
            return
        try:
            read_pixels(path, called="it")
        except UnreadableImage as error:
            assert str(error) == told
            raise
    raise AssertionError(f"the fast decoder reads what Pillow refuses: {told}")

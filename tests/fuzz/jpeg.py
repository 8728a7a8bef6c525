"""Image files by both decoders: the same pixels, or refused in the same words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

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
    by_pillow, fast = _outcome(read_rgb, path), _outcome(read_pixels, path)
    assert isinstance(by_pillow, UnreadableImage) == isinstance(fast, UnreadableImage), by_pillow
    if isinstance(by_pillow, UnreadableImage):
        assert str(by_pillow) == str(fast)
        raise by_pillow
    assert np.array_equal(by_pillow, fast)


def _outcome(read: Callable[..., Any], path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata
        try:
            return np.asarray(read(path, called="it"))
        except UnreadableImage as error:
            return error

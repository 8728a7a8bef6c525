"""JPEG files by libjpeg-turbo as torchvision has it: the pixels that Pillow decodes, sooner.

Pillow says whether a file is an image at all, of which format and mode; whatever this does not
decode is left to it. So both refuse the same files, in the same words. What stands for pixels that
a damaged file has lost may differ, as the two may have libjpeg-turbo of two releases.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {"RGB", "L"}  # CMYK has no one conversion to RGB, and libraries differ in it
_RGB = 3  # torchvision.io.ImageReadMode.RGB


@functools.cache
def available() -> bool:
    """Whether this torchvision was built with libjpeg; imports it, which takes a second."""
    try:
        _decoder()
    except (ImportError, AttributeError, RuntimeError):
        return False
    return True


@functools.cache
def _decoder() -> Callable[..., Tensor]:
    import torch
    import torchvision.io  # noqa: F401  (registers the operator)

    decode: Callable[..., Tensor] = torch.ops.image.decode_jpeg.default
    return decode


def decode(data: bytearray, opened: Image.Image) -> NDArray[np.uint8] | None:
    """All pixels of a file, or None: Pillow is to decode it, or to say what is wrong with it.

    Args:
        data: The whole file.
        opened: The same file as Pillow opened it, not decoded yet.

    Returns:
        uint8 [H, W, 3].
    """
    if opened.format != "JPEG" or opened.mode not in _MODES or not available():
        return None
    import torch

    try:
        with _silent():
            pixels = _decoder()(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
    except RuntimeError:
        return None
    if pixels.shape[1:] != (opened.height, opened.width):
        return None
    found: NDArray[Any] = pixels.permute(1, 2, 0).numpy()
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what libjpeg prints of a file that it reads all the same.

    In loader processes alone, which have one thread: elsewhere another's line could be lost.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # closed, so that nothing is printed anyway
        yield
        return
    try:
        os.dup2(_nowhere(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@functools.cache
def _nowhere() -> int:
    """A descriptor that takes everything, of this process for good."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

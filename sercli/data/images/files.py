"""Images whose bytes lie in files: what decodes them is the same for all."""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.images.decode import Header, read_header, read_pixels, read_rgb
from sercli.data.images.stored import Where, open_stored
from sercli.data.source import ImageSource, UnreadableImage
from sercli.runs.reading import MIB, NotRegular


class StoredImages(ImageSource):
    """A set of encoded images; a subclass says where the bytes of each are."""

    @abc.abstractmethod
    def where(self, index: int) -> Where:
        """Where the bytes of an image are.

        Raises:
            IndexError: `index` is not in 0…len-1.
        """

    def reading_order(self) -> NDArray[np.int64] | None:
        """int64 [N], in which all are read soonest; None: an image costs the same anywhere."""
        return None

    def beginning(self, index: int) -> bytes | None:
        try:
            with open_stored(self.where(index)) as (file, _):
                return file.read(MIB)
        except (OSError, EOFError, NotRegular, UnreadableImage):
            return None

    def load(self, index: int) -> Image.Image:
        return read_rgb(self.where(index), called=self.describe(index))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return read_pixels(self.where(index), called=self.describe(index))

    def header(self, index: int, *, decode: bool) -> Header:
        """Size and pixel format of an image; with `decode`, all of it is decoded as well.

        Raises:
            UnreadableImage: It cannot be read.
        """
        return read_header(self.where(index), called=self.describe(index), decode=decode)

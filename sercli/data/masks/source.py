"""What a set of images with a class for every pixel is to the rest of `ser`."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.errors import UserError

IGNORED = 255  # of a pixel that is neither trained on nor scored
MOST_CLASSES = IGNORED


class MaskSource(abc.ABC):
    """Images and their masks, read one at a time. Picklable.

    Attributes:
        name: What the user called the set: its path, or the name of a rendered one.
        split: "train" or "val".
        layout: Of its files, as results name it; "" for what is rendered.
        classes: Their names, at most 255; a pixel's value is an index into them, or `IGNORED`.
    """

    name: str
    split: str
    layout: str = ""
    classes: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image as RGB, fully decoded.

        Raises:
            UnreadableImage: It cannot be decoded.
        """

    @abc.abstractmethod
    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel of the image, [H, W].

        Raises:
            UnreadableImage: It cannot be decoded, or is no mask of these classes.
        """

    @abc.abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of an image and its mask; no pixel is decoded.

        Raises:
            UnreadableImage: A file cannot be opened, the mask has colours, or sizes differ.
        """

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Where the image is, for messages."""

    @abc.abstractmethod
    def identifier(self, index: int) -> str:
        """A stable id of the image within the set: the same on every machine and in every run."""

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of which images these are, and of the classes, in hex; no file is read."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for index in indices:
            digest.update(f"\n{self.identifier(index)}".encode(errors="surrogateescape"))
        return digest.hexdigest()


def require_same_classes(train: MaskSource, val: MaskSource) -> None:
    """What is trained on and what is scored must have the same classes.

    Raises:
        UserError: They differ.
    """
    if train.classes != val.classes:
        raise UserError(
            f"{train.name}: the {len(train.classes)} classes of train and the "
            f"{len(val.classes)} of val differ",
            "both must have the same, in the same order",
        )

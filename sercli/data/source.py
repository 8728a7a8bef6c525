"""What a set of images is to the rest of `ser`, and the error for one that cannot be read."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.errors import SerError, UserError

_READ = 32  # images whose bytes tell the same
_SIZED = 10_000  # files whose size tells whether they are the same


class UnreadableImage(SerError):
    """An image that cannot be decoded (missing, truncated, not an image, too large): status 2.

    Args:
        path: The file, as a person would name it.
        reason: What is wrong with it, without the path.
    """

    exit_status = 2

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read the image {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        # BaseException pickles as cls(*args) with the one joined message; workers need both parts.
        return UnreadableImage, (self.path, self.reason)


class ImageSource(abc.ABC):
    """A set of images, read one at a time. Picklable: it travels to loader workers.

    Attributes:
        name: What the user called the set: its path, or the name of a rendered one.
        split: "train" or "val".
        classes: Class names; a label is an index into them. None: the images have no labels.
        labels: int64 [N], in 0…len(classes)-1; zeros where there are no classes.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image as RGB, fully decoded.

        Raises:
            UnreadableImage: It cannot be decoded.
            IndexError: `index` is not in 0…len-1.
        """

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The same image as uint8 [H, W, 3], by whichever decoder is fastest.

        Raises:
            UnreadableImage: As `load`.
            IndexError: As `load`.
        """
        return np.array(self.load(index))

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Where the image is, for messages: a path, or "shapes/train/123"."""

    @abc.abstractmethod
    def identifier(self, index: int) -> str:
        """A stable id of the image within the set: the same on every machine and in every run."""

    def file_size(self, index: int) -> int | None:
        """Bytes of the image's file; None: it is in none, or cannot be looked at."""
        del index
        return None

    def beginning(self, index: int) -> bytes | None:
        """What an image is stored as, its first MiB; None: it is rendered, or cannot be read."""
        del index
        return None

    def made_of(self) -> dict[str, object]:
        """What else tells its images from others with the same identifiers, as JSON has it."""
        return {}

    def listed(self) -> Iterator[bytes | memoryview]:
        """Bytes that are others where another image, or another name, is in the set."""
        for index in range(len(self)):
            yield f"{self.identifier(index)}\n".encode("utf-8", "backslashreplace")

    def remarks(self) -> tuple[str, ...]:
        """What a user should know before all of it is read, a line each."""
        return ()

    def position(self, index: int) -> int:
        """`index` as a plain int in 0…len-1 (numpy integers are accepted, negatives are not).

        Raises:
            IndexError: It is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return int(index)


def require_labels(source: ImageSource, wanted_for: str) -> None:
    """Refuse images without labels where the class of each is needed.

    Args:
        source: The images.
        wanted_for: What needs them: "kNN", "the linear probe".

    Raises:
        UserError: They have none.
    """
    if not source.classes:
        raise no_labels(source.name, wanted_for)


def no_labels(name: str, wanted_for: str) -> UserError:
    """The error for a set without labels where the class of each image is needed."""
    return UserError(
        f"{name} has no labels",
        f"{wanted_for} needs the class of every image",
        "name a set that has them, such as class folders (--data DIR)",
    )


def contents(source: ImageSource) -> dict[str, int | str]:
    """What tells a set of images from another: `images`, `classes`, a `sha256` and a `sample`.

    `sample` is a hash of the bytes of a few images, spread evenly over all; a set that is rendered
    has none. Hashed for `sha256` are the classes' names, each image's identifier and class, and
    file sizes: of all images, or of ten thousand spread evenly over more, as looking at a million
    takes a network disk long. Where the set lies is not.
    """
    digest = hashlib.sha256(json.dumps(source.made_of(), sort_keys=True).encode())
    for name in source.classes:
        digest.update(f"{name}\n".encode())
    for index, label in enumerate(source.labels.tolist()):
        digest.update(f"{source.identifier(index)} {label}\n".encode())
    for index in _evenly(len(source), _SIZED):
        digest.update(f"{source.file_size(index)}\n".encode())
    told = {"images": len(source), "classes": len(source.classes), "sha256": digest.hexdigest()}
    read = [source.beginning(index) for index in _evenly(len(source), _READ)]
    if any(one is not None for one in read):
        digests = (hashlib.sha256(one or b"").digest() for one in read)
        told["sample"] = hashlib.sha256(b"".join(digests)).hexdigest()
    return told


def _evenly(number: int, most: int) -> list[int]:
    """Some of so many indices, spread evenly over all."""
    return list(map(int, np.linspace(0, number - 1, min(number, most)).astype(int)))

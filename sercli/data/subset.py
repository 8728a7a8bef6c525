"""Some of a set's images: some of its classes, or a share of each class. No image is read for it.

Both are views of a set that is opened whole, of whatever kind: identifiers stay, labels count the
classes that are left.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.images.folder import counted, some
from sercli.data.source import ImageSource, require_labels
from sercli.errors import UserError


@final
class Subset(ImageSource):
    """Images of another source.

    Args:
        source: Where they are read.
        indices: int64 [N], which of its images, ascending.
        classes: Its classes that there are; each image is of one of them.
        restricted: Whether its number of classes is smaller.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        *,
        classes: tuple[str, ...],
        restricted: bool,
    ) -> None:
        self._source, self._indices = source, indices
        self.name, self.split, self.classes = source.name, source.split, classes
        self.restricted = restricted
        places = np.full(max(1, len(source.classes)), -1, np.int64)
        kept = [source.classes.index(name) for name in classes]
        places[kept] = np.arange(len(kept))
        self.labels = places[source.labels[indices]] if classes else source.labels[indices]

    def load(self, index: int) -> Image.Image:
        return self._source.load(self._whose(index))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return self._source.pixels(self._whose(index))

    def describe(self, index: int) -> str:
        return self._source.describe(self._whose(index))

    def identifier(self, index: int) -> str:
        return self._source.identifier(self._whose(index))

    def file_size(self, index: int) -> int | None:
        return self._source.file_size(self._whose(index))

    def beginning(self, index: int) -> bytes | None:
        return self._source.beginning(self._whose(index))

    def made_of(self) -> dict[str, object]:
        return self._source.made_of()

    def remarks(self) -> tuple[str, ...]:
        return self._source.remarks()

    def _whose(self, index: int) -> int:
        return int(self._indices[self.position(index)])


def with_classes(source: ImageSource, names: Sequence[str]) -> ImageSource:
    """The images of some classes; the source itself where these are all.

    Args:
        source: A whole set.
        names: Class names, in any order: the classes stay in the order of the source.

    Raises:
        UserError: It has no such class, or none at all.
    """
    require_labels(source, "data.classes")
    known = set(source.classes)
    if unknown := [name for name in names if name not in known]:
        close = difflib.get_close_matches(unknown[0], source.classes, n=1)
        raise UserError(
            f"{source.name} has no {counted(unknown, 'class').partition(' ')[2]} {some(unknown)}",
            f"it has {counted(source.classes, 'class')}",
            f"did you mean {close[0]}?" if close else "the names are those of its class folders",
        )
    wanted = set(names)
    classes = tuple(name for name in source.classes if name in wanted)
    if classes == source.classes:
        return source
    kept = np.array([name in wanted for name in source.classes])
    return Subset(source, np.flatnonzero(kept[source.labels]), classes=classes, restricted=True)


def with_share(source: ImageSource, share: float, *, seed: int) -> ImageSource:
    """A share of the images of each class, or of all where there are none; at 1 the source."""
    if share == 1:
        return source
    indices = share_of_each(source, np.arange(len(source)), share, seed=seed)
    return Subset(source, indices, classes=source.classes, restricted=is_restricted(source))


def share_of_each(
    source: ImageSource, indices: NDArray[np.int64], share: float, *, seed: int
) -> NDArray[np.int64]:
    """A share of the images of each class, but at least one of each.

    A smaller share of the same seed is part of a larger one, and what is drawn of a class does not
    depend on which others there are.

    Args:
        source: Whose labels and class names they have.
        indices: int64 [N], what is drawn from, ascending.
        share: Above 0, at most 1.
        seed: Another seed, other images.

    Returns:
        int64 [M], ascending.
    """
    from sercli.randomness import numpy_generator  # imports torch

    taken = [np.zeros(0, np.int64)]
    labels = source.labels[indices]
    for label in np.unique(labels).tolist():
        members = indices[labels == label]
        draws = numpy_generator(seed, "share", source.classes[label] if source.classes else "")
        taken.append(draws.permutation(members)[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(taken))


def is_restricted(source: ImageSource) -> bool:
    """Whether a source has some classes of its set only."""
    return isinstance(source, Subset) and source.restricted


def class_settings(source: ImageSource) -> dict[str, Any]:
    """What a protocol says of the classes, where they are not all: results of others do not mix."""
    if not is_restricted(source):
        return {}
    names = "\n".join(sorted(source.classes))
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    return {"classes": {"number": len(source.classes), "sha256": digest}}

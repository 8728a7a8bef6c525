"""Several sets of images as one.

Images are in the order of their classes, then of their sets, then as in their set. A set is called
by the last parts of its path that tell it from the others, and sets are in the order of these
names: neither where all of them lie nor the order in which they were named changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sercli.data.images.files import StoredImages
from sercli.data.images.order import numbered
from sercli.data.images.stored import Where
from sercli.data.images.unlabelled import PREFIX
from sercli.data.source import ImageSource
from sercli.errors import UserError


class Several(ImageSource):
    """Some sets as one.

    Args:
        sources: What each set is called → its images.
        name: What the user called them all.
        split: "train" or "val".
        classes: Of the whole; each set has some of them.
    """

    def __init__(
        self,
        sources: Mapping[str, ImageSource],
        *,
        name: str,
        split: str,
        classes: tuple[str, ...],
    ) -> None:
        self.name, self.split, self.classes = name, split, classes
        self._called, self._sources = tuple(sources), tuple(sources.values())
        places = {one: place for place, one in enumerate(classes)}
        labels = [
            np.array([places[one] for one in source.classes], np.int64)[source.labels]
            if classes
            else source.labels
            for source in self._sources
        ]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        whole = np.concatenate(labels)
        self._order = np.argsort(whole, kind="stable")
        self.labels = whole[self._order]

    def load(self, index: int) -> Image.Image:
        _, source, own = self._whose(index)
        return source.load(own)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        _, source, own = self._whose(index)
        return source.pixels(own)

    def describe(self, index: int) -> str:
        _, source, own = self._whose(index)
        return source.describe(own)

    def identifier(self, index: int) -> str:
        """The set's name, and the image's identifier in it."""
        called, source, own = self._whose(index)
        return f"{called}/{source.identifier(own)}"

    def file_size(self, index: int) -> int | None:
        _, source, own = self._whose(index)
        return source.file_size(own)

    def beginning(self, index: int) -> bytes | None:
        _, source, own = self._whose(index)
        return source.beginning(own)

    def made_of(self) -> dict[str, object]:
        made = {
            called: source.made_of()
            for called, source in zip(self._called, self._sources, strict=True)
        }
        return {called: told for called, told in made.items() if told}

    def remarks(self) -> tuple[str, ...]:
        return tuple(line for source in self._sources for line in source.remarks())

    def listed(self) -> Iterator[bytes | memoryview]:
        for called, source in zip(self._called, self._sources, strict=True):
            yield f"{called}\0{len(source)}\0".encode("utf-8", "backslashreplace")
            yield from source.listed()

    def _whose(self, index: int) -> tuple[str, ImageSource, int]:
        place = int(self._order[self.position(index)])
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._called[number], self._sources[number], place - int(self._starts[number])


class SeveralStored(Several, StoredImages):
    """Several sets of images whose bytes are stored."""

    def where(self, index: int) -> Where:
        _, source, own = self._whose(index)
        assert isinstance(source, StoredImages)
        return source.where(own)

    def reading_order(self) -> NDArray[np.int64] | None:
        """Set after set, where one of them has an order of its own."""
        orders = [
            source.reading_order() if isinstance(source, StoredImages) else None
            for source in self._sources
        ]
        if all(order is None for order in orders):
            return None
        whole = [
            start + (np.arange(len(source)) if order is None else order)
            for start, source, order in zip(self._starts, self._sources, orders, strict=False)
        ]
        place = np.empty(len(self), np.int64)
        place[self._order] = np.arange(len(self))
        order: NDArray[np.int64] = place[np.concatenate(whole)]
        return order


def several(
    sources: Mapping[str, ImageSource], *, name: str, split: str, classes: tuple[str, ...]
) -> Several:
    """Some sets as one; see `Several`."""
    stored = all(isinstance(source, StoredImages) for source in sources.values())
    kind = SeveralStored if stored else Several
    return kind(sources, name=name, split=split, classes=classes)


def called_by(paths: Sequence[str]) -> dict[str, str]:
    """What each set is called → its path, in the order of these names.

    Raises:
        UserError: One lies in another, or is named twice: its images would stand twice.
    """
    real = [os.path.realpath(path.removeprefix(PREFIX)) for path in paths]
    placed = sorted(zip((os.path.join(one, "") for one in real), paths, strict=True))
    for (outer, one), (inner, other) in pairwise(placed):
        if inner.startswith(outer):
            same = inner == outer
            raise UserError(
                f"{one} and {other} are one set" if same else f"{other} lies in {one}",
                "its images would be there twice",
                "name it once" if same else f"leave out {other}, or name its sisters",
            )
    parts = [one.split(os.sep) for one in real]
    depth = 1
    while len({tuple(one[-depth:]) for one in parts}) < len(parts):
        depth += 1
    names = ["/".join(one[-depth:]) for one in parts]
    return dict(sorted(zip(names, paths, strict=True)))


def classes_of(sources: Sequence[ImageSource]) -> tuple[str, ...]:
    """The classes of all of them, each once.

    Equal ones stay as they are, as those of one set do. Others are in the order of class folders,
    or, where some set has numbers in theirs, in that.
    """
    first = sources[0].classes
    if all(source.classes == first for source in sources):
        return first
    names = sorted({name for source in sources for name in source.classes}, key=str.encode)
    alphabetical = all(
        list(source.classes) == sorted(source.classes, key=str.encode) for source in sources
    )
    return tuple(names) if alphabetical else numbered(names)[0]


def require_alike(sources: Sequence[ImageSource]) -> None:
    """Refuse images with labels beside some without.

    Raises:
        UserError: There are such.
    """
    labelled = [source.name for source in sources if source.classes]
    others = [source.name for source in sources if not source.classes]
    if labelled and others:
        raise UserError(
            f"{labelled[0]} has labels and {others[0]} has none",
            "sets that are taken as one all have labels, or none",
            f"take all without (unlabelled:{labelled[0]}), or one of them",
        )

"""Sets of images, and their copies in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sercli.data import has_split, open_source
from sercli.data.images.files import StoredImages
from sercli.data.shards.making import Made, make_shards
from sercli.data.shards.plan import Options, make_plan
from sercli.data.source import ImageSource, contents


def silent(*_: object) -> None:
    """Progress that nobody sees."""


def opened(path: Path | str) -> dict[str, ImageSource]:
    splits = [split for split in ("train", "val") if has_split(str(path), split)]
    return {split: open_source(str(path), split, image_size=8) for split in splits}


def copy(path: Path | str, out: Path, *, processes: int | None = 1, **options: Any) -> Made:
    plan = make_plan([*opened(path).values()], out, Options(**options))
    return make_shards(plan, silent, silent, processes=processes)


def told(source: ImageSource) -> list[tuple[str, str, bytes]]:
    """Identifier, class and pixels of each image."""
    classes = source.classes or ("",)
    return [
        (source.identifier(i), classes[source.labels[i]], source.load(i).tobytes())
        for i in range(len(source))
    ]


def require_equal(path: Path | str, out: Path | str) -> None:
    """Image i is image i, and what is recorded of the sets is equal."""
    one, other = opened(path), opened(out)
    assert one.keys() == other.keys()
    for split, source in one.items():
        assert told(source) == told(other[split])
        assert source.classes == other[split].classes
        assert contents(source) == contents(other[split])
        assert isinstance(source, StoredImages)

"""Which image goes into which shard, what shards are called, and what is noted of them.

Shards are ranges of one order of the images, so that each can be made by itself, and made again
with the same bytes. A tar that somebody reads from its start to its end is written in a shuffled
order: by class, it would hold a few classes only. Arrow files and the cache, which are read by
offset, have the order of the set. Where an image is cheap only beside its neighbours (compressed
parquet), all are written in the order in which they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sercli.data.archives.made import RECORD, VERSION, key_of_member, read_record
from sercli.data.images.files import StoredImages
from sercli.data.images.order import ordered
from sercli.data.images.splits import split_told
from sercli.data.images.unlabelled import PREFIX
from sercli.data.shards.encoding import Encoding, payload
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import UserError
from sercli.runs.files import write_json
from sercli.runs.places import parted

Form = Literal["wds", "arrow"]
QUALITY = 95
_USUAL_BYTES = 1_000_000_000  # of a shard
_SAMPLED = 256  # images whose sizes stand for all
_ENCODED = 16  # likewise, where they are to be made smaller
_UNKNOWN_SIZE = 100_000  # bytes of an image, where none of those can be read
# Bytes that a tar has beside an image: two headers, a label, and zeros that fill blocks.
_AROUND = {"wds": 1792, "arrow": 64}
_SEED = 0  # of the shuffled order: the same images make the same shards
_DIGITS = 4


@dataclass(frozen=True)
class Options:
    """How shards are made.

    Attributes:
        form: Tar as WebDataset has it, or Arrow as `datasets.load_from_disk` reads it.
        name: What names of tars begin with.
        images: Images of a shard; None: about 1 GB of them.
        encoding: What is done to images.
        skip_unreadable: Whether images that cannot be read are left out.
        shuffled: Whether tars are in a shuffled order.
        indexed: Whether places of images are kept beside each shard, for the cache.
    """

    form: Form = "wds"
    name: str = "images"
    images: int | None = None
    encoding: Encoding = field(default_factory=Encoding)
    skip_unreadable: bool = False
    shuffled: bool = True
    indexed: bool = False


@dataclass(frozen=True)
class SplitPlan:
    """The shards of one split.

    Attributes:
        source: Its images.
        order: int64 [N], which image is written where.
        each: Images of a shard; the last may have fewer.
        shards: Paths below the folder of all.
        digest: What tells its images from others.
        apart: Images whose key another has.
        in_order: Whether image i of the shards is image i of the source.
    """

    source: StoredImages
    order: NDArray[np.int64]
    each: int
    shards: tuple[str, ...]
    digest: str
    apart: frozenset[int]
    in_order: bool

    def indices(self, number: int) -> list[int]:
        """The images of a shard, in the order in which they are written."""
        return [*map(int, self.order[number * self.each : (number + 1) * self.each])]

    def said(self) -> dict[str, Any]:
        """What is noted of it."""
        return {
            "images": len(self.source),
            "each": self.each,
            "source": self.digest,
            "shards": [*self.shards],
        }


@dataclass(frozen=True)
class Plan:
    """All shards of a set.

    Attributes:
        out: Their folder.
        splits: By split, train first.
        options: How they are made.
        bytes: About how many they will be.
    """

    out: Path
    splits: dict[str, SplitPlan]
    options: Options
    bytes: int

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.splits.values())).source.classes

    @property
    def num_shards(self) -> int:
        return sum(len(split.shards) for split in self.splits.values())

    def said(self) -> dict[str, Any]:
        """What stands in the record."""
        return {
            "version": VERSION,
            "made_by": "ser data shard",
            "format": self.options.form,
            "labels": bool(self.classes),
            "resize": self.options.encoding.resize,
            "quality": self.options.encoding.quality if self.options.encoding.resize else None,
            "shard_images": self.options.images,
            "splits": {split: plan.said() for split, plan in self.splits.items()},
        }


def make_plan(sources: Sequence[ImageSource], out: Path, options: Options) -> Plan:
    """Decide where each image goes; what is noted in `out` already, stays.

    Args:
        sources: The splits, train first.
        out: The folder of the shards.
        options: How they are made.

    Raises:
        UserError: Images are rendered, classes cannot be named in a tar's list of classes, or
            `out` holds something else.
    """
    record = read_record(out) if out.is_dir() else None
    if record is None and out.is_dir() and any(not n.startswith(".") for n in os.listdir(out)):
        raise UserError(
            f"{out} holds something else", "shards go into a folder of their own", "name another"
        )
    splits: dict[str, SplitPlan] = {}
    total = 0
    for source in sources:
        if not isinstance(source, StoredImages):
            raise UserError(
                f"{source.name} is rendered, or chosen from a set",
                "shards are copies of whole sets of image files",
                "write it as files with `ser data shapes DIR`",
            )
        told = {} if record is None else record.said["splits"].get(source.split, {})
        size = _typical_size(source, options.encoding) + _AROUND[options.form]
        each = options.images or int(told.get("each", 0)) or max(1, round(_USUAL_BYTES / size))
        splits[source.split] = _plan_split(source, each, options)
        total += round(size * len(source))
    if options.form == "wds":
        _require_a_line_each(next(iter(splits.values())).source)
    plan = Plan(out, splits, options, total)
    if record is not None:
        _require_same(plan, record.said)
    return plan


def write_record(plan: Plan) -> None:
    """Note what there will be.

    Raises:
        UserError, RunFailed: It cannot be written.
    """
    write_json(plan.out / RECORD, plan.said())


def digest_of(source: ImageSource) -> str:
    """A hash of what tells a set from another, and from itself after a change, in hex.

    Of names, labels, classes, and the sizes of some files; no image is read for it.
    """
    told = [source.split, list(source.classes), source.made_of()]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(source.labels.astype("<i8").tobytes())
    for part in source.listed():
        digest.update(part)
    sizes = [source.file_size(index) for index in _spread(len(source), _SAMPLED)]
    digest.update(json.dumps(sizes).encode())
    return digest.hexdigest()


# -- One split ------------------------------------------------------------------------------------


def _plan_split(source: StoredImages, each: int, options: Options) -> SplitPlan:
    number = len(source)
    names = [source.identifier(i).encode("utf-8", "surrogateescape") for i in range(number)]
    shards = -(-number // each)
    digits = max(_DIGITS, len(str(shards - 1)))
    split = source.split
    tars = (f"{options.name}-{split}-{shard:0{digits}d}.tar" for shard in range(shards))
    tables = (f"{split}/data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards))
    wds = options.form == "wds"
    return SplitPlan(
        source=source,
        order=_order(source, options),
        each=each,
        shards=tuple(tars if wds else tables),
        digest=digest_of(source),
        apart=_apart(names) if wds else frozenset(),
        in_order=bool(np.array_equal(ordered(names, source.labels), np.arange(number)))
        and (wds or _keep_names(source, names)),
    )


def _order(source: StoredImages, options: Options) -> NDArray[np.int64]:
    lying = source.reading_order()
    if lying is not None:
        return lying
    if options.form == "wds" and options.shuffled:
        return np.random.default_rng(_SEED).permutation(len(source))
    return np.arange(len(source))


def _apart(names: Sequence[bytes]) -> frozenset[int]:
    """Images whose key in a tar another has, too."""
    keys = np.fromiter((hash(key_of_member(name)) for name in names), np.int64, len(names))
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return frozenset(np.flatnonzero(counts[inverse] > 1).tolist())


def _keep_names(source: StoredImages, names: Sequence[bytes]) -> bool:
    """Whether readers of tables call images so: those without a folder they put into a class's."""
    return not source.classes or all(b"/" in name for name in names)


def _spread(number: int, sample: int) -> list[int]:
    return [*map(int, np.unique(np.linspace(0, number - 1, min(number, sample)).astype(int)))]


def _typical_size(source: StoredImages, encoding: Encoding) -> float:
    """Bytes of an image as it is written, by a sample."""
    if encoding.resize is None:
        sizes = [source.file_size(index) for index in _spread(len(source), _SAMPLED)]
        known = [size for size in sizes if size is not None]
        if known:
            return max(1.0, float(np.mean(known)))
    found = []
    for index in _spread(len(source), _ENCODED):
        try:
            found.append(len(payload(source, index, encoding)[0]))
        except UnreadableImage:
            continue  # who copies it says so
    return max(1.0, float(np.mean(found))) if found else _UNKNOWN_SIZE


# -- What cannot be -------------------------------------------------------------------------------


def usual_name(path: str) -> str:
    """What tars of a set are called: as its folder, unless that says something of a split.

    Args:
        path: Of several sets, the first.
    """
    first = parted(path)[0].removeprefix(PREFIX)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(os.path.abspath(first))).strip("-")
    return name if name and split_told(name) is None else "images"


def _require_a_line_each(source: ImageSource) -> None:
    for name in source.classes:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise UserError(
                f"the class {name!r} of {source.name}",
                "beside tars, names of classes stand in a file, one a line",
                "rename it, or use --format arrow",
            )


def _require_same(plan: Plan, said: dict[str, Any]) -> None:
    """Refuse to go on with shards of other images, or made otherwise.

    Raises:
        UserError: They are such.
    """
    wanted = plan.said()
    if wanted == said:
        return
    differing = [key for key in wanted if key != "splits" and wanted[key] != said.get(key)]
    what = ", ".join(
        f"{key.replace('_', ' ')} {_said(said.get(key))}, not {_said(wanted[key])}"
        for key in differing
    )
    raise UserError(
        f"{plan.out} holds shards {f'made otherwise ({what})' if what else 'of other images'}",
        f"{RECORD} in it says so, and shards of one set are made alike",
        "name another folder, or remove that",
    )


def _said(value: object) -> str:
    return "unset" if value is None else str(value)

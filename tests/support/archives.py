"""A small set of noise pictures, and the archives that it comes in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from sercli.data.source import ImageSource

CLASSES = ("n01440764", "n01443537", "n02119789")
Files = Mapping[str, bytes]


@cache
def picture(number: int) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@cache
def pictures(train: int = 4, val: int = 2) -> Files:
    """`train/n01440764/n01440764_3.png` → its bytes; so many of each class."""
    return {
        f"{split}/{name}/{name}_{number}.png": picture(1000 * place + 10 * label + number)
        for place, (split, count) in enumerate((("train", train), ("val", val)))
        for label, name in enumerate(CLASSES)
        for number in range(count)
    }


def of_split(split: str, files: Files | None = None) -> Files:
    """The pictures of one split, by what they are called below it."""
    files = pictures() if files is None else files
    return {name.partition("/")[2]: data for name, data in files.items() if name.startswith(split)}


def write_folders(root: Path, files: Files | None = None) -> Path:
    for name, data in (pictures() if files is None else files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_bytes(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def write_zip(path: Path, files: Files, *, how: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def samples(files: Files, *, label: str = "cls") -> dict[str, bytes]:
    """Pictures of a split as WebDataset's samples, in another order than the folders'."""
    made: dict[str, bytes] = {}
    for path, data in sorted(files.items(), key=lambda item: item[0][::-1], reverse=True):
        folder, _, name = path.partition("/")
        key, _, suffix = name.rpartition(".")
        index = CLASSES.index(folder)
        made[f"{key}.{suffix}"] = data
        if label == "cls":
            made[f"{key}.cls"] = str(index).encode()
        elif label == "json":
            made[f"{key}.json"] = f'{{"label": {index}, "width": 8}}'.encode()
        elif label == "name":
            made[f"{key}.cls"] = folder.encode() + b"\n"
        made[f"{key}.txt"] = b"a caption"
    return made


def write_shards(root: Path, split: str, *, label: str = "cls", number: int = 3) -> Path:
    """Pictures of a split in shards as `timm/imagenet-1k-wds` has them."""
    name, digits = {"train": ("train", 4), "val": ("validation", 2)}[split]
    keys: dict[str, dict[str, bytes]] = {}
    for path, data in samples(of_split(split), label=label).items():
        keys.setdefault(path.partition(".")[0], {})[path] = data
    groups = list(keys.values())
    for shard in range(number):
        files = {path: data for group in groups[shard::number] for path, data in group.items()}
        write_tar(root / f"imagenet1k-{name}-{shard:0{digits}d}.tar", files)
    return root


def images_of(source: ImageSource) -> list[tuple[int, bytes]]:
    """Label and pixels of each image."""
    return [(int(source.labels[i]), source.load(i).tobytes()) for i in range(len(source))]

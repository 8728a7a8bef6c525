"""As many images as ImageNet has, in shards: listed once, then found; memory of loaders stays."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from sercli.data import open_source
from sercli.data.archives import opening, scanning
from sercli.data.loading import RowReader, load_rows

SHARDS, CLASSES, WORKERS = 64, 1000, 8
NUMBERS = [
    pytest.param(5_000, marks=pytest.mark.run),
    pytest.param(1_281_167, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
]


def small_jpeg():
    """A JPEG of at most one block of tar."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(file, "JPEG", quality=10, optimize=True)
    assert len(file.getvalue()) <= 512 * 2
    return file.getvalue()


def digits(values, width, base=10):
    """ASCII digits, uint8 [N, width]."""
    powers = base ** np.arange(width - 1, -1, -1, dtype=np.int64)
    return (values[:, None] // powers % base + ord("0")).astype(np.uint8)


def write_shards(root, number):
    """Tars of class folders: the same image again and again, by another name each time."""
    data = small_jpeg()
    member = tarfile.TarInfo("n00000000/n00000000_0000000.JPEG")
    member.size = len(data)
    header = np.frombuffer(member.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    padded = np.frombuffer(data.ljust(-(-len(data) // 512) * 512, b"\0"), np.uint8)
    template = np.concatenate([header, padded])
    for shard in range(SHARDS):
        images = np.arange(shard, number, SHARDS)
        blocks = np.repeat(template[None], len(images), axis=0)
        wnid = digits(images % CLASSES, 8)
        blocks[:, 1:9] = blocks[:, 11:19] = wnid
        blocks[:, 20:27] = digits(images, 7)
        blocks[:, 148:156] = ord(" ")
        sums = blocks[:, :512].sum(axis=1, dtype=np.int64)
        blocks[:, 148:154], blocks[:, 154] = digits(sums, 6, base=8), 0
        with open(root / f"train-{shard:05d}.tar", "wb") as file:
            file.write(blocks.tobytes())
            file.write(bytes(1024))


class Weighing(RowReader):
    """Reads images, and says now and then what memory is of this process alone."""

    def __init__(self, source):
        self.source, self.read_so_far = source, 0

    def layout(self):
        return {}

    def read(self, key, row):
        del row
        assert self.source.pixels(key).shape == (8, 8, 3)
        self.read_so_far += 1
        return (os.getpid(), own_memory()) if self.read_so_far % 100 == 0 else None


def own_memory():
    """Bytes that no other process shares."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux tells memory")
@pytest.mark.parametrize("number", NUMBERS)
def test_listed_once_and_memory_of_eight_loaders_stays(tmp_path, monkeypatch, number):
    write_shards(tmp_path, number)
    for file in tmp_path.iterdir():
        os.utime(file, (1e9, 1e9))
    listed = []

    def list_parts(parts):
        listed.extend(parts)
        return scanning.list_parts(parts)

    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    monkeypatch.setattr(opening, "list_parts", list_parts)
    for _ in range(2):
        source = open_source(str(tmp_path), "train", image_size=8)
        assert (len(source), len(source.classes)) == (number, CLASSES)
    assert len(listed) == SHARDS  # and not a second time
    assert source.identifier(0) == "n00000000/n00000000_0000000.JPEG"
    counts = np.bincount(source.labels)
    assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(number)
    batches = (part.tolist() for part in np.array_split(order, max(1, number // 256)))
    told = {}
    for batch in load_rows(Weighing(source), batches, rows=256, workers=WORKERS):
        for note in filter(None, batch.notes):
            told.setdefault(note[0], []).append(note[1])
    assert len(told) == WORKERS
    for sizes in told.values():
        tenth = max(1, len(sizes) // 10)  # what is touched first belongs to it from then on
        assert max(sizes[tenth:]) - sizes[tenth - 1] < 4 * 2**20

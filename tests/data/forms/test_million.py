"""As many images as ImageNet has, in shards: listed once, then found; memory of loaders stays."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from sercli.data import open_source
from sercli.data.images import kept
from sercli.data.loading import RowReader, load_rows

FILES, CLASSES, WORKERS = 64, 1000, 8
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
    """As `timm/imagenet-1k-wds`: the same image again and again, by another key, and its label."""
    image, label = block("0000000.jpg", small_jpeg()), block("0000000.cls", b"000")
    template = np.concatenate([image, label])
    for shard in range(FILES):
        images = np.arange(shard, number, FILES)
        blocks = np.repeat(template[None], len(images), axis=0)
        blocks[:, len(image) + 512 :][:, :3] = digits(images % CLASSES, 3)
        for start in (0, len(image)):
            header = blocks[:, start : start + 512]
            header[:, :7] = digits(images, 7)
            header[:, 148:156] = ord(" ")
            sums = header.sum(axis=1, dtype=np.int64)
            header[:, 148:154], header[:, 154] = digits(sums, 6, base=8), 0
        with open(root / f"train-{shard:04d}.tar", "wb") as file:
            file.write(blocks.tobytes())
            file.write(bytes(1024))
    return "0000000.jpg"


def block(name, data):
    """A member of a tar, its header and its bytes, uint8."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
    return np.frombuffer(member.tobuf(tarfile.USTAR_FORMAT) + padded, np.uint8)


def write_arrow(root, number):
    """As `save_to_disk`: the same image again and again, by another path."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow writes this form")
    data = small_jpeg()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel"}}
    features["label"]["names"] = [f"class {one:04}" for one in range(CLASSES)]
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema({"image": kind, "label": pa.int64()}).with_metadata(told)
    names = [f"data-{file:05}-of-{FILES:05}.arrow" for file in range(FILES)]
    for file, name in enumerate(names):
        images = np.arange(file, number, FILES)
        with pa.ipc.new_stream(root / name, schema) as out:
            for some in np.array_split(images, max(1, len(images) // 1000)):
                rows = [{"bytes": data, "path": f"{one:07}.jpg"} for one in some.tolist()]
                columns = [pa.array(rows, kind), pa.array(some % CLASSES, pa.int64())]
                out.write_batch(pa.record_batch(columns, schema=schema))
    (root / "state.json").write_text(json.dumps({"_data_files": names}))
    return "class 0000/0000000.jpg"


FORMS = [write_shards, write_arrow]


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
@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("number", NUMBERS)
def test_listed_once_and_memory_of_eight_loaders_stays(tmp_path, monkeypatch, number, write):
    first = write(tmp_path, number)
    for file in tmp_path.iterdir():
        os.utime(file, (1e9, 1e9))
    made = []

    def keep(place, content):
        made.append(place)
        kept_by_ser(place, content)

    kept_by_ser = kept.store
    monkeypatch.setattr(kept, "_SETTLED_NS", 0)
    monkeypatch.setattr(kept, "store", keep)
    for _ in range(2):
        source = open_source(str(tmp_path), "train", image_size=8)
        assert (len(source), len(source.classes)) == (number, CLASSES)
    assert len(set(made)) == len(made) > 0  # and not a second time
    assert source.identifier(0) == first
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

"""The same few images as class folders, and as tables."""

import io
import json

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ("ant", "bee", "cat")


def jpeg(seed, side=24):
    """Bytes of a JPEG that compress no further, as photographs do not."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def rows_of(split, number, *, seed=0):
    """(name, label, bytes) of images, in an order that is not that of classes."""
    salt = 1000 * seed + (500 if split == "val" else 0)
    return [(f"{split}_{i:03}.JPEG", i % 3, jpeg(salt + i)) for i in range(number)]


def features(names=CLASSES, image="image", label="label"):
    """The metadata that Hugging Face writes into a schema."""
    told = {image: {"_type": "Image"}}
    if names is not None:
        told[label] = {"names": list(names), "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": told}})}


def table(rows, *, names=CLASSES, image="image", label="label", paths=True):
    """A table of an image struct and int64 labels."""
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": data, "path": name if paths else None} for name, _, data in rows]
    columns = {
        image: pa.array(images, struct),
        label: pa.array([one for _, one, _ in rows], pa.int64()),
    }
    return pa.table(columns).replace_schema_metadata(features(names, image, label))


@pytest.fixture(autouse=True)
def _lists_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path_factory.mktemp("lists")))


@pytest.fixture
def images():
    """Split → rows."""
    return {"train": rows_of("train", 30), "val": rows_of("val", 12)}


@pytest.fixture
def folders(tmp_path, images):
    """The images as class folders."""
    root = tmp_path / "folders"
    for split, rows in images.items():
        for name, label, data in rows:
            place = root / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    return root


@pytest.fixture
def parquet(tmp_path, images):
    """The images as the Hub has them: two files of train, one of validation, one of test."""
    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    train = images["train"]
    for number, part in enumerate((train[:17], train[17:])):
        place = root / "data" / f"train-{number:05}-of-00002.parquet"
        pq.write_table(table(part), place, row_group_size=5)
    pq.write_table(table(images["val"]), root / "data" / "validation-00000-of-00001.parquet")
    hidden = [(name, -1, data) for name, _, data in rows_of("test", 4)]
    pq.write_table(table(hidden), root / "data" / "test-00000-of-00001.parquet")
    (root / "README.md").write_text("---\n")
    return root

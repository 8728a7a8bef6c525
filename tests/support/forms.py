"""A small set of JPEGs in the forms that sets are kept in, each by a program that is not ours.

Names are those of the public layouts: ImageNet's of its images and archives, those of
`timm/imagenet-1k-wds`, those of parquet on the Hugging Face Hub.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sercli.runs.places import joined

WNIDS = ("n01440764", "n01443537", "n02119789")
# The devkit's numbers of these, which are not in the order of the names.
DEVKIT_IDS = {"n01440764": 3, "n01443537": 1, "n02119789": 2}
NUM_TRAIN, NUM_VAL = 36, 12
SPLITS = ("train", "val")
# Four epochs of three steps of twelve images.
TRAINING = (
    "data.image_size=16", "data.workers=0", "model.patch_size=4", "model.width=16",
    "model.depth=4", "model.num_heads=2", "method.hidden_width=16", "method.output_width=8",
    "addon.projector_width=8", "train.batch_size=12", "train.epochs=4",
    "train.warmup_epochs=0.5", "train.log_steps=1", "train.checkpoint_epochs=0.4",
)  # fmt: skip


@cache
def jpegs() -> dict[str, bytes]:
    """`train/n01440764/n01440764_100.JPEG` → its bytes; sides, quality and colours differ."""
    files = {}
    for number in range(NUM_TRAIN + NUM_VAL):
        draws = np.random.default_rng(number)
        height, width = draws.integers(20, 40, 2)
        pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        file = io.BytesIO()
        image = image.convert("L") if number % 7 == 3 else image
        image.save(file, "JPEG", quality=75 + number % 20, progressive=number % 5 == 2)
        wnid = WNIDS[number % 3]
        if number < NUM_TRAIN:
            name = f"train/{wnid}/{wnid}_{number * 37 % 1000}.JPEG"  # 10 comes before 9
        else:
            name = f"val/{wnid}/ILSVRC2012_val_{number - NUM_TRAIN + 1:08d}.JPEG"
        files[name] = file.getvalue()
    return files


def samples(split: str) -> list[tuple[str, int, bytes]]:
    """(file name, class, bytes) of each image, in the order in which they were drawn: mixed."""
    found = []
    for path, data in jpegs().items():
        folder, wnid, name = path.split("/")
        if folder == split:
            found.append((name, WNIDS.index(wnid), data))
    return found


def write_folders(root: Path) -> Path:
    """The set as class folders."""
    for name, data in jpegs().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


# -- Writers: given the class folders, each writes below `root`, and returns what is typed ---------


def _tarfile(folders: Path, root: Path) -> str:
    path = root / "imagenet.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folders, "imagenet")
    return str(path)


def _tar(folders: Path, root: Path) -> str:
    """By the program, a tar a split."""
    for split in SPLITS:
        subprocess.run(["tar", "-cf", root / f"{split}.tar", "."], cwd=folders / split, check=True)
    return str(root)


def _zip(folders: Path, root: Path) -> str:
    path = root / "imagenet.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folders.rglob("*.JPEG"), reverse=True):
            archive.write(file, file.relative_to(folders))
    return str(path)


def _class_tars(folders: Path, root: Path) -> str:
    for split in SPLITS:
        (root / split).mkdir()
        for wnid in WNIDS:
            with tarfile.open(root / split / f"{wnid}.tar", "w") as archive:
                for file in sorted((folders / split / wnid).iterdir()):
                    archive.add(file, file.name)
    return str(root)


def _imagenet(folders: Path, root: Path) -> str:
    """ILSVRC2012's own archives: a tar of a tar a class, a flat tar, and the devkit."""
    from scipy.io import savemat

    _class_tars(folders, root)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for wnid in WNIDS:
            archive.add(root / "train" / f"{wnid}.tar", f"{wnid}.tar")
    for split in SPLITS:
        shutil.rmtree(root / split)
    files = sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for file in files:
            archive.add(file, file.name)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    truth = "".join(f"{DEVKIT_IDS[file.parent.name]}\n" for file in files)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = np.zeros((len(WNIDS), 1), kinds)
    for row, (wnid, number) in zip(rows[:, 0], DEVKIT_IDS.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"], row["num_children"] = number, wnid, "x", 0
    savemat(data / "meta.mat", {"synsets": rows})
    return str(root)


def _webdataset(_folders: Path, root: Path) -> str:
    """As `timm/imagenet-1k-wds`: the samples are mixed; what the indices mean lies beside."""
    writer = importlib.import_module("webdataset").ShardWriter
    for split, name in (("train", "train-%04d"), ("val", "validation-%02d")):
        with writer(str(root / f"imagenet1k-{name}.tar"), maxcount=5, verbose=0) as shards:
            for file, label, data in samples(split):
                told = {"label": label, "filename": file}
                key = file.partition(".")[0]
                shards.write({"__key__": key, "jpg": data, "cls": label, "json": told})
    (root / "classes.txt").write_text("\n".join(WNIDS) + "\n")
    return str(root)


def _braces(folders: Path, root: Path) -> str:
    _webdataset(folders, root)
    return f"{root}/imagenet1k-{{train-{{0000..0007}},validation-{{00..02}}}}.tar"


def _list(folders: Path, root: Path) -> str:
    for split in SPLITS:
        with open(root / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label"])
            for path in sorted((folders / split).rglob("*.JPEG"), key=lambda one: one.name[::-1]):
                rows.writerow([path, path.parent.name])
    return str(root)


def _roots(folders: Path, root: Path) -> str:
    """Two sets with some of the classes each."""
    places = []
    for name, wnids in (("one", WNIDS[:1]), ("two", WNIDS[1:])):
        for split in SPLITS:
            for wnid in wnids:
                shutil.copytree(folders / split / wnid, root / name / split / wnid)
        places.append(str(root / name))
    return joined(places)


def _unlabelled(folders: Path, _root: Path) -> str:
    return f"unlabelled:{folders}"


def _features() -> dict[str, str]:
    features = {"image": {"_type": "Image"}, "label": {"names": WNIDS, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _table(split: str):
    pa = importlib.import_module("pyarrow")
    rows = samples(split)
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array([{"bytes": data, "path": name} for name, _, data in rows], struct),
        "label": pa.array([label for _, label, _ in rows], pa.int64()),
    }
    return pa.table(columns).replace_schema_metadata(_features())


def _parquet(_folders: Path, root: Path) -> str:
    """As the Hub has it: `data/train-00000-of-00003.parquet`, in row groups."""
    parquet = importlib.import_module("pyarrow.parquet")
    (root / "data").mkdir()
    for split, name, number in (("train", "train", 3), ("val", "validation", 1)):
        whole = _table(split)
        for part in range(number):
            rows = len(whole) // number
            place = root / "data" / f"{name}-{part:05}-of-{number:05}.parquet"
            parquet.write_table(whole.slice(part * rows, rows), place, row_group_size=5)
    return str(root)


def _arrow(_folders: Path, root: Path) -> str:
    """As `save_to_disk` lays it down."""
    pa = importlib.import_module("pyarrow")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    for split, name in (("train", "train"), ("val", "validation")):
        (root / name).mkdir()
        whole, rows = _table(split), 12
        files = [f"data-{i:05}-of-{len(whole) // rows:05}.arrow" for i in range(len(whole) // rows)]
        for number, file in enumerate(files):
            part = whole.slice(number * rows, rows)
            with pa.ipc.new_stream(root / name / file, whole.schema) as out:
                out.write_table(part, max_chunksize=5)
        told = {"_data_files": [{"filename": file} for file in files], "_split": name}
        (root / name / "state.json").write_text(json.dumps(told))
    return str(root)


def _dataset(split: str):
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(WNIDS))}
    )
    rows = samples(split)
    images = [{"bytes": data, "path": name} for name, _, data in rows]
    columns = {"image": images, "label": [label for _, label, _ in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def _parquet_of_datasets(_folders: Path, root: Path) -> str:
    for split, name in (("train", "train"), ("val", "validation")):
        _dataset(split).to_parquet(root / "data" / f"{name}-00000-of-00001.parquet", batch_size=7)
    return str(root)


def _arrow_of_datasets(_folders: Path, root: Path) -> str:
    datasets = importlib.import_module("datasets")
    both = {"train": _dataset("train"), "validation": _dataset("val")}
    datasets.DatasetDict(both).save_to_disk(root, num_shards={"train": 3, "validation": 1})
    return str(root)


@dataclass(frozen=True)
class Form:
    """A form of the set.

    Attributes:
        write: Writes it; returns what a user types.
        needs: The package that writes it, where it is another than Python's own.
        labelled: Whether it says classes.
        same_names: Whether images are called as in class folders.
        tells_sizes: Whether an image's bytes are counted without reading it.
    """

    write: Callable[[Path, Path], str]
    needs: str | None = None
    labelled: bool = True
    same_names: bool = True
    tells_sizes: bool = True


FORMS = {
    "tar": Form(_tarfile),
    "tars of splits": Form(_tar),
    "zip": Form(_zip),
    "a tar a class": Form(_class_tars),
    "ImageNet's tars": Form(_imagenet),
    "shards": Form(_webdataset, "webdataset", same_names=False),
    "shards in braces": Form(_braces, "webdataset", same_names=False),
    "list": Form(_list),
    "two roots": Form(_roots, same_names=False),
    "unlabelled": Form(_unlabelled, labelled=False),
    "parquet": Form(_parquet, "pyarrow", tells_sizes=False),  # compressed
    "arrow": Form(_arrow, "pyarrow"),
    "parquet of datasets": Form(_parquet_of_datasets, "datasets"),
    "arrow of datasets": Form(_arrow_of_datasets, "datasets"),
}
# `datasets` comes with the extra dev-all, the others with dev.
EACH_FORM = [
    pytest.param(name, marks=pytest.mark.clients if form.needs == "datasets" else ())
    for name, form in FORMS.items()
]
LABELLED = [one for one in EACH_FORM if FORMS[str(one.values[0])].labelled]


class Written:
    """The forms below a folder, each written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = write_folders(root / "folders")
        self._typed: dict[str, str] = {}

    def typed(self, name: str) -> str:
        """What a user types for a form; the test is skipped where its writer is not installed."""
        form = FORMS[name]
        if form.needs is not None:
            pytest.importorskip(form.needs, reason=f"{form.needs} writes this form")
        if name not in self._typed:
            place = self.root / name.replace(" ", "-").replace("'", "")
            place.mkdir()
            self._typed[name] = form.write(self.folders, place)
        return self._typed[name]

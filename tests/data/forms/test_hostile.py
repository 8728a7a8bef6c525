"""What is hostile or broken ends `ser pretrain` in one line, status 2; nothing is left behind."""

import csv
import importlib
import io
import json
import os
import tarfile

import numpy as np
import pytest

from sercli.data import open_source
from sercli.engine.trainer import Trainer
from tests.support.command_line import run_in_process
from tests.support.forms import TRAINING, WNIDS, samples

MANY = 20_000


def add(archive, name, data=b"", *, claimed=None, kind=tarfile.REGTYPE):
    """A member; `claimed` bytes stand in its header, `data` are there."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data) if claimed is None else claimed
    archive.addfile(member)
    archive.fileobj.write(data + b"\0" * (-len(data) % 512))
    archive.offset = archive.fileobj.tell()


def shards(root, number=3, labels=3):
    """The training images in so many shards, with the names of `labels` classes beside them."""
    rows = samples("train")
    for shard in range(number):
        with tarfile.open(root / f"imagenet1k-train-{shard:04d}.tar", "w") as archive:
            for file, label, data in rows[shard::number]:
                key = file.partition(".")[0]
                add(archive, f"{key}.jpg", data)
                add(archive, f"{key}.cls", b"%d" % label)
    (root / "classes.txt").write_text("\n".join(WNIDS[:labels]) + "\n")
    return root / "imagenet1k-train-0001.tar"


def tar_of(root, *members):
    """One archive with two good images and these."""
    path = root / "set.tar"
    with tarfile.open(path, "w") as archive:
        for name, label, data in samples("train")[:2]:
            add(archive, f"{WNIDS[label]}/{name}", data)
        for name, more in members:
            add(archive, name, **more)
    return path


def truncated(root):
    path = shards(root)
    os.truncate(path, path.stat().st_size // 2)
    return root


def absent(root):
    shards(root)
    (root / "imagenet1k-train-0001.tar").unlink()
    return root / "imagenet1k-train-{0000..0002}.tar"


def way_out(root):
    return tar_of(root, ("../x.JPEG", {"data": b"x"}))


def absolute(root):
    return tar_of(root, ("/etc/x.JPEG", {"data": b"x"}))


def sparse(root):
    return tar_of(root, ("n01440764/x.JPEG", {"kind": tarfile.GNUTYPE_SPARSE}))


def terabytes(root):
    return tar_of(root, ("n01440764/x.JPEG", {"claimed": 2**42, "data": b"x" * 512}))


def terabytes_of_a_name(root):
    return tar_of(root, ("x", {"claimed": 2**42, "kind": tarfile.GNUTYPE_LONGNAME}))


def very_many(root):
    return tar_of(root, *((f"../{number}.JPEG", {}) for number in range(MANY)))


def nested(root):
    data = b""
    for _ in range(40):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            add(archive, "again.tar", data)
        data = file.getvalue()
    (root / "set.tar").write_bytes(data)
    return root / "set.tar"


def out_of_range(root):
    shards(root, labels=2)
    return root


def of_columns(root, columns, names=WNIDS):
    pa = pytest.importorskip("pyarrow", reason="pyarrow writes this form")
    parquet = importlib.import_module("pyarrow.parquet")
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": told})
    (root / "data").mkdir()
    parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet")
    return root


def rows_of_parquet(label=None):
    rows = samples("train")
    images = [{"bytes": data, "path": name} for name, _, data in rows]
    return {"image": images, "label": [one if label is None else label for _, one, _ in rows]}


def no_image_column(root):
    return of_columns(root, {"label": rows_of_parquet()["label"]})


def labels_beyond_the_names(root):
    return of_columns(root, rows_of_parquet(), WNIDS[:2])


def labels_below_zero(root):
    return of_columns(root, rows_of_parquet(label=-1))


def truncated_parquet(root):
    path = of_columns(root, rows_of_parquet()) / "data" / "train-00000-of-00001.parquet"
    os.truncate(path, path.stat().st_size - 100)
    return root


def written_list(root, *rows):
    with open(root / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "set.csv"


def list_without_paths(root):
    return written_list(root, ("id", "label"), (1, "cat"))


def list_of_what_is_missing(root):
    return written_list(root, ("path", "label"), ("nowhere/x.JPEG", "cat"))


CASES = {
    truncated: "imagenet1k-train-0001.tar: it ends behind",
    absent: "imagenet1k-train-0001.tar missing",
    way_out: "../x.JPEG leads out of the archive",
    absolute: "/etc/x.JPEG has an absolute path",
    sparse: "n01440764/x.JPEG is stored sparse",
    terabytes: "it ends within n01440764/x.JPEG",
    terabytes_of_a_name: "set.tar: it is damaged behind",
    very_many: "(and 100 more such)",
    nested: "holds no image",
    out_of_range: "out of range, 2 of",
    no_image_column: "train-00000-of-00001.parquet has no co",
    labels_beyond_the_names: "12 of 36 labels are not one of 0…1",
    labels_below_zero: "36 of 36 labels are not one of 0…2",
    truncated_parquet: "train-00000-of-00001.parquet is no whole",
    list_without_paths: "the header names no column of paths",
    list_of_what_is_missing: "set.csv, line 2: ",
}


def pretrain(path, out, monkeypatch, capsys):
    chosen = [word for one in TRAINING for word in ("--set", one)]
    words = ["pretrain", "--recipe", "shapes/moco-ser", "--data", path, "--out", out, *chosen]
    return run_in_process(words, monkeypatch, capsys)


def everything(root):
    return sorted((str(one), one.lstat().st_size) for one in root.rglob("*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_line_status_2_and_nothing_left(tmp_path, monkeypatch, capsys, case):
    (tmp_path / "data").mkdir()
    path = case(tmp_path / "data")
    before = everything(tmp_path)
    status, errors = pretrain(path, tmp_path / "run", monkeypatch, capsys)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("ser: ")
    assert CASES[case] in line
    assert len(line) < 1000
    assert everything(tmp_path) == before


def test_an_image_that_claims_terabytes_costs_no_memory(tmp_path, monkeypatch, capsys):
    """The archive does have them: as a hole of its file."""
    path = tar_of(tmp_path, ("n01440764/x.JPEG", {}))
    with tarfile.open(path) as archive:
        where = archive.getmembers()[-1].offset
    member = tarfile.TarInfo("n01440764/x.JPEG")
    member.size = 2**40
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(where + 512 + 2**40 + 1024)
    status, _ = run_in_process(["data", "check", path], monkeypatch, capsys)
    assert status != 0
    source = open_source(str(path), "train", image_size=16)
    assert max(source.file_size(index) for index in range(len(source))) == 2**40


def test_a_shard_that_is_replaced_by_a_longer_one(tmp_path, monkeypatch, capsys):
    """Between commands it is listed anew; within one, the run ends with its name."""
    (tmp_path / "data").mkdir()
    path = shards(tmp_path / "data")
    for place in (tmp_path / "data").iterdir():
        os.utime(place, (1e9, 1e9))  # settled, so that the list is kept
    assert len(open_source(str(path.parent), "train", image_size=16)) == len(samples("train"))

    def replace():  # in place: another file of that name leaves the one that is open
        with tarfile.open(path, "w") as archive:
            pixels = np.random.default_rng(0).bytes(3000)
            for number in range(40):
                add(archive, f"new_{number}.jpg", pixels)
                add(archive, f"new_{number}.cls", b"0")

    step = Trainer._train_step

    def stepping(trainer, *arguments):
        if not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            replace()
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", stepping)
    status, errors = pretrain(path.parent, tmp_path / "run", monkeypatch, capsys)
    assert status == 2, errors
    told = [line for line in errors.splitlines() if "has changed since the images" in line]
    assert len(told) == 1
    assert path.name in told[0]
    assert len(open_source(str(path.parent), "train", image_size=16)) == 36 - 12 + 40

"""The README's table: what you have → what you type. Each line is made, and typed."""

import os
import shlex
import shutil
from pathlib import Path

import pytest

from sercli.data import open_source
from sercli.data.registry import kind_of
from sercli.runs.places import joined
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process
from tests.support.forms import NUM_TRAIN, TRAINING, WNIDS
from tests.support.pages import codes, table
from tests.support.paths import ROOT

TYPED = [codes(typed)[0] for _, typed in table(ROOT / "README.md", "## Your images")]


def class_folders(written):
    shutil.copytree(written.folders, "imagenet")


def photos(written):
    os.mkdir("photos")
    for file in (written.folders / "train").rglob("*.JPEG"):
        shutil.copy(file, "photos")


def nested(written):
    shutil.copytree(written.folders / "train", "archive/2019/05")


def two_sets(written):
    for name, classes in (("cats", WNIDS[:1]), ("dogs", WNIDS[1:])):
        for wnid in classes:
            shutil.copytree(written.folders / "train" / wnid, f"{name}/{wnid}")


def images_csv(written):
    shutil.copytree(written.folders / "train", "pictures")
    lines = [f"{file},{file.parent.name}" for file in Path("pictures").rglob("*.JPEG")]
    Path("images.csv").write_text("\n".join(["path,label", *lines]))


def a_zip(written):
    os.link(written.typed("zip"), "imagenet.zip")


def as_(form, name):
    return lambda written: shutil.copytree(written.typed(form), name)


def some(written):
    class_folders(written)
    Path("some.txt").write_text("\n".join(WNIDS[:2]))


# What is typed → what makes it, of which kind it is, how many images of how many classes.
MADE = {
    "ser pretrain --data imagenet": (class_folders, "folder", NUM_TRAIN, 3),
    "ser pretrain --data photos": (photos, "unlabelled", NUM_TRAIN, 0),
    "ser pretrain --data unlabelled:archive": (nested, "unlabelled", NUM_TRAIN, 0),
    "ser pretrain --data cats --data dogs": (two_sets, "several", NUM_TRAIN, 3),
    "ser pretrain --data images.csv": (images_csv, "list", NUM_TRAIN, 3),
    "ser pretrain --data imagenet.zip": (a_zip, "archives", NUM_TRAIN, 3),
    "ser pretrain --data imagenet-1k-wds": (
        as_("shards", "imagenet-1k-wds"), "archives", NUM_TRAIN, 3,
    ),
    "ser pretrain --data 'shards/imagenet1k-train-{0000..0003}.tar'": (
        as_("shards", "shards"), "archives", 20, 3,
    ),
    "ser pretrain --data ILSVRC2012": (
        as_("ImageNet's tars", "ILSVRC2012"), "archives", NUM_TRAIN, 3,
    ),
    "ser pretrain --data imagenet-1k": (
        as_("parquet", "imagenet-1k"), "parquet", NUM_TRAIN, 3,
    ),
    "ser pretrain --data imagenet --set data.classes=some.txt --set data.share=0.1": (
        some, "folder", NUM_TRAIN, 3,
    ),
}  # fmt: skip


def words_of(typed):
    ser, *words = shlex.split(typed)
    assert ser == "ser"
    return words


def data_of(typed):
    words = words_of(typed)
    return joined([words[place + 1] for place, word in enumerate(words) if word == "--data"])


def test_every_line_is_made_here():
    assert list(MADE) == TYPED


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_is_taken_as_it_says(written, tmp_path, monkeypatch, typed):
    make, kind, number, num_classes = MADE[typed]
    monkeypatch.chdir(tmp_path)
    make(written)
    assert kind_of(data_of(typed)).name == kind
    source = open_source(data_of(typed), "train", image_size=16)
    assert (len(source), len(source.classes)) == (number, num_classes)


@pytest.mark.run
@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_trains(written, tmp_path, monkeypatch, capsys, typed):
    """As it stands, but for a recipe of seconds."""
    make, *_ = MADE[typed]
    monkeypatch.chdir(tmp_path)
    make(written)
    short = {one.partition("=")[0]: one for one in TRAINING}
    short |= {"train.epochs": "train.epochs=1", "train.batch_size": "train.batch_size=2"}
    short["addon.fraction"] = "addon.fraction=1"  # of two images
    tiny = [word for one in short.values() for word in ("--set", one)]
    status, errors = run_in_process([*words_of(typed), "--out", "run", *tiny], monkeypatch, capsys)
    assert status == 0, errors
    assert RunDir.open(Path("run")).read_run()["status"] == "done"

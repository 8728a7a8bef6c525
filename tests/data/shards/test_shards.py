"""Shards hold the images of a set as they are, and are made once."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sercli.data import open_source
from sercli.data.archives.made import RECORD
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind
from sercli.data.shards import making, writing
from sercli.data.shards.encoding import Encoding
from sercli.data.shards.plan import Options, make_plan, usual_name
from sercli.data.source import UnreadableImage
from sercli.errors import Interrupted, RunFailed, UserError
from tests.support.archives import (
    picture,
    pictures,
    write_folders,
    write_shards,
    write_tar,
    write_zip,
)
from tests.support.copies import copy, opened, require_equal, silent, told

FORMS = ("wds", "arrow")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "set")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "arrow":
        pytest.importorskip("pyarrow")
    return request.param


def shards_of(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.suffix in (".tar", ".arrow"))


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- The same images ------------------------------------------------------------------------------


def test_a_copy_is_the_set(folders: Path, tmp_path: Path, form: str) -> None:
    copy(folders, tmp_path / "out", form=form, images=5, name="set")
    require_equal(folders, tmp_path / "out")
    kind = find_kind(str(tmp_path / "out"))
    assert kind is not None
    assert kind.name == {"wds": "archives", "arrow": "arrow"}[form]


def test_a_copy_of_a_copy_is_the_set(folders: Path, tmp_path: Path, form: str) -> None:
    copy(folders, tmp_path / "one", form=form, images=5)
    copy(tmp_path / "one", tmp_path / "two", images=7)
    require_equal(folders, tmp_path / "two")


@pytest.mark.parametrize("of", ["tar", "zip", "shards", "list", "unlabelled", "one split"])
def test_any_kind_is_copied(tmp_path: Path, of: str) -> None:
    path: Path | str = {
        "tar": lambda: write_tar(tmp_path / "a" / "set.tar", pictures()),
        "zip": lambda: write_zip(tmp_path / "a" / "set.zip", pictures()),
        "shards": lambda: write_shards(write_shards(tmp_path / "a", "train"), "val"),
        "list": lambda: _list(tmp_path / "a"),
        "unlabelled": lambda: f"unlabelled:{write_folders(tmp_path / 'a')}",
        "one split": lambda: write_folders(tmp_path / "a") / "train",
    }[of]()
    copy(path, tmp_path / "out", images=5)
    require_equal(path, tmp_path / "out")


def _list(root: Path) -> Path:
    write_folders(root)
    lines = [f"train/{name}" for name in sorted(os.listdir(root / "train"))]
    names = [f"{folder}/{name}" for folder in lines for name in sorted(os.listdir(root / folder))]
    (root / "some.csv").write_text("".join(f"{n},{n.split('/')[1]}\n" for n in names))
    return root / "some.csv"


def test_several_sets_are_copied_as_one(tmp_path: Path) -> None:
    from sercli.runs.places import joined

    one, other = write_folders(tmp_path / "one"), write_folders(tmp_path / "other")
    both = joined([str(one), str(other)])
    copy(both, tmp_path / "out", images=9)
    require_equal(both, tmp_path / "out")


def test_names_that_tars_cannot_have_come_back(tmp_path: Path) -> None:
    names = ["a.b.jpg", "a.c.jpg", "x.png", "x.jpg", "100%.png", "%.png", "a b.png", "ü.png"]
    files = {f"train/one/{name}": picture(i) for i, name in enumerate(names)}
    files |= {f"train/t.w.o/{'long ' * 40}.png": picture(99), "train/one/in.ner/x.png": picture(98)}
    write_folders(tmp_path / "set", files)
    copy(tmp_path / "set", tmp_path / "out", images=3)
    require_equal(tmp_path / "set", tmp_path / "out")


def test_compressed_parquet_is_copied_page_after_page(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": picture(i), "path": f"{i * 7 % 40:02}.png"} for i in range(40)]
    labels = [i % 3 for i in range(40)]
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"image": rows, "label": labels}),
        tmp_path / "set" / "train-00000-of-00001.parquet",
        compression="zstd",
        use_dictionary=False,
        row_group_size=8,
    )
    source = opened(tmp_path / "set")["train"]
    order = source.reading_order()  # type: ignore[attr-defined]
    by_row = [source.identifier(i).rpartition("/")[2] for i in order]
    assert by_row == [row["path"] for row in rows]
    copy(tmp_path / "set", tmp_path / "out", images=16)
    with tarfile.open(tmp_path / "out" / "images-train-0000.tar") as archive:
        written = [name for name in archive.getnames() if name.endswith(".png")]
    assert [name.rpartition("/")[2] for name in written] == by_row[:16]
    one, other = opened(tmp_path / "set")["train"], opened(tmp_path / "out")["train"]
    assert told(one) == told(other)


# -- What others read -----------------------------------------------------------------------------


def test_tars_are_of_webdatasets_form_and_shuffled(folders: Path, tmp_path: Path) -> None:
    copy(folders, tmp_path / "out", images=8, name="pets")
    out = tmp_path / "out"
    assert [path.name for path in shards_of(out)] == [
        "pets-train-0000.tar", "pets-train-0001.tar", "pets-val-0000.tar"
    ]  # fmt: skip
    assert (out / "classes.txt").read_text() == "n01440764\nn01443537\nn02119789\n"
    labels = []
    for path in shards_of(out):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert all(
                (one.mtime, one.uid, one.uname, one.mode) == (0, 0, "", 0o644) for one in members
            )
            for image, label in zip(members[::2], members[1::2], strict=True):
                data, cls = (archive.extractfile(one).read() for one in (image, label))  # type: ignore[union-attr]
                assert label.name == image.name.replace(".png", ".cls")
                assert data == pictures()[f"{path.name.split('-')[1]}/{image.name}"]
                labels.append(int(cls))
    assert labels[:8] != sorted(labels[:8])
    assert set(labels[:8]) == {0, 1, 2}


def test_webdataset_reads_the_tars(folders: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    copy(folders, tmp_path / "out", images=8, name="pets")
    pattern = str(tmp_path / "out" / "pets-train-{0000..0001}.tar")
    read = webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    found = sorted((label, image.convert("RGB").tobytes()) for image, label in read)
    source = opened(folders)["train"]
    assert found == sorted((source.labels[i], source.load(i).tobytes()) for i in range(12))


def test_datasets_loads_the_arrow_files(folders: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    copy(folders, tmp_path / "out", form="arrow", images=5)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    for split, source in opened(folders).items():
        rows = loaded[split]
        assert tuple(rows.features["label"].names) == source.classes
        assert rows["label"] == source.labels.tolist()
        for i, row in enumerate(rows):
            assert row["image"].convert("RGB").tobytes() == source.load(i).tobytes()


def test_equal_images_make_equal_bytes(folders: Path, tmp_path: Path, form: str) -> None:
    for out, processes in (("one", 1), ("two", 1)):
        copy(folders, tmp_path / out, form=form, images=5, processes=processes)
    one, two = (shards_of(tmp_path / out) for out in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_checksums_are_sha256sums(folders: Path, tmp_path: Path, form: str) -> None:
    copy(folders, tmp_path / "out", form=form, images=5)
    for path in shards_of(tmp_path / "out"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        beside = path.with_name(f"{path.name}.sha256")
        assert beside.read_text() == f"{digest}  {path.name}\n"


# -- Smaller pictures -----------------------------------------------------------------------------


def _jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert(mode).save(file, "JPEG", quality=90)
    return file.getvalue()


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_larger_images_are_made_smaller_and_others_stay(tmp_path: Path, form: str) -> None:
    files = {
        "train/a/wide.jpg": _jpeg(64, 40),
        "train/a/tall.jpg": _jpeg(33, 90, "L"),
        "train/b/small.jpg": _jpeg(200, 32),
        "train/b/lossless.png": _png(50, 40),
    }
    write_folders(tmp_path / "set", files)
    copy(tmp_path / "set", tmp_path / "out", form=form, encoding=Encoding(32, 90))
    before, after = opened(tmp_path / "set")["train"], opened(tmp_path / "out")["train"]
    sizes = {}
    for i in range(4):
        assert before.identifier(i) == after.identifier(i)
        data = after.where(i)  # type: ignore[attr-defined]
        with open(data.path, "rb") as file:
            file.seek(data.offset)
            written = file.read(data.size)
        image = Image.open(io.BytesIO(written))
        sizes[after.identifier(i)] = image.size
        if after.identifier(i) == "b/small.jpg":
            assert written == files["train/b/small.jpg"]
        else:
            assert image.format == "JPEG"
            small = before.load(i).resize(image.size, Image.Resampling.BICUBIC)
            expected = io.BytesIO()
            small.save(expected, "JPEG", quality=90, subsampling="4:2:0")
            assert written == expected.getvalue()
    assert sizes == {
        "a/wide.jpg": (51, 32),
        "a/tall.jpg": (32, 87),
        "b/small.jpg": (200, 32),
        "b/lossless.png": (40, 32),
    }


# -- Going on -------------------------------------------------------------------------------------


def test_what_is_finished_and_whole_stays(folders: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    copy(folders, out, form=form, images=5)
    first, second, third, *_ = shards = shards_of(out)
    whole = {path: path.read_bytes() for path in shards}
    times = {path: path.stat().st_mtime_ns for path in shards}
    first.write_bytes(b"x" + whole[first][1:])
    second.unlink()
    third.with_name(f"{third.name}.sha256").unlink()
    made = copy(folders, out, form=form, images=5)
    assert (made.space.shards, made.space.kept) == (3, 2)
    assert {path: path.read_bytes() for path in shards_of(out)} == whole
    kept = [path for path in shards if path not in (first, second, third)]
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)
    require_equal(folders, out)


def test_the_size_of_shards_that_are_there_stays(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(folders, tmp_path / "out")
    monkeypatch.setattr("sercli.data.shards.plan._USUAL_BYTES", 1)
    assert copy(folders, tmp_path / "out").space.shards == 0


def test_shards_of_something_else_are_refused(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy(folders, out, images=5)
    said = refusal(copy, folders, out, images=6)
    assert "made otherwise (shard images 5, not 6)" in said
    assert "made otherwise (resize unset, not 32, " in refusal(
        copy, folders, out, images=5, encoding=Encoding(32)
    )
    (folders / "train" / "n01440764" / "another.png").write_bytes(picture(1))
    assert "of other images" in refusal(copy, folders, out, images=5)
    assert "holds something else" in refusal(copy, folders, folders.parent)


def test_shards_of_which_some_are_missing_are_no_set(
    folders: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out"
    copy(folders, out, form=form, images=5)
    shards_of(out)[1].unlink()
    said = refusal(open_source, str(out), "train", image_size=8)
    assert "lacks 1 of 5 shards" in said


def test_a_stop_leaves_no_half_of_a_shard(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    out, real, seen = tmp_path / "out", writing.payload, []

    def stopping(*arguments):
        seen.append(arguments)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(writing, "payload", stopping)
    with pytest.raises(Interrupted, match="the same command goes on"):
        copy(folders, out, form=form, images=5)
    assert len(shards_of(out)) == 1
    assert not [*out.rglob("*.part")]
    assert copy(folders, out, form=form, images=5).space.kept == 1
    require_equal(folders, out)


def test_a_full_disk_fails_in_a_line_and_what_is_finished_stays(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(writing.os, "fsync", full)
        with pytest.raises(RunFailed, match="No space left"):
            copy(folders, tmp_path / "out", images=5)
    assert not [*(tmp_path / "out").glob("*.part")]
    assert copy(folders, tmp_path / "out", images=5).space.kept >= 1
    require_equal(folders, tmp_path / "out")


def test_a_copy_that_does_not_fit_is_not_begun(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = making.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(making.shutil, "disk_usage", lambda _: free)
    said = refusal(copy, folders, tmp_path / "out")
    assert "are to be written, and 1 KB are free" in said
    assert not shards_of(tmp_path / "out")


def test_two_commands_do_not_write_one_folder(folders: Path, tmp_path: Path) -> None:
    with making.locked(tmp_path / "out", wait=False):
        assert "is being written by another" in refusal(copy, folders, tmp_path / "out")


# -- What cannot be read --------------------------------------------------------------------------


@pytest.fixture
def broken(folders: Path) -> Path:
    """A set with an image that is no image."""
    (folders / "train" / "n01440764" / "n01440764_0.png").write_bytes(b"no image")
    return folders


def _on_a_bad_sector(monkeypatch: pytest.MonkeyPatch) -> None:
    real = writing.payload

    def read(source, index, encoding):
        if source.split == "train" and source.identifier(index) == "n01443537/n01443537_1.png":
            raise UnreadableImage(source.describe(index), "Input/output error")
        return real(source, index, encoding)

    monkeypatch.setattr(writing, "payload", read)


def test_bytes_that_are_no_image_are_copied_as_they_are(broken: Path, tmp_path: Path) -> None:
    assert copy(broken, tmp_path / "out").unreadable == ()
    assert opened(tmp_path / "out")["train"].file_size(0) == 8


def test_shards_with_what_cannot_be_read_are_not_made(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_bad_sector(monkeypatch)
    made = copy(folders, tmp_path / "out", images=5)
    assert len(made.unreadable) == 1
    assert made.unreadable[0].endswith("n01443537_1.png: Input/output error")
    assert len(shards_of(tmp_path / "out")) == 4
    assert not [*(tmp_path / "out").glob("*.part")]
    assert "cannot be read" in str(making.unreadable_error(made, str(folders)))


def test_what_cannot_be_read_is_left_out_and_listed(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    _on_a_bad_sector(monkeypatch)
    out = tmp_path / "out"
    made = copy(broken, out, form=form, images=5, skip_unreadable=True, encoding=Encoding(4))
    assert len(made.unreadable) == 2
    listed = [line for path in sorted(out.rglob("*.unreadable.txt")) for line in path.open()]
    assert sorted(line.strip() for line in listed) == sorted(made.unreadable)
    assert len(opened(out)["train"]) == 10
    assert copy(broken, out, form=form, images=5, skip_unreadable=True,
                encoding=Encoding(4)).space.shards == 0  # fmt: skip


# -- Checks ---------------------------------------------------------------------------------------


def test_a_check_verifies_checksums(folders: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    copy(folders, out, form=form, images=5)
    assert check_data(out, Reading(silent)).problems == ()
    shard = shards_of(out)[0]
    data = bytearray(shard.read_bytes())
    place = data.index(b"PNG")
    data[place + 60] ^= 1  # within an image
    shard.write_bytes(data)
    problems = check_data(out, Reading(silent)).problems
    assert any(f"{shard.name} is not as" in line for line in problems)


def test_a_record_that_is_none_is_refused(folders: Path, tmp_path: Path) -> None:
    copy(folders, tmp_path / "out")
    (tmp_path / "out" / RECORD).write_text(
        '{"version": 1, "splits": {"train": {"shards": ["../x"]}}}'
    )
    assert "no record of shards" in refusal(
        open_source, str(tmp_path / "out"), "train", image_size=8
    )


def test_classes_that_are_no_line_are_refused_in_tars(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", {"a\nb/1.png": picture(1), "c/1.png": picture(2)})
    said = refusal(make_plan, [*opened(tmp_path / "set").values()], tmp_path / "out", Options())
    assert "--format arrow" in said


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/ImageNet 1k/", "ImageNet-1k"),
        ("/data/train", "images"),
        ("x/..", None),
        ("é", "images"),
    ],
)
def test_tars_are_called_as_the_folder(path: str, name: str | None) -> None:
    assert usual_name(path) == (name or Path.cwd().name)


@pytest.mark.run
def test_several_processes_are_stopped_and_go_on(tmp_path: Path) -> None:
    files = {f"train/{c}/{i:04}.png": picture(i % 50) for c in "ab" for i in range(3000)}
    write_folders(tmp_path / "set", files)
    words = [sys.executable, "-m", "sercli", "data", "shard", str(tmp_path / "set")]
    words += [str(tmp_path / "out"), "--shard-images", "100", "--workers", "2"]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not shards_of(tmp_path / "out") and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert (running.returncode, said.splitlines()[-1]) == (
        75, f"ser: {tmp_path / 'out'} is not complete; the same command goes on"
    )  # fmt: skip
    assert 0 < len(shards_of(tmp_path / "out")) < 60
    assert not [*(tmp_path / "out").glob("*.part")]
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "stay as they are" in again.stdout
    assert len(opened(tmp_path / "out")["train"]) == 6000


def test_several_sets_are_read_each_in_its_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sercli.data.images.folder import ImageFolder
    from sercli.runs.places import joined

    one, other = write_folders(tmp_path / "one"), write_folders(tmp_path / "other")
    both = joined([str(one), str(other)])
    assert opened(both)["train"].reading_order() is None  # type: ignore[attr-defined]
    monkeypatch.setattr(ImageFolder, "reading_order", lambda self: np.arange(len(self))[::-1])
    source = opened(both)["train"]
    read = [source.describe(i) for i in source.reading_order()]  # type: ignore[attr-defined]
    own = [opened(path)["train"] for path in (one, other)]
    assert read == [each.describe(i) for each in own for i in range(11, -1, -1)]

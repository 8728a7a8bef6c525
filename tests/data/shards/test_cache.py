"""`data.cache`: read from a copy, with nothing else about a set being another."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from sercli.data import ImageSource, open_source
from sercli.data.shards import cache, making
from sercli.data.shards.cache import CopiedImages, copy_to_cache
from sercli.data.source import UnreadableImage, contents
from sercli.errors import UserError
from tests.support.archives import picture, write_folders
from tests.support.command_line import run_in_process
from tests.support.copies import silent, told
from tests.support.training import SER


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "set")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "fast disk"


def opened(path: Path, place: Path | None, split: str = "train", **options) -> ImageSource:
    where = None if place is None else str(place)
    return open_source(str(path), split, image_size=8, cache=where, **options)


def fill(path: Path, place: Path, split: str = "train") -> None:
    copy_to_cache(opened(path, None, split), place, silent, silent)


def copies(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_without_a_copy_the_set_itself_is_read(folders: Path, place: Path) -> None:
    assert not isinstance(opened(folders, place), CopiedImages)
    place.mkdir()
    assert not isinstance(opened(folders, place), CopiedImages)


def test_images_are_read_from_the_copy_and_are_the_same(folders: Path, place: Path) -> None:
    original = opened(folders, None)
    before, facts = told(original), contents(original)
    fill(folders, place)
    copied = pickle.loads(pickle.dumps(opened(folders, place)))
    assert isinstance(copied, CopiedImages)
    assert told(copied) == before
    assert contents(copied) == facts
    assert [copied.describe(i) for i in range(12)] == [original.describe(i) for i in range(12)]
    assert np.array_equal(copied.labels, original.labels)
    for path in (folders / "train").rglob("*.png"):
        path.write_bytes(b"")  # the copy is what is read
    assert told(copied) == before


def test_some_classes_and_a_share_are_of_the_copy(folders: Path, place: Path) -> None:
    fill(folders, place)
    some = {"classes": ("n01440764", "n02119789"), "share": 0.5}
    plain, copied = (opened(folders, where, **some) for where in (None, place))
    assert told(plain) == told(copied)
    assert isinstance(copied._source._source, CopiedImages)  # type: ignore[attr-defined]


def test_a_copy_is_made_once(folders: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folders, place)
    assert len(copies(place)) == 1
    monkeypatch.setattr(cache, "make_shards", None)
    fill(folders, place)


@pytest.mark.parametrize("change", ["another image", "another size"])
def test_a_set_that_has_changed_has_another_copy(folders: Path, place: Path, change: str) -> None:
    fill(folders, place)
    folder = folders / "train" / "n01440764"
    name = {"another image": "new.png", "another size": "n01440764_0.png"}[change]
    (folder / name).write_bytes(picture(77) + b" ")
    assert not isinstance(opened(folders, place), CopiedImages)
    fill(folders, place)
    assert len(copies(place)) == 2
    assert told(opened(folders, place)) == told(opened(folders, None))


@pytest.mark.parametrize("harm", ["cut", "gone", "index", "checksum"])
def test_a_harmed_copy_is_not_read_and_made_again(folders: Path, place: Path, harm: str) -> None:
    fill(folders, place)
    (shard,) = place.rglob("*.tar")
    index = shard.with_name(f"{shard.name}.index")
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-512])
    elif harm == "index":
        index.write_bytes(index.read_bytes()[:-1] + b"x")
    elif harm == "gone":
        shard.unlink()
    else:
        shard.with_name(f"{shard.name}.sha256").unlink()
    assert not isinstance(opened(folders, place), CopiedImages)
    fill(folders, place)
    assert isinstance(opened(folders, place), CopiedImages)
    assert told(opened(folders, place)) == told(opened(folders, None))


def test_an_image_that_cannot_be_read_is_told_as_without_a_copy(folders: Path, place: Path) -> None:
    source = opened(folders, None)
    lost, broken = (folders / "train" / source.identifier(i) for i in (3, 5))
    broken.write_bytes(b"no image")
    lost.unlink()
    lost.symlink_to(broken)
    source = opened(folders, None)
    lost.unlink()
    copy_to_cache(source, place, silent, silent)
    places = cache._places_of(cache._folder(source, place), len(source))
    assert places is not None
    copied = CopiedImages(source, places)  # type: ignore[arg-type]
    for index, why in ((3, "No such file"), (5, "not a known image format")):
        for one in (source, copied):
            with pytest.raises(UnreadableImage, match=why) as error:
                one.load(index)
            assert error.value.path == source.describe(index)


def test_processes_wait_for_the_one_that_copies(folders: Path, place: Path) -> None:
    source, begun = opened(folders, None), []
    folder = cache._folder(source, place)
    waiting = threading.Thread(
        target=lambda: copy_to_cache(source, place, silent, lambda *_: begun.append(1))
    )
    with making.locked(folder, wait=False):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert not begun
    waiting.join(60)
    assert isinstance(opened(folders, place), CopiedImages)


def test_what_is_rendered_has_no_copy(place: Path) -> None:
    source = open_source("shapes", "train", image_size=16, num_images=4)
    with pytest.raises(UserError, match="rendered"):
        copy_to_cache(source, place, silent, silent)


@pytest.mark.run
def test_a_run_reads_its_copy_and_its_losses_are_the_same(
    tmp_path: Path, folders: Path, place: Path, monkeypatch, capsys
) -> None:
    settings = [one for one in SER if "num_" not in one or "num_heads" in one]
    words = [word for one in (*settings, "train.max_steps=2") for word in ("--set", one)]
    start = ["pretrain", "--recipe=shapes/moco-ser", f"--data={folders}", *words]
    for name, more in (("plain", []), ("cached", ["--set", f"data.cache={place}"])):
        status, said = run_in_process(
            [*start, f"--out={tmp_path / name}", *more], monkeypatch, capsys
        )
        assert status == 0, said
    assert len(copies(place)) == 2  # of train and of val
    from sercli.runs.run_dir import RunDir

    plain, cached = (RunDir.open(tmp_path / name) for name in ("plain", "cached"))
    rows = [[row["loss"] for row in run.read_metrics()] for run in (plain, cached)]
    assert rows[0] == rows[1]
    assert plain.read_run()["data"] == cached.read_run()["data"]
    told_of = os.stat(place)
    status, said = run_in_process(["knn", str(tmp_path / "cached")], monkeypatch, capsys)
    assert status == 0, said
    assert os.stat(place).st_mtime_ns == told_of.st_mtime_ns

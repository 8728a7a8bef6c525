"""The list of what archives hold: made once, found again, made anew where anything has changed."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sercli.data import has_split, open_source
from sercli.data.archives import opening, scanning
from sercli.data.archives.contents import Part
from sercli.data.archives.finding import find_archives
from sercli.data.archives.members import pack, unpack
from sercli.data.archives.opening import list_split
from sercli.data.images import kept
from sercli.errors import UserError
from tests.support.archives import (
    CLASSES,
    images_of,
    pictures,
    tar_bytes,
    write_shards,
    write_tar,
)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was listed; files that have just been written count as settled."""
    listed: list[str] = []

    def list_parts(parts: list[Part]):
        listed.extend(part.called for part in parts)
        return scanning.list_parts(parts)

    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    monkeypatch.setattr(opening, "list_parts", list_parts)
    return listed


def opened(path: Path | str, split: str = "train"):
    return open_source(str(path), split, image_size=32)


def test_an_archive_is_listed_once_for_both_splits(tmp_path: Path, scans: list[str]) -> None:
    path = write_tar(tmp_path / "x.tar", pictures())
    first = images_of(opened(path))
    assert images_of(opened(path)) == first
    assert len(opened(path, "val")) == 6
    assert has_split(str(path), "val")
    assert scans == ["x.tar"]


def test_that_there_is_no_val_is_kept_as_well(tmp_path: Path, scans: list[str]) -> None:
    path = write_tar(tmp_path / "x.tar", {"a/1.png": b"", "b/1.png": b""})
    assert not has_split(str(path), "val")
    assert not has_split(str(path), "val")
    assert scans == ["x.tar"]


def test_splits_told_by_names_are_listed_one_by_one(tmp_path: Path, scans: list[str]) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", {"a/1.png": b"", "b/1.png": b""})
    assert has_split(str(tmp_path), "val")
    assert scans == []
    opened(tmp_path)
    assert scans == ["train.tar"]


def test_what_changes_is_listed_anew(tmp_path: Path, scans: list[str]) -> None:
    root = write_shards(tmp_path, "train", number=2)
    names = ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"]
    assert opened(root).classes == ("0", "1", "2")
    os.replace(write_tar(tmp_path / "new", pictures()), tmp_path / "unrelated.tar")
    (tmp_path / "unrelated.tar").unlink()
    opened(root)
    assert scans == names
    (root / "classes.txt").write_text("\n".join(CLASSES))
    assert opened(root).classes == CLASSES
    assert scans == names * 2
    (root / "classes.txt").write_text("x\ny\nzebra\n")
    assert opened(root).classes == ("x", "y", "zebra")
    os.utime(root / names[0], (1, 1))
    opened(root)
    assert scans == names * 4
    more = write_tar(root / "imagenet1k-train-0002.tar", {"z.png": b"", "z.cls": b"0"})
    assert len(opened(root)) == 13
    more.unlink()
    assert len(opened(root)) == 12  # the list of these is still there
    assert len(scans) == 11


def test_what_tells_the_classes_of_imagenets_images_is_part_of_the_list(
    tmp_path: Path, scans: list[str]
) -> None:
    write_tar(tmp_path / "x.tar", {f"ILSVRC2012_val_{i:08d}.JPEG": b"" for i in (1, 2)})
    (tmp_path / "wnids.txt").write_text("n02119789\nn01440764\n")
    assert [*opened(tmp_path).labels] == [0, 1]
    assert opened(tmp_path).identifier(0) == "n01440764/ILSVRC2012_val_00000002.JPEG"
    assert scans == ["x.tar"]
    (tmp_path / "wnids.txt").write_text("n01440764\nn01440764\n")
    assert opened(tmp_path).classes == ("n01440764",)
    assert scans == ["x.tar"] * 2
    (tmp_path / "wnids.txt").write_text("n01440764\n")
    with pytest.raises(UserError, match="is image 2, and classes are told of 1 image;"):
        opened(tmp_path)


def test_a_list_with_faults_is_not_kept(tmp_path: Path, scans: list[str]) -> None:
    path = write_tar(tmp_path / "x.tar", {"../1.png": b""})
    for _ in range(2):
        with pytest.raises(UserError, match="leads out"):
            opened(path)
    assert scans == ["x.tar"] * 2


def test_a_list_that_is_damaged_is_made_anew(tmp_path: Path, scans: list[str], cache: Path) -> None:
    path = write_tar(tmp_path / "x.tar", pictures())
    first = images_of(opened(path))
    lists = sorted((cache / "archives").glob("*.list"))
    assert len(lists) == 2
    for one in lists:
        one.write_bytes(one.read_bytes()[:-1])
    assert images_of(opened(path)) == first
    assert scans == ["x.tar"] * 2


def test_a_cache_that_cannot_be_written_costs_another_listing(
    tmp_path: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x.tar", pictures())
    for place in ("/proc/nowhere", str(path)):
        monkeypatch.setenv("SER_CACHE", place)
        assert len(opened(path)) == 12
    assert scans == ["x.tar"] * 2


def test_while_one_process_lists_others_wait_and_find_its_list(
    tmp_path: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "kept" / "x.list"
    lock = place.with_suffix(".lock")
    with kept.by_one(place), open(lock, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not list(place.parent.iterdir())

    path = write_tar(tmp_path / "x.tar", pictures())
    alone = kept.by_one

    @contextmanager
    def after_another(_: Path):
        monkeypatch.setattr(kept, "by_one", alone)
        opened(path)  # what another process does while this one waits
        yield

    monkeypatch.setattr(kept, "by_one", after_another)
    assert len(opened(path)) == 12
    assert scans == ["x.tar"]


def test_the_bytes_of_a_list_give_it_back(tmp_path: Path) -> None:
    found = list_split(find_archives(str(write_shards(tmp_path, "train"))), "train")
    again = unpack(pack(found), found.files)
    assert again is not None
    for name in ("stamps", "archive", "offset", "size", "labels", "names", "starts"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    for name in ("classes", "form", "passed_over", "beside", "by_index"):
        assert getattr(again, name) == getattr(found, name)
    assert found.by_index
    assert unpack(pack(found), found.files[1:]) is None


@pytest.mark.parametrize(
    ("column", "value"),
    [("archive", 3), ("archive", -1), ("offset", -1), ("offset", 2**40), ("size", -1),
     ("size", 2**40), ("labels", 3), ("labels", -1), ("starts", 0)],
)  # fmt: skip
def test_a_list_that_leads_out_of_its_archives_is_none(
    tmp_path: Path, column: str, value: int
) -> None:
    found = list_split(find_archives(str(write_shards(tmp_path, "train"))), "train")
    values = getattr(found, column).copy()
    values[1] = value
    assert unpack(pack(replace(found, **{column: values})), found.files) is None
    end = found.stamps[found.archive[1], 2] - found.size[1]
    for offset, whole in ((end, True), (end + 1, False)):
        values = found.offset.copy()
        values[1] = offset
        again = unpack(pack(replace(found, offset=values)), found.files)
        assert (again is not None) == whole


def test_an_image_takes_less_than_a_hundred_bytes_of_memory(tmp_path: Path) -> None:
    files = {f"n01440764/n01440764_{number:05d}.JPEG": b"" for number in range(500)}
    found = list_split(find_archives(str(write_tar(tmp_path / "x.tar", files))), "train")
    columns = (found.archive, found.offset, found.size, found.labels, found.names, found.starts)
    assert sum(column.nbytes for column in columns) < 100 * len(found)


@pytest.mark.run
def test_several_processes_list_the_same(tmp_path: Path) -> None:
    root = write_shards(tmp_path, "train", number=5)
    inner = {f"n0144076{number}.tar": tar_bytes({"1.png": b""}) for number in range(5)}
    write_tar(root / "outer.tar", inner)
    parts = [Part(archive.path, archive.below) for archive in find_archives(str(root)).archives]
    here, there = (list(scanning.list_parts(parts, processes=number)) for number in (1, 2))
    assert here == there
    assert len(here[-1].inner) == 5
    inside = [list(scanning.list_parts(here[-1].inner, processes=number)) for number in (1, 2)]
    assert inside[0] == inside[1]

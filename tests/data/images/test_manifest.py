"""The list of a folder's images: kept, believed only while nothing changed, and done without."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sercli.data.images import kept, manifest
from sercli.data.images.folder import ImageFolder
from tests.support.pictures import age, files_of, folder, image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SER_CACHE", str(directory))
    return directory


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder that is scanned, rather than taken from the cache."""
    scanned: list[str] = []
    real = manifest.scan

    def counted(root: str, **how: bool) -> manifest.Manifest:
        scanned.append(root)
        return real(root, **how)

    monkeypatch.setattr(manifest, "scan", counted)
    return scanned


@pytest.fixture
def aged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as data sets are: nothing of it was touched lately.

    Nobody can set the time of a change, so what counts as lately is nothing here.
    """
    root = folder(tmp_path / "set", "n01/a.jpg", "n02/b.jpg", "n02/deep/é.jpg", "n01/@eaDir/x.jpg")
    age(root)
    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    return root


def test_a_folder_is_scanned_once(aged: Path, scans: list[str], cache: Path) -> None:
    before = sorted(map(str, aged.rglob("*")))
    first, second = ImageFolder(aged), ImageFolder(aged)
    assert len(scans) == 1
    assert files_of(first) == files_of(second)
    assert first.classes == second.classes
    np.testing.assert_array_equal(first.labels, second.labels)
    assert second.load(2).size == (8, 6)
    assert sorted(map(str, aged.rglob("*"))) == before
    assert len(list(cache.rglob("*.list"))) == 1


@pytest.mark.parametrize("where", ["n01", "n02/deep", "n03"])
def test_a_change_in_any_directory_is_seen(aged: Path, scans: list[str], where: str) -> None:
    old = files_of(ImageFolder(aged))
    image(aged / where / "new.jpg")
    new = files_of(ImageFolder(aged))
    assert len(scans) == 2
    assert {name for name, _ in new} - {name for name, _ in old} == {f"{where}/new.jpg"}
    age(aged)
    ImageFolder(aged)
    (aged / where / "new.jpg").unlink()
    if where == "n03":
        (aged / where).rmdir()
    assert files_of(ImageFolder(aged)) == old


def test_another_folder_under_the_same_name_is_seen(aged: Path, tmp_path: Path) -> None:
    ImageFolder(aged)
    aged.rename(tmp_path / "moved")
    folder(aged, "n05/a.jpg")
    assert ImageFolder(aged).classes == ("n05",)


def test_a_folder_still_being_filled_is_not_kept(tmp_path: Path, scans: list[str]) -> None:
    root = folder(tmp_path / "set", "n01/a.jpg")
    ImageFolder(root)
    ImageFolder(root)
    assert len(scans) == 2


def _stamped(body: bytes) -> bytes:
    return manifest._MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    "damage", ["cut", "noise", "empty", "flipped", "older", "lengths", "outside"]
)
def test_a_damaged_cache_is_replaced(
    aged: Path, scans: list[str], cache: Path, damage: str
) -> None:
    expected = files_of(ImageFolder(aged))
    (stored,) = cache.rglob("*.list")
    whole = stored.read_bytes()
    position = whole.index(b"a.jpg")
    body = whole[len(manifest._MAGIC) + 32 :]
    stored.unlink()
    stored.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "noise": bytes(range(256)) * 20,
            "empty": b"",
            "flipped": whole[:position] + b"X" + whole[position + 1 :],
            "older": b"PK\x03\x04" + whole,
            # By hand, with a hash that is right.
            "lengths": _stamped(b"\xff" * 8 + body[8:]),
            "outside": _stamped(body.replace(b"n02/deep", b"../../up")),
        }[damage]
    )
    assert files_of(ImageFolder(aged)) == expected
    assert len(scans) == 2
    assert files_of(ImageFolder(aged)) == expected
    assert len(scans) == 2


def test_a_pipe_in_the_cache_is_done_without(aged: Path, scans: list[str], cache: Path) -> None:
    expected = files_of(ImageFolder(aged))
    (stored,) = cache.rglob("*.list")
    stored.unlink()
    os.mkfifo(stored)
    assert files_of(ImageFolder(aged)) == expected
    assert len(scans) == 2
    assert stored.is_fifo()


def test_a_flipped_bit_anywhere_is_found(aged: Path) -> None:
    root = os.path.realpath(aged)
    content = manifest.pack(manifest.scan(root))
    assert manifest.unpack(content, root) is not None
    for bit in np.random.default_rng(0).choice(8 * len(content), 100, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert manifest.unpack(bytes(flipped), root) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 900), st.integers(0, 40))
def test_bytes_made_by_hand_are_a_list_or_none(new: bytes, position: int, removed: int) -> None:
    one = manifest.Manifest(
        root="/x",
        classes=("a", "b"),
        directories=(b"", b"a", b"b"),
        directory_class=np.array([-1, 0, 1], np.int32),
        stamps=np.zeros((3, 5), np.int64),
        file_directory=np.array([1, 2], np.int32),
        names=np.frombuffer(b"1.jpg2.jpg", np.uint8),
        offsets=np.array([0, 5, 10]),
        passed_over={"@eaDir": 2},
    )
    body = manifest.pack(one)[len(manifest._MAGIC) + 32 :]
    found = manifest.unpack(_stamped(body[:position] + new + body[position + removed :]), "/x")
    if found is not None:
        assert all(found.relative(index) for index in range(len(found)))
        assert found.class_counts().sum() == len(found)


def test_an_unwritable_cache_only_costs_time(
    aged: Path, scans: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "file/cache"))
    assert len(ImageFolder(aged)) == 3
    assert len(ImageFolder(aged)) == 3
    assert len(scans) == 2


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("SER_CACHE", "/s")
    assert kept.cache_directory() == Path("/s")
    monkeypatch.delenv("SER_CACHE")
    assert kept.cache_directory() == Path("/x/ser")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert kept.cache_directory() == Path("/h/.cache/ser")


def test_what_is_passed_over_is_kept(aged: Path, scans: list[str]) -> None:
    for _ in range(2):
        assert dict(ImageFolder(aged).passed_over) == {"@eaDir": 1}
    assert len(scans) == 1


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_times_that_were_set_back_hide_nothing(aged: Path, scans: list[str], change: str) -> None:
    # As rsync -a, tar and touch -r leave directories.
    ImageFolder(aged)
    time.sleep(0.02)  # more than a tick of the file system's clock
    if change == "added":
        image(aged / "n02/deep/new.jpg")
    elif change == "removed":
        (aged / "n02/deep/é.jpg").unlink()
        image(aged / "n02/deep/f.jpg")
    else:
        (aged / "n02/deep/é.jpg").rename(aged / "n02/deep/g.jpg")
    age(aged)
    assert files_of(ImageFolder(aged)) == files_of(ImageFolder(shutil.copytree(aged, f"{aged}-2")))
    assert len(scans) == 3


def test_a_link_that_leads_to_another_folder_is_seen(aged: Path, tmp_path: Path) -> None:
    first, second = folder(tmp_path / "1", "a.jpg"), folder(tmp_path / "2", "b.jpg")
    (aged / "n03").symlink_to(first)
    age(aged)
    ImageFolder(aged)
    (aged / "n03").unlink()
    (aged / "n03").symlink_to(second)
    age(aged)
    age(second)
    assert files_of(ImageFolder(aged))[-1] == ("n03/b.jpg", "n03")


def test_a_list_with_faults_is_not_kept(aged: Path, scans: list[str]) -> None:
    (aged / "n01/x.jpg").symlink_to("gone")
    age(aged)
    for _ in range(2):
        assert len(ImageFolder(aged).faults) == 1
    assert len(scans) == 2


def test_a_full_disk_leaves_nothing(
    aged: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(ImageFolder(aged)) == 3
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_user_without_a_home_has_no_cache(
    aged: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    for name in ("SER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert kept.cache_directory() is None
    for _ in range(2):
        assert len(ImageFolder(aged)) == 3
    assert len(scans) == 2


def test_what_is_no_absolute_path_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SER_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert kept.cache_directory() == Path("/h/.cache/ser")
    monkeypatch.setenv("HOME", "relative")
    assert kept.cache_directory() is None

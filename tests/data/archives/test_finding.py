"""Which archives are meant by a path, and what is none of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sercli.data.archives.finding import (
    Archive,
    find_archives,
    is_set_of_archives,
    missing_from_series,
    shard_number,
)
from sercli.data.images.splits import split_told
from sercli.data.registry import find_kind
from sercli.errors import UserError
from tests.support.archives import tar_bytes, write_tar
from tests.support.pictures import folder


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def below(path: Path | str) -> list[str]:
    return [archive.below for archive in find_archives(str(path)).archives]


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        find_archives(str(path))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k-validation-00.tar", "val"),
        ("ILSVRC2012_img_val.tar", "val"),
        ("Training/x.tar", "train"),
        ("data/valid/7.zip", "val"),
        ("test.tar", "test"),
        ("val/train.tar", "val"),
        ("restrained-values-0.tar", None),
        ("n01440764.tar", None),
    ],
)
def test_words_in_names_tell_splits(name: str, split: str | None) -> None:
    assert split_told(name) == split


def test_braces_are_spelled_as_a_shell_does(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}-{number:03d}.tar" for split in "ab" for number in range(8, 12)))
    named = [f"a-{number:03d}.tar" for number in range(8, 12)]
    assert below(f"{tmp_path}/a-{{008..011}}.tar") == named
    assert below(f"{tmp_path}/a-{{011..008}}.tar") == named
    assert below(f"{tmp_path}/{{a-0{{08,09}},b-01{{0..1}}}}.tar") == [
        *named[:2],
        "b-010.tar",
        "b-011.tar",
    ]
    assert below(f"{tmp_path}/{{a,b}}-*8.tar") == ["a-008.tar", "b-008.tar"]
    assert below(f"{tmp_path}/?-01[01].tar") == [*named[2:], "b-010.tar", "b-011.tar"]
    touch(tmp_path, "c{0..1}.tar")
    assert below(f"{tmp_path}/c{{0..1}}.tar") == ["c{0..1}.tar"]  # a file of that name


def test_files_that_braces_spell_must_be_there(tmp_path: Path) -> None:
    touch(tmp_path, "x-0.tar", "x-2.tar")
    assert "x-1.tar, x-3.tar missing; each of the 4 files" in refusal(f"{tmp_path}/x-{{0..3}}.tar")
    assert "matches no file" in refusal(f"{tmp_path}/y-*.tar")
    assert "spells more than 100,000 files" in refusal(f"{tmp_path}/x-{{0..9999999}}.tar")
    assert "spells more than 100,000" in refusal(f"{tmp_path}/{{0..999}}{{0..999}}{{0..999}}.tar")
    kind = find_kind(f"{tmp_path}/x-{{0..3}}.tar")
    assert kind is not None
    assert kind.name == "archives"


def test_a_directory_has_its_archives_and_those_of_its_splits(tmp_path: Path) -> None:
    names = ("b.tar", "a.ZIP", "train/x.tar", "my_val/y.tar", "data/z.tar", "other/w.tar")
    touch(tmp_path, *names, ".hidden.tar", "._b.tar", "notes.txt", "ILSVRC2012_devkit_t12.tar.gz")
    assert sorted(below(tmp_path)) == sorted(names[:5])
    found = find_archives(str(tmp_path))
    assert found.passed_over == {
        ".*": 1,
        "._*": 1,
        "archives without images by their names": 1,
    }
    assert {str(split): len(group) for split, group in found.by_split().items()} == {
        "train": 4,
        "val": 1,
    }


@pytest.mark.parametrize(
    "files",
    [
        ("n01/a.jpg", "n02/b.jpg", "train.tar"),  # class folders, and where they came from
        ("train/n01/a.jpg", "val/n01/b.jpg", "ILSVRC2012_img_train.tar"),
        ("n01/deep/er/a.jpg", "x.zip"),
        ("a.jpg", "x.tar"),
        ("train/x.tar", "val/n01/a.jpg"),
    ],
)
def test_a_folder_of_images_is_no_set_of_archives(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        if file.endswith(".jpg"):
            folder(tmp_path, file)
        else:
            write_tar(tmp_path / file, {"a/1.png": b""})
    assert not is_set_of_archives(str(tmp_path))
    kind = find_kind(str(tmp_path))
    assert kind is not None
    assert kind.name != "archives"


def test_other_data_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x.npz", "list.txt", "coco/annotations/instances_val2017.json", "e/x.txt")
    touch(tmp_path, "coco/train2017.zip", "shapes/x.tar")
    for name in ("x.npz", "list.txt", "e", "missing.tar", "{a,b}.csv", "a\0b"):
        assert not is_set_of_archives(str(tmp_path / name))
    assert not is_set_of_archives("")
    for name, kind in (("coco", "coco"), ("shapes", "archives")):
        found = find_kind(str(tmp_path / name))
        assert found is not None
        assert found.name == kind
    monkeypatch.chdir(tmp_path)
    found = find_kind("shapes")
    assert found is not None
    assert found.name == "shapes"  # the embedded world, whatever lies here
    (tmp_path / "unknown").write_bytes(tar_bytes({"a/1.png": b""}))
    assert is_set_of_archives(str(tmp_path / "unknown"))


@pytest.mark.parametrize(
    ("stem", "told"),
    [
        ("imagenet1k-train-0007", ("imagenet1k-train-", 7, None)),
        ("00012", ("", 12, None)),
        ("train-00000-of-00294", ("train-", 0, 294)),
        ("part0001", ("part", 1, None)),
        ("n01440764", None),
        ("class1", None),
        ("cat", None),
    ],
)
def test_a_shard_is_told_from_a_class_by_its_name(stem: str, told: object) -> None:
    assert shard_number(stem) == told


def test_what_is_missing_from_a_series_is_named() -> None:
    def lines(*names: str) -> list[str]:
        return missing_from_series([Archive(f"/d/{name}", name) for name in names])

    assert lines("x-0.tar", "x-1.tar", "x-2.tar") == []
    assert lines("x-01.tar", "x-04.tar", "x-05.tar") == [
        "x-02.tar, x-03.tar missing from a series of 5; fetch what is missing"
    ]
    (line,) = lines("val/x-00.tar", "val/x-02.tar", "y.tar")
    assert line.startswith("val/x-01.tar missing")
    (line,) = lines("t-00000-of-00003.tar", "t-00001-of-00003.tar")
    assert line.startswith("t-00002-of-00003.tar missing from a series of 3")
    assert lines("t-00001-of-00002.tar", "t-00002-of-00002.tar") == []
    assert lines("a_3.tar", "a_900.tar", "n01440764.tar", "n01443537.tar") == []

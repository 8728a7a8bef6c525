"""The same images, labels and order in every archive as in class folders."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sercli.data import has_split, open_source
from sercli.data.images.decode import read_pixels
from sercli.data.registry import find_kind, require_labelled
from sercli.errors import UserError
from tests.data.test_imagenet_labels import meta
from tests.support.archives import (
    CLASSES,
    images_of,
    of_split,
    picture,
    pictures,
    tar_bytes,
    write_folders,
    write_shards,
    write_tar,
    write_zip,
)

SPLITS = ("train", "val")


def opened(path: Path | str, split: str = "train"):
    return open_source(str(path), split, image_size=32)


def refusal(path: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        opened(path, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def around(root: Path) -> Path:
    files = {f"./imagenet/CLS-LOC/{name}": data for name, data in pictures().items()}
    return write_tar(root / "set.tar", files | {"imagenet/readme.txt": b""})


def two_tars(root: Path) -> Path:
    for split in SPLITS:
        write_tar(root / f"{split}.tar", of_split(split))
    write_tar(root / "test.tar", {"x.png": b"of no split"})
    return root


def two_tars_with_folders(root: Path) -> Path:
    for split in SPLITS:
        files = {f"{split}/{name}": data for name, data in of_split(split).items()}
        write_tar(root / f"{split}.tar", files)
    return root


def parts(root: Path) -> Path:
    files = list(of_split("train").items())
    for place in range(3):
        write_tar(root / f"train-part{place}.tar", dict(files[place::3]))
    return write_zip(root / "val.zip", of_split("val")).parent


def class_tars(root: Path) -> Path:
    for split in SPLITS:
        for name in CLASSES:
            files = {
                path.rpartition("/")[2]: data
                for path, data in of_split(split).items()
                if path.startswith(name)
            }
            write_tar(root / split / f"{name}.tar", files)
    return root


def imagenet(root: Path) -> Path:
    inner = {}
    for name in CLASSES:
        files = {
            path.rpartition("/")[2]: data
            for path, data in of_split("train").items()
            if path.startswith(name)
        }
        inner[f"{name}.tar"] = tar_bytes(files)
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    order = sorted(of_split("val").items(), key=lambda item: item[0][::-1])  # classes in turn
    numbered = {
        f"ILSVRC2012_val_{number:08d}.png": data for number, (_, data) in enumerate(order, 1)
    }
    write_tar(root / "ILSVRC2012_img_val.tar", numbered)
    # As in meta(): 3, 4 and 1 are the numbers of the classes in their order.
    ids = {CLASSES[0]: 3, CLASSES[1]: 4, CLASSES[2]: 1}
    truth = "".join(f"{ids[name.partition('/')[0]]}\n" for name, _ in order)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    (data / "meta.mat").write_bytes(meta({4: CLASSES[1]}))
    (root / "ILSVRC2012_bbox_train_v2.tar.gz").write_bytes(b"\x1f\x8bboxes")
    write_tar(root / "ILSVRC2012_img_test_v10102019.tar", {"ILSVRC2012_test_00000001.png": b""})
    return root


def shards(root: Path) -> Path:
    for split in SPLITS:
        write_shards(root, split)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def shards_by(label: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        for split in SPLITS:
            write_shards(root / split, split, label=label)
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        return root

    return write


def pattern(root: Path) -> str:
    shards(root)
    return str(root / "imagenet1k-{train-{0000..0002},validation-{00..02}}.tar")


FORMS = {
    "tar": lambda root: write_tar(root / "set.tar", pictures()),
    "tar of another name": lambda root: write_tar(root / "set.images", pictures()),
    "tar around": around,
    "zip": lambda root: write_zip(root / "set.zip", pictures()),
    "zip in a folder": lambda root: write_zip(root / "x" / "set.zip", pictures()).parent,
    "two tars": two_tars,
    "two tars with folders": two_tars_with_folders,
    "parts": parts,
    "a tar a class": class_tars,
    "ImageNet's tars": imagenet,
    "shards": shards,
    "shards by name": shards_by("name"),
    "shards by json": shards_by("json"),
    "pattern": pattern,
    "glob": lambda root: f"{shards(root)}/imagenet1k-*.tar",
}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_is_the_folder_that_it_would_unpack_to(tmp_path: Path, form: str) -> None:
    folders = write_folders(tmp_path / "folders")
    path = str(FORMS[form](tmp_path / "packed"))
    kind = find_kind(path)
    assert kind is not None
    assert kind.name == "archives"
    for split in SPLITS:
        source, expected = opened(path, split), opened(folders, split)
        assert has_split(path, split)
        assert source.classes == expected.classes == CLASSES
        assert (source.name, source.split) == (path, split)
        assert source.labels.dtype == np.int64
        assert images_of(source) == images_of(expected)
        ids = [source.identifier(index) for index in range(len(source))]
        assert len(set(ids)) == len(ids)
        if not any(word in form for word in ("shards", "pattern", "glob", "ImageNet")):
            assert ids == [expected.identifier(index) for index in range(len(expected))]
        sizes = [source.file_size(index) for index in range(len(source))]
        assert sizes == [expected.file_size(index) for index in range(len(expected))]
        with pytest.raises(IndexError):
            source.load(len(source))


def test_imagenets_images_are_called_as_in_class_folders(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    assert opened(root).identifier(0) == "n01440764/n01440764_0.png"
    assert opened(root, "val").identifier(0).startswith("n01440764/ILSVRC2012_val_000000")
    (root / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    assert "tells the classes of ImageNet's validation images" in refusal(root, "val")
    (root / "truth.txt").write_text("3\n1\n")
    assert "not places among the sorted wnids" in refusal(root, "val")
    assert opened(root).classes == CLASSES  # train needs no devkit


def test_a_set_of_one_split_is_all_train(tmp_path: Path) -> None:
    for files in (of_split("val"), {f"val/{n}": d for n, d in of_split("val").items()}):
        path = write_tar(tmp_path / "imagenet-val.tar", files)
        assert len(opened(path)) == 6
        assert not has_split(str(path), "val")
        assert "has no val images" in refusal(path, "val")


def test_a_directory_of_val_alone_has_no_train(tmp_path: Path) -> None:
    """As with class folders and tables; what is named by itself is all train."""
    path = write_tar(tmp_path / "set" / "val.tar", of_split("val"))
    folders = write_folders(
        tmp_path / "folders", {f"val/{n}": d for n, d in of_split("val").items()}
    )
    for root in (tmp_path / "set", folders):
        assert [has_split(str(root), split) for split in SPLITS] == [False, True]
        assert images_of(opened(root, "val")) == images_of(opened(path))
        assert "has no train" in refusal(root)
    assert len(opened(f"{tmp_path}/set/v*.tar")) == 6
    (tmp_path / "set" / "val.tar").rename(tmp_path / "set" / "test.tar")
    assert len(opened(tmp_path / "set")) == 6


def test_archives_whose_names_tell_no_split_are_of_train_and_said(tmp_path: Path) -> None:
    for name, split in (("train", "train"), ("val", "val")):
        write_tar(tmp_path / f"{name}.tar", of_split(split))
    assert opened(tmp_path).remarks() == ()
    write_tar(tmp_path / "more.tar", {f"{CLASSES[0]}/more.png": picture(77)})
    assert (len(opened(tmp_path)), len(opened(tmp_path, "val"))) == (13, 6)
    (line,) = opened(tmp_path).remarks()
    assert line.startswith(f"more.tar in {tmp_path} tell no split by their names")
    (tmp_path / "train.tar").unlink()
    assert (len(opened(tmp_path)), opened(tmp_path).remarks()) == (1, ())


def test_images_of_test_are_left_out(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {**pictures(), "test/a.png": b"", "test/b.png": b""})
    assert (len(opened(path)), len(opened(path, "val"))) == (12, 6)


def test_archives_without_labels_or_folders_have_no_classes(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "photos.tar", {"b.png": b"", "a.jpg": b"", "c.txt": b""})
    assert (opened(one).classes, opened(one).labels.tolist()) == ((), [0, 0])
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number:05d}.tar", {f"{number}.jpg": b""})
    assert opened(tmp_path / "shards").classes == ()
    for split in SPLITS:
        write_tar(tmp_path / "two" / f"{split}.tar", {"a.jpg": b""})
    assert (opened(tmp_path / "two").classes, len(opened(tmp_path / "two", "val"))) == ((), 1)


def test_archives_of_images_without_folders_are_a_class_each(tmp_path: Path) -> None:
    for name in ("train", "car", "class0", "class1"):  # the first is one that runs on rails
        write_tar(tmp_path / "set" / f"{name}.tar", {"a.jpg": b"", "b.jpg": b""})
    source = opened(tmp_path / "set")
    assert source.classes == ("car", "class0", "class1", "train")
    assert source.identifier(2) == "class0/a.jpg"
    alone = write_tar(tmp_path / "n01440764.tar", {"a.jpg": b""})
    assert opened(alone).classes == ("n01440764",)


@pytest.mark.parametrize("stems", [("part1", "part2"), ("a1", "a20", "a3"), ("x", "x2")])
def test_parts_and_classes_that_only_a_number_tells_apart_are_asked(
    tmp_path: Path, stems: tuple[str, ...]
) -> None:
    for stem in stems:
        write_tar(tmp_path / "loose" / f"{stem}.tar", {f"{stem}.png": picture(1)})
        write_tar(tmp_path / "folders" / f"{stem}.tar", {f"cat/{stem}.png": picture(1)})
    text = refusal(tmp_path / "loose")
    assert (
        f"{sorted(stems)[0]} and {sorted(stems)[1]} hold images without folders or labels" in text
    )
    assert opened(tmp_path / "folders").classes == ("cat",)
    write_tar(tmp_path / "loose" / "zebra.tar", {"z.png": picture(1)})
    assert len(opened(tmp_path / "loose").classes) == len(stems) + 1


def test_labels_are_numbers_where_nothing_names_them(tmp_path: Path) -> None:
    files = {}
    for number in (0, 2, 10, 2):
        files |= {f"{len(files):03d}.jpg": b"", f"{len(files):03d}.cls": b"%d" % number}
    source = opened(write_tar(tmp_path / "x-000.tar", files))
    assert source.classes == ("0", "2", "10")  # by number, not by letters
    assert source.labels.tolist() == [0, 1, 1, 2]


def test_a_key_ends_at_the_first_dot(tmp_path: Path) -> None:
    files = {"a/b.c.jpg": b"x", "a/b.cls": b"1", "a/c.jpeg": b"y", "a/c.cls": b"0"}
    source = opened(write_tar(tmp_path / "x.tar", files))
    assert [source.identifier(index) for index in range(2)] == ["a/c.jpeg", "a/b.c.jpg"]


def test_a_label_by_an_index_is_named_by_the_file_of_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-0.tar", {"a.jpg": b"", "a.cls": b"1"})
    (tmp_path / "classes.txt").write_bytes("\ufeffzebra\r\nhen, cock\r\n".encode())
    assert opened(tmp_path).classes == ("zebra", "hen, cock")
    assert opened(tmp_path).labels.tolist() == [1]
    (tmp_path / "classes.txt").write_text("zebra\n")
    assert "1 label out of range, 1 of a.jpg for one; 1 classes are numbered 0…0" in refusal(
        tmp_path
    )
    (tmp_path / "classes.txt").write_text("zebra\nzebra\n")
    assert "line 2 of" in refusal(tmp_path)


def test_classes_of_val_are_those_of_train(tmp_path: Path) -> None:
    files = dict(pictures())
    files = {name: data for name, data in files.items() if not name.startswith("val/n01440764")}
    assert "1 class only in train/ (n01440764)" in refusal(
        write_tar(tmp_path / "x.tar", files), "val"
    )


def test_what_systems_add_is_passed_over(tmp_path: Path) -> None:
    added = ("a/._1.png", "__MACOSX/a/._1.png", "PaxHeaders.7/a/1.png", ".git/x.png", "a/Thumbs.db")
    files = dict.fromkeys(added, b"") | {"a/1.png": b"", "b/1.png": b""}
    for path in (write_tar(tmp_path / "x.tar", files), write_zip(tmp_path / "x.zip", files)):
        assert len(opened(path)) == 2
    write_tar(tmp_path / "d" / "x.tar", files)
    (tmp_path / "d" / "._x.tar").write_bytes(b"no archive")
    assert len(opened(tmp_path / "d")) == 2


def test_names_of_every_kind_of_tar_are_read(tmp_path: Path) -> None:
    names = ["a.png", f"{'é' * 90}/{'x' * 120}1.png", f"{'é' * 90}/{'x' * 120}2.png"]
    files = {f"n01/{name}": b"x" * number for number, name in enumerate(names)}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{form}.tar"
        path.write_bytes(tar_bytes(files, form))
        source = opened(path)
        assert [source.identifier(index) for index in range(3)] == list(files)
        assert [source.file_size(index) for index in range(3)] == [0, 1, 2]
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as made:
        made.addfile(tarfile.TarInfo("n01/\xe9.png"))
    (tmp_path / "latin.tar").write_bytes(file.getvalue())
    assert opened(tmp_path / "latin.tar").identifier(0) == r"n01/\xe9.png"


def test_a_source_goes_to_other_processes_and_reads_the_same(tmp_path: Path) -> None:
    source = opened(write_tar(tmp_path / "x.tar", pictures()))
    again = pickle.loads(pickle.dumps(source))
    assert images_of(again) == images_of(source)
    for index in range(len(source)):
        pixels = read_pixels(source.where(index), called="it")
        assert np.array_equal(pixels, np.asarray(source.load(index)))


def test_shards_by_an_independent_writer(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="writes the shards")
    folders = write_folders(tmp_path / "folders")
    for split, name in (("train", "train-%04d"), ("val", "validation-%02d")):
        target = tmp_path / "wds"
        target.mkdir(exist_ok=True)
        with webdataset.ShardWriter(
            str(target / f"imagenet1k-{name}.tar"), maxcount=2, verbose=0
        ) as writer:
            for path, data in of_split(split).items():
                folder, _, file = path.partition("/")
                writer.write(
                    {"__key__": file.partition(".")[0], "png": data, "cls": CLASSES.index(folder)}
                )
    (tmp_path / "wds" / "classes.txt").write_text("\n".join(CLASSES))
    for split in SPLITS:
        assert images_of(opened(tmp_path / "wds", split)) == images_of(opened(folders, split))


@pytest.mark.parametrize("write", [write_folders, write_tar, write_zip])
def test_folders_called_by_numbers_are_in_the_order_of_folders(tmp_path: Path, write) -> None:
    files = {f"{name}/{name}_{k}.png": picture(k) for name in (2, 10, 1, 11) for k in range(2)}
    suffix = {write_tar: ".tar", write_zip: ".zip"}.get(write, "")
    source = opened(write(tmp_path / f"set{suffix}", files))
    assert source.classes == ("1", "10", "11", "2")
    assert [source.identifier(i) for i in (0, 2, 7)] == ["1/1_0.png", "10/10_0.png", "2/2_1.png"]


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_folders_within_a_class_are_in_the_order_of_scans(tmp_path: Path, write) -> None:
    """Files of a directory come before those of folders in it, and a/ before a-/."""
    names = ["x.png", "a/1.png", "a-b/1.png", "a/b/1.png", "a.png", "a b/1.png", "a/Z.png"]
    files = {f"{label}/{name}": picture(k) for label in "cd" for k, name in enumerate(names)}
    packed = opened(write(tmp_path / ("x.zip" if write is write_zip else "x.tar"), files))
    folders = opened(write_folders(tmp_path / "folders", files))
    ids = [[source.identifier(i) for i in range(len(source))] for source in (packed, folders)]
    assert ids[0] == ids[1]
    assert images_of(packed) == images_of(folders)


def test_images_in_the_folder_of_a_split_have_no_classes(tmp_path: Path) -> None:
    """`DIR/train/*.JPEG` is no class called train."""
    files = {f"{split}/{k}.png": picture(k) for split in SPLITS for k in range(2)}
    assert opened(write_tar(tmp_path / "both.tar", files), "val").classes == ()
    train = {name: data for name, data in files.items() if name.startswith("train")}
    assert opened(write_tar(tmp_path / "one.tar", train)).classes == ()
    assert opened(write_folders(tmp_path / "folders", train)).classes == ()


def test_digits_of_other_scripts_are_names(tmp_path: Path) -> None:
    """Python takes them for digits; what they count, `int` does not always know."""
    source = opened(labelled(tmp_path / "x.tar", "\u00b2", "10", "9"))
    assert source.classes == ("10", "9", "\u00b2")


def test_labels_called_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    files = {f"{label}x.png": picture(label) for label in (2, 10, 1)}
    labels = {f"{label}x.cls": f"{label}\r\n".encode() for label in (2, 10, 1)}
    assert opened(write_tar(tmp_path / "x.tar", files | labels)).classes == ("1", "2", "10")


def labelled(path: Path, *labels: str) -> Path:
    files = {f"{place}.{suffix}": data for place, label in enumerate(labels)
             for suffix, data in (("png", picture(place)), ("cls", label.encode()))}  # fmt: skip
    return write_tar(path, files)


def test_an_index_in_val_is_no_place_among_names_of_train(tmp_path: Path) -> None:
    """Names may have been numbered in any order; where train has indices and names, in theirs."""
    labelled(tmp_path / "train.tar", "zebra", "ape")
    labelled(tmp_path / "val.tar", "0", "1")
    assert "2 classes only in val/ (0, 1)" in refusal(tmp_path, "val")
    named = tmp_path / "named"
    labelled(named / "train" / "x-train.tar", "0", "1")
    labelled(named / "val" / "x-val.tar", "0", "1")
    (named / "train" / "classes.txt").write_text("zebra\nape\n")
    for split in SPLITS:  # listed, then as it is kept
        assert opened(named, split).classes == ("zebra", "ape")


def test_names_among_indices_that_a_file_names_are_refused(tmp_path: Path) -> None:
    labelled(tmp_path / "x.tar", "0", "1", "cat")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert "some labels are indices of classes, such as 0, and some names" in refusal(tmp_path)


def test_images_without_labels_are_told_before_they_are_opened(tmp_path: Path) -> None:
    bare = write_tar(tmp_path / "bare.tar", {"1.png": picture(1), "2.png": picture(2)})
    with pytest.raises(UserError, match="has no labels; kNN needs the class"):
        require_labelled(str(bare), "kNN")
    require_labelled(str(labelled(tmp_path / "x.tar", "0", "1")), "kNN")

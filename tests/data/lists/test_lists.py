"""Lists of images: what a line may be, the order, what is refused, and what is kept."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from sercli.data import has_split, open_source
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.lists import table as tables
from sercli.data.lists.text import read_rows
from sercli.data.registry import find_kind, require_labelled
from sercli.data.source import contents
from tests.support.pictures import age, files_of, folder, image
from tests.support.refusals import refused


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    folders = [f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog", "a b")]
    return folder(tmp_path / "set", *(f"{one}/{k}.png" for one in folders for k in (2, 10, 1)))


def written(path, *lines, end="\n"):
    path.write_bytes(end.join(lines).encode("utf-8", "surrogateescape") + end.encode())
    return path


def opened(path, split="train", **options):
    return open_source(str(path), split, image_size=8, **options)


# A text, and the paths, labels and lines that are in it.
@pytest.mark.parametrize(
    ("text", "paths", "told", "lines"),
    [
        ("a.jpg,1\nb.jpg,2\n", ["a.jpg", "b.jpg"], ["1", "2"], [1, 2]),
        ("a.jpg\nb.jpg", ["a.jpg", "b.jpg"], [], [1, 2]),
        ("a, b.jpg\nmy cat.jpg\n", ["a, b.jpg", "my cat.jpg"], [], [1, 2]),
        ("\ufeffpath,label\r\n\r\n# none\r\nx y.jpg , big cat\r\n", ["x y.jpg"], ["big cat"], [4]),
        ('image,class\n"a, ""b"".jpg",cat\n', ['a, "b".jpg'], ["cat"], [2]),
        ("id\tfilename\tTARGET\n7\ta.png\tq\n", ["a.png"], ["q"], [2]),
        ("label;file\ncat;a.png\n", ["a.png"], ["cat"], [2]),
        ("n01/x 1.JPEG 0\nn02/y.JPEG 12\n", ["n01/x 1.JPEG", "n02/y.JPEG"], ["0", "12"], [1, 2]),
        ("path\na.jpg,1.jpg\n", ["a.jpg,1.jpg"], [], [2]),
        ('"a b.jpg" 3\nc.jpg 4\n', ["a b.jpg", "c.jpg"], ["3", "4"], [1, 2]),
        (
            'a.jpg 3\n"b ""c"", d.jpg" "big cat"\n',
            ["a.jpg", 'b "c", d.jpg'],
            ["3", "big cat"],
            [1, 2],
        ),
        ('"a, b.jpg" cat\n', ["a, b.jpg"], ["cat"], [1]),
        ('image,class\n"a.jpg", "b, c"\n', ["a.jpg"], ["b, c"], [2]),
        (
            "path label\nmy cat.jpg 3\nmy dir/file 4\n",
            ["my cat.jpg", "my dir/file"],
            ["3", "4"],
            [2, 3],
        ),
        ("deadbeef,3\n", ["deadbeef"], ["3"], [1]),
        ("caf\udce9.jpg,1\n", ["caf\udce9.jpg"], ["1"], [1]),
    ],
)
def test_what_a_line_says(text, paths, told, lines):
    rows = read_rows(text.encode("utf-8", "surrogateescape"), called="list")
    assert [os.fsdecode(path) for path in rows.paths] == paths
    assert (rows.told, list(rows.lines), rows.faults) == (told, lines, {})


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a.jpg,1\nb.jpg\n", 2, "'b.jpg' has no label"),
        ("a.jpg,1\n\nb.jpg, \n", 3, "'b.jpg' has no label"),
        ("a.jpg\nb.jpg,1\n", 2, "'b.jpg,1' has a label, and the first line has none"),
        ("a.jpg,1\n,2\n", 2, "it has no path"),
        ("a.jpg,1\nb.jpg,2,3\n", 2, "it has 3 columns, the first line 2"),
        ('a.jpg,1\n"b.jpg,2\n', 2, "its quotes do not match"),
        ("a.jpg,1\nhttps://x.org/b.jpg,2\n", 2, "is a URL, and images must be files"),
    ],
)
def test_what_is_wrong_with_a_line(text, line, words):
    ((number, why),) = read_rows(text.encode(), called="list").faults.items()
    assert number == line
    assert words in why


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "list lists no image"),
        (b"\n# nothing\n", "list lists no image"),
        (b"path,label\n", "list lists no image"),
        ("a.jpg,1\n".encode("utf-16"), "list is no text in UTF-8"),
        (b"a,b,c\n", "line 1: it has 3 columns and no header"),
        (b"id,label\n1,cat\n", "line 1: the header names no column of paths"),
    ],
)
def test_what_is_no_list(content, words):
    refused(lambda: read_rows(content, called="list"), words, "path[,label]")


def test_a_list_is_the_set_of_class_folders_that_it_describes(root, tmp_path):
    lines = [f"{split}/{c}/{k}.png,{c}" for split in ("train", "val")
             for k in (10, 1, 2) for c in ("dog", "cat", "a b")]  # fmt: skip
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in ("train", "val"):
        own = [line for line in lines if line.startswith(split)]
        written(lists / f"{split}.csv", *(f"{root}/{line}" for line in own))
        expected, found = opened(root, split), opened(lists, split)
        assert files_of(found) == files_of(expected)
        assert found.classes == expected.classes
        assert contents(found) == contents(expected)
        assert [found.where(i) for i in range(9)] == [expected.where(i) for i in range(9)]
        assert found.load(4).tobytes() == expected.load(4).tobytes()
    # One list alone is all train; so is what is relative to it.
    one = written(root / "mine.txt", *(line for line in lines if line.startswith("val")))
    assert files_of(opened(one)) == files_of(opened(root, "val"))
    assert not has_split(str(one), "val")
    refused(lambda: opened(one, "val"), f"{one} has no list of val")


def test_labels_that_are_numbers_are_in_their_order(root):
    lines = [f"train/cat/{k}.png {label}" for k, label in ((1, 10), (2, 2), (10, 0))]
    source = opened(written(root / "n.txt", *lines))
    assert source.classes == ("0", "2", "10")
    assert files_of(source) == [("10.png", "0"), ("2.png", "2"), ("1.png", "10")]


def test_numbers_that_are_the_folders_are_in_the_order_of_folders(tmp_path):
    files = [f"{name}/{name}.png" for name in (2, 10, 1)]
    root = folder(tmp_path / "set", *files)
    lines = [f"{one},{one.partition('/')[0]}" for one in files]
    source = opened(written(root / "list.csv", *lines))
    assert source.classes == opened(root).classes == ("1", "10", "2")
    indices = opened(
        written(
            root / "indices.csv", *(f"{one},{k}" for one, k in zip(files, (9, 10, 8), strict=True))
        )
    )
    assert indices.classes == ("8", "9", "10")


def test_classes_txt_names_labels_that_are_numbers(root, monkeypatch):
    """As beside shards; it is part of what a kept list depends on."""
    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    lines = ("train/cat/1.png,2", "train/dog/1.png,0")
    file = written(root / "l.csv", *lines)
    assert opened(file).classes == ("0", "2")
    names = written(root / "classes.txt", "zebra", "ape", "newt")
    for _ in range(2):
        source = opened(file)
        assert source.classes == ("zebra", "ape", "newt")
        assert files_of(source) == [("dog/1.png", "zebra"), ("cat/1.png", "newt")]
    written(names, "dog", "hen", "cat")
    assert opened(file).classes == ("dog", "hen", "cat")
    written(names, "dog", "hen")
    refused(
        lambda: opened(file),
        "l.csv, line 1: the label '2' is none of the numbers 0…1 that classes.txt beside the list",
    )
    written(names, "dog", "dog")
    refused(lambda: opened(file), "line 2 of", "stands above already")
    written(names, "dog", "hen", "cat")
    mixed = written(root / "m.csv", *lines, "val/cat/1.png,hen")
    refused(lambda: opened(mixed), "line 3: the label 'hen' is none of the numbers 0…2")
    named = written(root / "n.csv", "train/cat/1.png,x", "train/dog/1.png,y")
    assert opened(named).classes == ("x", "y")
    names.unlink()
    assert opened(file).classes == ("0", "2")


def test_val_counts_classes_as_train_does(tmp_path):
    """Named or not, and where val has fewer of them; numbers that are folders are names."""
    files = [f"{one}_images/{k}/{k}.png" for one in ("train", "val") for k in (10, 2)]
    root = folder(tmp_path / "set", *files)
    written(root / "train.csv", "train_images/10/10.png,1", "train_images/2/2.png,0")
    written(root / "val.csv", "val_images/10/10.png,1")
    assert opened(root, "val").classes == ("0", "1")
    assert opened(root, "val").labels.tolist() == [1]
    written(root / "classes.txt", "zebra", "ape", "newt")
    for split, label in (("train", [0, 1]), ("val", [1])):
        assert opened(root, split).classes == ("zebra", "ape", "newt")
        assert opened(root, split).labels.tolist() == label
    own = written(root / "train_images" / "own.csv", "10/10.png,10", "2/2.png,2")
    written(root / "train_images" / "classes.txt", "zebra", "ape")
    assert opened(own).classes == ("10", "2")


@pytest.mark.parametrize("label", ["", " 3", ",target"])
def test_a_name_of_an_image_is_no_header(tmp_path, label):
    root = folder(tmp_path / "set", "image 1.jpg", "my file 2.jpg")
    lines = (f"{one}{label}" for one in ("image 1.jpg", "my file 2.jpg"))
    assert len(opened(written(root / "list.txt", *lines))) == 2


def test_without_labels(root):
    file = written(root / "all.txt", "train/dog/1.png", "val/cat/1.png", "./train/cat/../cat/2.png")
    source = opened(file)
    assert source.classes == ()
    assert [source.identifier(i) for i in range(3)] == [
        "train/cat/2.png", "train/dog/1.png", "val/cat/1.png",
    ]  # fmt: skip
    assert source.labels.tolist() == [0, 0, 0]
    refused(lambda: require_labelled(str(file), "kNN"), "all.txt has no labels; kNN needs")
    require_labelled(str(written(root / "l.csv", "train/dog/1.png,1")), "kNN")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["train.csv"], "list"),
        (["train.csv", "val.csv", "images/1.png"], "list"),
        (["train.txt", "validation.txt", "train_images/1.png", "test_images/2.png"], "list"),
        (["train.csv", "1.png", "2.png"], "list"),
        (["train.csv", "train/1.png", "val/2.png"], "list"),
        (["labels.csv", "1.png"], "unlabelled"),
        (["val.csv", "images/1.png"], "folder"),
        # Class folders of today stay what they are, whatever lies beside them.
        (["train.csv", "val.csv", "cat/1.png", "dog/2.png"], "folder"),
        (["train.txt", "val.txt", "train/cat/1.png", "val/cat/1.png"], "folder"),
        (["train.csv", "train.tar"], "archives"),
    ],
)
def test_which_directories_are_lists(tmp_path, files, kind):
    place = tmp_path / "set"
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"")
    assert find_kind(str(place)).name == kind


def test_every_line_that_is_wrong_is_named(root):
    os.mkfifo(root / "pipe.png")
    file = written(
        root / "bad.csv",
        "path,label",
        "train/cat/1.png,cat",
        "train/cat/none.png,cat",
        "train/dog/1.png,dog",
        "train/dog/../cat/1.png,dog",
        "pipe.png,cat",
        "train,cat",
        "train/cat/2.png,",
    )
    refused(
        lambda: opened(file), f"{file}, line 3: {root}/train/cat/none.png does not exist (and 4 m"
    )
    report = check_data(file, Reading(lambda *_: None))
    assert report.taken_as == "a list of images with labels"
    assert [one.num_images for one in report.splits] == [2]
    lines = [problem.removeprefix(f"{file}, ") for problem in report.problems]
    assert lines == [
        f"line 3: {root}/train/cat/none.png does not exist",
        "line 5: train/cat/1.png stands in line 2 already",
        f"line 6: {root}/pipe.png is a FIFO",
        f"line 7: {root}/train is a directory",
        "line 8: 'train/cat/2.png' has no label",
    ]


def test_val_has_the_labels_of_train(root):
    for name in ("train", "val"):
        (root / name).rename(root / f"{name}_images")
    written(root / "train.csv", "train_images/cat/1.png,cat", "train_images/dog/1.png,dog")
    val = written(root / "val.csv", "val_images/dog/1.png,dog", "val_images/cat/1.png,newt")
    (root / "test.csv").write_text("no list")
    assert find_kind(str(root)).name == "list"
    refused(lambda: opened(root, "val"), f"{val}, line 2: train has no label newt")
    report = check_data(root, Reading(lambda *_: None))
    assert report.problems == (f"{val}, line 2: train has no label newt",)
    assert report.notes[0] == f"{root}/test.csv is left out: only train and val are read"
    written(val, "val_images/dog/1.png,dog")
    source = opened(root, "val")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1])
    written(val, "val_images/dog/1.png")
    refused(lambda: opened(root, "val"), "train has labels and val has none")
    written(root / "val.txt", "x.png")
    refused(lambda: opened(root, "val"), "holds val.csv and val.txt; a split has one list")


def test_a_list_is_kept_until_it_or_a_directory_changes(root, monkeypatch):
    file = written(root / "l.csv", "train/cat/1.png,1", "train/dog/1.png,0")
    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    expected = files_of(opened(file))
    made, real = [], tables.make_table

    def counted(*given, **named):
        made.append(1)
        return real(*given, **named)

    monkeypatch.setattr(tables, "make_table", counted)
    assert files_of(opened(file)) == expected
    assert not made
    (root / "train" / "cat" / "1.png").unlink()
    refused(lambda: opened(file), "line 1:", "does not exist")
    image(root / "train" / "cat" / "1.png")
    assert files_of(opened(file)) == expected
    assert len(made) == 2
    written(file, "train/cat/2.png,1")
    assert files_of(opened(file)) == [("2.png", "1")]


def test_a_kept_list_that_is_damaged_is_made_anew(root):
    age(root)
    content = tables.pack(tables.make_table(
        str(written(root / "l.csv", "train/cat/1.png,1", "val/dog/1.png,0")), called="l"
    ))  # fmt: skip
    assert tables.unpack(content) is not None
    for place in range(len(content)):
        assert (
            tables.unpack(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            is None
        )


def test_a_kept_list_that_leads_out_of_its_ranges_is_none(root):
    found = tables.make_table(
        str(written(root / "l.csv", "train/cat/1.png,1", "val/dog/1.png,0")), called="l"
    )
    assert tables.unpack(tables.pack(found)) is not None
    for column, value in (("labels", 2), ("labels", -1), ("directory", 2), ("directory", -1)):
        values = getattr(found, column).copy()
        values[1] = value
        assert tables.unpack(tables.pack(replace(found, **{column: values}))) is None


def test_a_share_and_classes_of_a_list(root):
    file = written(
        root / "l.csv", *(f"train/{c}/{k}.png,{c}" for c in ("cat", "dog") for k in (1, 2))
    )
    assert opened(file, classes=("dog",)).classes == ("dog",)
    assert len(opened(file, share=0.5)) == 2
    refused(lambda: opened(file, classes=("newt",)), "has no class newt")

"""`ser data check` of archives: what is there, and a line for all that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sercli.data.checking import check_data
from sercli.data.images.check import CheckReport, Reading
from tests.support.archives import (
    CLASSES,
    pictures,
    write_shards,
    write_tar,
    write_zip,
)


def check(path: Path | str, layout: str | None = None) -> CheckReport:
    return check_data(Path(path), Reading(progress=lambda *_: None, processes=1), layout=layout)


def test_a_sound_set_has_no_problems(tmp_path: Path) -> None:
    for path in (
        write_tar(tmp_path / "x.tar", pictures()),
        write_zip(tmp_path / "zip" / "x.zip", pictures()).parent,
    ):
        report = check(path)
        assert report.problems == ()
        assert report.taken_as == "1 archive of class folders"
        assert [(one.split, one.num_images) for one in report.splits] == [("train", 12), ("val", 6)]
        facts = report.splits[0].facts
        assert (facts["archives"], facts["classes"]) == (1, 3)
        assert np.array_equal(facts["images per class"], [4, 4, 4])
        assert report.splits[0].modes == {"RGB": 12}
        assert report.splits[0].sizes.tolist() == [[8, 9]] * 12


def test_shards_are_checked_with_all_that_is_wrong(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path, split, number=4)
    (tmp_path / "imagenet1k-train-0002.tar").unlink()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    last = tmp_path / "imagenet1k-train-0003.tar"
    last.write_bytes(last.read_bytes()[:1100])
    (tmp_path / "test-00.tar").write_bytes(b"")
    report = check(tmp_path)
    text = "\n".join(report.problems)
    assert "imagenet1k-train-0002.tar missing from a series of 4" in text
    assert "imagenet1k-train-0003.tar: it ends" in text
    assert "1 of 7 images have no label" in text  # its label lay behind
    assert "2 labels out of range" in text
    assert len(report.problems) == 4
    assert report.taken_as == "8 archives of WebDataset: a label beside each image"
    assert report.notes == ("passed over, as no data: 12 .txt, 1 archives of test",)


def test_every_image_is_read_where_it_lies(tmp_path: Path) -> None:
    files = dict(pictures())
    broken = "train/n01440764/n01440764_1.png"
    files[broken] = b"no image"
    files["train/__MACOSX/x.png"] = b""
    report = check(write_tar(tmp_path / "x.tar", files))
    (problem,) = report.problems
    assert problem.startswith("cannot read the image ")
    assert problem.endswith(
        "x.tar: n01440764/n01440764_1.png: its content is not a known image format"
    )
    assert "1 __MACOSX" in report.notes[0]
    assert [one.num_images for one in report.splits] == [12, 6]


def test_all_faults_are_listed_and_not_only_the_first(tmp_path: Path) -> None:
    files = {
        "a/1.png": pictures()["train/n01440764/n01440764_0.png"],
        "/b.png": b"",
        "../c.png": b"",
    }
    report = check(write_tar(tmp_path / "x.tar", files))
    assert len(report.problems) == 2
    many = {f"../{number}.png": b"" for number in range(130)}
    report = check(write_tar(tmp_path / "y.tar", many))
    assert len(report.problems) == 102
    assert "y.tar: 30 more faults" in report.problems
    assert report.problems[-1].endswith("y.tar holds no image")


def test_classes_that_differ_or_are_empty_are_problems(tmp_path: Path) -> None:
    files = {name: data for name, data in pictures().items() if "val/n02119789" not in name}
    assert check(write_tar(tmp_path / "x.tar", files)).problems == (
        "1 class only in train/ (n02119789)",
    )
    root = write_shards(tmp_path / "wds", "train")
    (root / "classes.txt").write_text("\n".join([*CLASSES, "zebra"]))
    assert check(root).problems == ("train has no image of 1 class (zebra)",)


def test_numbers_that_no_image_has_are_told(tmp_path: Path) -> None:
    one = pictures()["train/n01440764/n01440764_0.png"]
    path = write_tar(
        tmp_path / "x.tar", {"a.png": one, "a.cls": b"0", "b.png": one, "b.cls": b"70"}
    )
    report = check(path)
    assert report.problems == ()
    assert report.notes[0].startswith("labels of train are 2 of the numbers 0…70; where these")
    path = write_tar(tmp_path / "y.tar", {"a.png": one, "a.cls": b"0", "b.png": one, "b.cls": b"1"})
    assert check(path).notes == ()


def test_images_without_labels_are_counted_beside_those_with(tmp_path: Path) -> None:
    one = pictures()["train/n01440764/n01440764_0.png"]
    write_tar(tmp_path / "train.tar", {"a.png": one})
    write_tar(tmp_path / "val.tar", {"n1/a.png": one, "n2/b.png": one})
    report = check(tmp_path)
    assert [one.facts["classes"] for one in report.splits] == [0, 2]
    assert report.taken_as == "2 archives of train: images without labels, val: class folders"


def test_val_alone_and_names_without_a_split_are_told(tmp_path: Path) -> None:
    one = pictures()["train/n01440764/n01440764_0.png"]
    write_tar(tmp_path / "val.tar", {"n1/a.png": one})
    report = check(tmp_path)
    assert report.problems == (f"{tmp_path} has no train images",)
    assert [one.split for one in report.splits] == ["val"]
    write_tar(tmp_path / "train.tar", {"n1/b.png": one})
    write_tar(tmp_path / "c.tar", {"n1/c.png": one})
    report = check(tmp_path)
    assert report.problems == ()
    assert report.notes[0].startswith("c.tar in ")


def test_what_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    write_tar(tmp_path / "v" / "x.tar", {"ILSVRC2012_val_00000001.JPEG": b""})
    (problem,) = check(tmp_path / "v").problems
    assert "tells the classes of ImageNet's validation images" in problem

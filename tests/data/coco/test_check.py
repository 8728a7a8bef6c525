"""`ser data check` of sets in COCO's format."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from typer.testing import CliRunner, Result

from sercli.commands.data import app
from sercli.data.coco.check import check_coco
from sercli.data.images import check
from sercli.data.images.check import Reading
from sercli.errors import UserError
from tests.support.coco_tree import CocoTree


def _run(*arguments: object) -> Result:
    wide = {"COLUMNS": "200"}  # a long path of a temporary directory stays on its line
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env=wide)


def _problems(root: Path, *options: object) -> list[str]:
    """The lines that are listed, after the exit status was seen to be 2."""
    result = _run(root, *options)
    assert isinstance(result.exception, UserError), result.output
    assert result.exception.exit_status == 2
    text = result.stdout.splitlines()
    ends = [index for index, line in enumerate(text) if line.startswith("└")]
    below = text[ends[-1] + 1 :] if ends else text[1:]  # a table, or what it is taken as
    lines = [line for line in below if not line.startswith("note: ")]
    number = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}; annotations and images must"
    assert number in str(result.exception)
    return lines


def _cells(result: Result) -> dict[str, list[str]]:
    rows = (line.split("│") for line in result.stdout.splitlines())
    return {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows if len(row) == 5}


def test_a_sound_set_is_summed_up(whole: CocoTree) -> None:
    result = _run(whole.root)
    assert result.exit_code == 0, result.output
    assert f"{whole.root} is taken as a set in COCO's format" in result.stdout
    cells = _cells(result)
    numbers = [str(len(whole.content[split]["annotations"])) for split in ("train", "val")]
    assert cells["images"] == ["6", "4"]
    assert cells["categories"] == ["80", "80"]
    assert cells["annotations"] == numbers
    assert cells["crowd annotations"] == ["1", "1"]
    assert cells["images without annotations"] == ["1", "1"]
    assert cells["boxes without width or height"] == ["0", "0"]
    assert cells["pixel formats"] == ["RGB 5, L 1", "RGB 3, L 1"]
    widths = sorted(one["width"] for one in whole.content["val"]["images"])
    middle = f"{(widths[1] + widths[2]) / 2:g}"
    assert (
        cells["width in pixels: min / median / max"][1] == f"{widths[0]} / {middle} / {widths[3]}"
    )
    assert (
        "note: images without annotations (train 1, val 1): kept in evaluation, left out in "
        "training\nall 10 images can be read\n"
    ) in result.stdout
    fast = _run(whole.root, "--layout", "coco", "--fast")
    assert fast.exit_code == 0
    assert _cells(fast) == cells


def test_what_coco_itself_has_is_no_problem(tree: CocoTree) -> None:
    one, other, third = tree.content["train"]["annotations"][:3]
    one["bbox"][2] = 0
    width = tree.content["train"]["images"][0]["width"]
    other["bbox"][2] = width - other["bbox"][0] + 0.99
    third["bbox"][0] = -0.7
    tree.rewrite("train")
    result = _run(tree.root)
    assert result.exit_code == 0, result.output
    assert _cells(result)["boxes without width or height"] == ["1", "0"]
    assert "note: boxes without width or height (train 1): COCO's own train2017" in result.stdout


def test_images_that_are_missing_cut_or_of_another_size(tree: CocoTree) -> None:
    gone, cut, turned = (tree.image("train", 0), tree.image("train", 3), tree.image("val", 0))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-200])
    said = tree.content["val"]["images"][0]
    width, height = said["width"], said["height"]
    Image.new("RGB", (height, width)).save(turned)
    lines = _problems(tree.root)
    assert lines[0] == f"cannot read the image {gone}: No such file or directory"
    assert lines[1].startswith(f"cannot read the image {cut}: ")
    assert "truncated" in lines[1]
    assert lines[2] == (
        f"cannot read the image {turned}: it is {height} × {width} pixels, but "
        f"instances_val2017.json says {width} × {height}"
    )
    assert len(_problems(tree.root, "--fast")) == 2


def test_annotations_that_do_not_fit_their_image(tree: CocoTree) -> None:
    content = tree.content["train"]
    one, other, third, crowd = content["annotations"][:4]
    width, height = content["images"][0]["width"], content["images"][0]["height"]
    one["bbox"] = [width - 10, 5, 11.5, 5]
    other["segmentation"] = [[1, 2, 3, 4]]
    third["segmentation"] = []
    crowd["segmentation"]["size"] = [width, height]
    tree.rewrite("train")
    lines = _problems(tree.root)
    called = f"{tree.file('train')}: annotation"
    number = content["images"][0]["id"]
    assert lines[0] == (
        f"{called} 1 has the box [{width - 10}, 5, 11.5, 5], which reaches 1.5 px outside image "
        f"{number} of {width} × {height}"
    )
    for line, parts in zip(lines[1:3], ("[[1, 2, 3, 4]]", "[]"), strict=True):
        assert line.endswith(f"has no segmentation of polygons of 3 points or more, but {parts}")
    assert lines[3] == (
        f"{called} 4 has run lengths of the size [{width}, {height}]; they must have its image's "
        f"size, [{height}, {width}] (height, width)"
    )
    assert len(lines) == 4
    other["segmentation"] = [[1, 2, 3, 4], [1, 2, 30, 4, 7, 20]]  # one broken part is left out
    tree.rewrite("train")
    assert len(_problems(tree.root)) == 3


def test_all_faults_are_listed_and_the_rest_is_still_read(tree: CocoTree) -> None:
    content = tree.content["train"]
    content["annotations"][0]["id"] = 0
    content["annotations"][1]["category_id"] = 12
    content["images"][2]["height"] = None
    tree.rewrite("train")
    tree.image("train", 3).unlink()
    lines = _problems(tree.root)
    assert len(lines) == 4
    assert "pycocotools counts a match with 0 as none" in "\n".join(lines)
    assert lines[-1].startswith("cannot read the image")


def test_parts_that_are_missing(tree: CocoTree) -> None:
    shutil.rmtree(tree.root / "val2017")
    (line,) = _problems(tree.root)
    assert line.startswith(f"{tree.root} has neither val2017/ nor images/val2017/")
    assert _cells(_run(tree.root))["images"] == ["6", "4"]
    tree.file("val").unlink()
    assert _problems(tree.root) == [f"{tree.root} has no annotations/instances_val*.json"]
    tree.file("train").write_text('{"images": [')
    lines = _problems(tree.root)
    assert len(lines) == 2
    assert "is not valid JSON" in lines[0]
    shutil.rmtree(tree.root / "annotations")
    assert len(_problems(tree.root, "--layout", "coco")) == 2
    (tree.root / "val2017").mkdir()
    assert len(_problems(tree.root)) == 2  # train2017 and val2017 are no classes


def test_categories_that_differ_and_files_without_images(tree: CocoTree) -> None:
    tree.content["train"]["categories"].pop(79)
    tree.rewrite("train")
    (line, *others) = _problems(tree.root)[::-1]
    assert line.endswith("(only train: none; only val: 90 toothbrush)")
    assert all("has category 90, which is not listed" in other for other in others)
    tree.content["train"].update(images=[], annotations=[])
    tree.rewrite("train")
    assert _problems(tree.root)[0] == f"{tree.file('train')}: it lists no images"


def test_options_that_do_not_fit(whole: CocoTree, tmp_path: Path) -> None:
    for arguments, match in (
        (
            (whole.root, "--classes", whole.root),
            "--classes .*, a set in COCO's format; only robust",
        ),
        ((tmp_path / "none", "--layout", "coco"), "does not exist"),
        ((whole.file("val"), "--layout", "coco"), "is a file"),
        ((whole.root, "--layout", "cocoa"), "it must be folder, .*, coco, .* or one of imagenet-r"),
    ):
        error = _run(*arguments).exception
        assert isinstance(error, UserError)
        assert re.search(match, str(error))
        assert "\n" not in str(error)


def test_several_processes_find_what_one_finds(
    tree: CocoTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.image("val", 1).unlink()
    alone = check_coco(tree.root, Reading(lambda *_: None, processes=1))
    monkeypatch.setattr(check, "_FEW", 0)
    together = check_coco(tree.root, Reading(lambda *_: None, processes=2))
    assert alone.problems == together.problems
    assert len(alone.problems) == 1
    for one, other in zip(alone.splits, together.splits, strict=True):
        np.testing.assert_equal((one.facts, one.modes), (other.facts, other.modes))
        assert_array_equal(one.sizes, other.sizes)


def test_what_ser_data_shapes_writes_is_sound(tmp_path: Path) -> None:
    common = ("--train", 10, "--val", 10, "--size", 16, "--corrupted", 0, "--detection", 8)
    arguments = ["shapes", str(tmp_path / "world"), *map(str, common), "--detection-size", "40"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    result = _run(tmp_path / "world/coco")
    assert result.exit_code == 0, result.output
    assert _cells(result)["images"] == ["8", "2"]
    assert _run(tmp_path / "world").exit_code == 0  # coco/ beside train/ is no class

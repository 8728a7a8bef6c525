"""`ser data shapes` and `ser data check`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sercli.commands.data import app
from sercli.data import check, open_source, shapes_files
from sercli.data.shapes import render
from sercli.data.shapes_outlines import CLASSES
from sercli.errors import RunFailed, UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SER_CACHE", str(tmp_path_factory.mktemp("cache")))


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _fails(*arguments: object, match: str) -> Result:
    result = _run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=match):
        raise result.exception
    assert "\n" not in str(result.exception)
    return result


# -- shapes ------------------------------------------------------------------------------------

_SETS = (
    *("train", "val", "imagenet-r", "sketch"),
    *("imagenet-v2/matched-frequency", "imagenet-v2/threshold-0.7", "imagenet-v2/top-images"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world") / "set"
    result = _run("shapes", directory, "--train", 23, "--val", 12, "--size", 40, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "23 train and 12 val images of 40 px" in result.stdout
    assert result.stdout.count("\n") == 1
    return directory


@pytest.mark.parametrize("folder", _SETS)
def test_sets_have_the_counts_asked_for_and_every_class(written: Path, folder: str) -> None:
    names = [str(label) for label in range(10)] if "v2" in folder else list(CLASSES)
    assert sorted(os.listdir(written / folder)) == sorted(names)
    counts = [len(list((written / folder / name).glob("*.JPEG"))) for name in names]
    assert sum(counts) == (23 if folder == "train" else 12)
    assert max(counts) - min(counts) <= 1
    for file in (written / folder).rglob("*.JPEG"):
        with Image.open(file) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (40, 40), "RGB")


def test_nothing_else_is_written(written: Path) -> None:
    assert sorted(os.listdir(written)) == ["imagenet-r", "imagenet-v2", "sketch", "train", "val"]
    assert os.listdir(written.parent) == ["set"]
    assert all(file.suffix == ".JPEG" for file in written.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("folder", "style"),
    [("train", "photo"), ("imagenet-r", "rendition"), ("sketch", "sketch")]
    + [(folder, "photo") for folder in _SETS[4:]],
)
def test_files_hold_the_rendered_pictures(written: Path, folder: str, style: str) -> None:
    for file in (written / folder).rglob("*.JPEG"):
        index = int(file.stem.rpartition("_")[2])
        picture = render(3, folder, index, 40, style=style)  # type: ignore[arg-type]
        name = file.parent.name
        assert picture.label == (int(name) if "v2" in folder else CLASSES.index(name))
        with Image.open(file) as image:
            read = np.asarray(image).astype(int)
        alike = render(3, folder, index + 10, 40, style=style).image  # type: ignore[arg-type]
        assert np.abs(read - picture.image).mean() < np.abs(read - alike).mean() / 3


def test_files_have_the_labels_of_the_world_in_memory(written: Path) -> None:
    files = open_source(str(written), "val", image_size=40)
    memory = open_source("shapes", "val", image_size=40, num_images=12, seed=3)
    assert files.classes == memory.classes
    for position in range(len(files)):
        index = int(Path(files.identifier(position)).stem.rpartition("_")[2])
        assert files.labels[position] == memory.labels[index]
        read, drawn = (np.asarray(x, int) for x in (files.load(position), memory.load(index)))
        assert np.abs(read - drawn).mean() < 6


def test_a_directory_that_exists_is_left_alone(written: Path) -> None:
    before = sorted(written.rglob("*"))
    _fails("shapes", written, match="exists")
    assert sorted(written.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("--train", 9, "9 images for train; every class needs an image"),
        ("--val", 0, "0 images for val"),
        ("--size", 8, "image size 8"),
        ("--seed", 2**64, "seed 18446744073709551616"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, option: str, value: int, match: str) -> None:
    _fails("shapes", tmp_path / "set", option, value, match=match)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []

    def interrupted(*arguments: object, **options: object) -> object:
        if len(rendered) == 15:
            raise KeyboardInterrupt
        rendered.append(arguments)
        return render(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shapes_files, "render", interrupted)
    result = _run("shapes", tmp_path / "set", "--train", 30, "--size", 16)
    assert result.exit_code != 0
    assert len(rendered) == 15
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, *arguments: object, **options: object) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = _run("shapes", tmp_path / "set", "--size", 16)
    assert isinstance(result.exception, RunFailed)
    assert os.listdir(tmp_path) == []


# -- check -------------------------------------------------------------------------------------


def _image(path: Path, size: tuple[int, int] = (20, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7).save(path)
    return path


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.fixture
def two_splits(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for number in range(3):
        _image(root / f"train/a/{number}.png", size=(20 + number, 10))
    _image(root / "train/b/0.png", mode="L")
    _image(root / "val/a/0.jpg")
    _image(root / "val/b/0.jpg", mode="CMYK")
    return root


def test_a_sound_set_is_summed_up(two_splits: Path) -> None:
    result = _run("check", two_splits)
    assert result.exit_code == 0, result.output
    lines = [line.replace("│", "|") for line in result.stdout.splitlines()]
    cells = {
        parts[1].strip(): [part.strip() for part in parts[2:-1]]
        for line in lines
        if len(parts := line.split("|")) == 5
    }
    assert cells == {
        "images": ["4", "2"],
        "classes": ["2", "2"],
        "images per class: min / median / max": ["1 / 2 / 3", "1 / 1 / 1"],
        "width in pixels: min / median / max": ["20 / 20.5 / 22", "20 / 20 / 20"],
        "height in pixels: min / median / max": ["10 / 10 / 10", "10 / 10 / 10"],
        "pixel formats": ["RGB 3, L 1", "RGB 1, CMYK 1"],
    }
    assert "all 6 images can be read" in result.stdout


def test_everything_that_is_wrong_is_listed(two_splits: Path) -> None:
    _cut(two_splits / "train/a/1.png", keep=50)
    (two_splits / "val/b/0.jpg").write_text("not an image")
    _image(two_splits / "train/c/0.png")
    result = _fails("check", two_splits, match="has 3 problems")
    listed = [line for line in result.stdout.splitlines() if "cannot" in line or "only" in line]
    assert len(listed) == 3
    assert f"cannot read the image {two_splits}/train/a/1.png: " in listed[0]
    assert f"cannot read the image {two_splits}/val/b/0.jpg: its content" in listed[1]
    assert listed[2] == "1 class only in train/ (c)"


def test_empty_folders_are_problems(two_splits: Path) -> None:
    (two_splits / "val/c").mkdir()
    result = _fails("check", two_splits, match="has 2 problems")
    assert "val has 1 empty class folder (c)" in result.stdout
    assert "1 class only in val/ (c)" in result.stdout


def test_fast_reads_only_headers(two_splits: Path) -> None:
    _cut(two_splits / "train/a/1.png", keep=50)
    assert "readable header" in _run("check", two_splits, "--fast").stdout
    _cut(two_splits / "train/a/1.png", keep=5)
    _fails("check", two_splits, "--fast", match="has 1 problem;")


def test_a_flat_folder_is_checked_too(two_splits: Path) -> None:
    result = _run("check", two_splits / "train")
    assert result.exit_code == 0
    assert "all 4 images" in result.stdout


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    for number in range(60):
        path = tmp_path / f"set/a/{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    result = _fails("check", tmp_path / "set", match="has 60 problems")
    assert result.stdout.count("cannot read the image") == 50
    assert "and 10 more" in result.stdout


def test_a_name_like_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    path = _image(tmp_path / "[bold]set/a/[red].png")
    _cut(path, keep=5)
    assert "[bold]set/a/[red].png" in _fails("check", path.parents[1], match="problem").stdout


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    _fails("check", tmp_path / "none", match="does not exist")
    _fails("check", _image(tmp_path / "one.png"), match="is a file")
    _fails("check", "shapes", match="is the embedded world")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in _fails("check", tmp_path / "empty", match="1 problem").stdout


def test_several_processes_find_what_one_finds(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = written / "train/disc/broken.jpg"
    broken.touch()
    try:
        told: list[tuple[str, int, int]] = []

        def tell(split: str, done: int, total: int) -> None:
            told.append((split, done, total))

        alone = check.check(written, processes=1, progress=tell)
        monkeypatch.setattr(check, "_FEW", 0)
        together = check.check(written, processes=2, progress=tell)
    finally:
        broken.unlink()
    assert alone.problems == together.problems
    assert len(alone.problems) == 1
    for one, other in zip(alone.splits, together.splits, strict=True):
        assert (one.split, one.classes, one.modes) == (other.split, other.classes, other.modes)
        np.testing.assert_array_equal(one.class_counts, other.class_counts)
        np.testing.assert_array_equal(one.sizes, other.sizes)
    assert told[-1] == ("val", 12, 12)

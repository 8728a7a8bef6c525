"""`ser data shapes` and `ser data check`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from sercli.commands.data import app
from sercli.data import open_source
from sercli.data.coco.folder import CocoFolder
from sercli.data.corruptions.catalogue import CORRUPTIONS
from sercli.data.images import check
from sercli.data.masks.folder import MaskFolder
from sercli.data.masks.objects import ObjectMasks
from sercli.data.robustness.check import recognise
from sercli.data.robustness.corrupted import middle
from sercli.data.robustness.imagenet_classes import (
    imagenet_a_classes,
    imagenet_classes,
    imagenet_r_classes,
)
from sercli.data.shapes import files as shapes_files
from sercli.data.shapes.detection import ShapesDetection
from sercli.data.shapes.outlines import CLASSES
from sercli.data.shapes.world import render
from sercli.errors import RunFailed, UserError
from tests.support.paths import RECIPES
from tests.support.pictures import folder, image


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


# -- what is no data, and what cannot be read ------------------------------------------------------


def test_what_systems_add_is_passed_over_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/2.jpg")
    for added in ("@eaDir", "train/@eaDir/a", "train/a/@eaDir/1.jpg", "val/lost+found", "val/b/._"):
        image(root / added / "thumb.jpg")
    result = _run("check", root)
    assert result.exit_code == 0, result.output
    assert "note: passed over, as no data: 1 ._*, 3 @eaDir, 1 lost+found\n" in result.stdout
    assert "all 4 images can be read" in result.stdout


def test_every_file_that_is_not_regular_is_a_problem(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "train/a/1.jpg", "train/b/1.jpg")
    os.mkfifo(root / "train/a/2.jpg")
    (root / "train/b/3.jpg").symlink_to("3.jpg")
    (root / "train/c").symlink_to("unmounted")
    result = _fails("check", root, match="has 3 problems")
    told = " ".join(result.stdout.split())
    assert "a/2.jpg: it is a FIFO, no regular file" in told
    assert "b/3.jpg: Too many levels of symbolic links" in told
    assert "train/c is a link that leads nowhere" in told


# -- shapes ------------------------------------------------------------------------------------

_SETS = (
    *("train", "val", "imagenet-r", "imagenet-a", "sketch"),
    *("imagenet-v2/matched-frequency", "imagenet-v2/threshold-0.7", "imagenet-v2/top-images"),
)
# Some of the classes, as in the published sets: masks of the logits are seen to matter.
_SUBSETS = {
    "imagenet-r": ["arrow", "cross", "disc", "heart", "ring", "star"],
    "imagenet-a": ["crescent", "dumbbell", "heart", "star", "triangle"],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world") / "set"
    counts = ("--train", 23, "--val", 12, "--detection", 11, "--detection-size", 64)
    result = _run("shapes", directory, *counts, "--size", 40, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "23 train and 12 val images of 40 px; 6 robustness sets of 12" in result.stdout
    assert "imagenet-c with 12 images of 48 px in each of 75 cells" in result.stdout
    assert "coco with 11 train and 2 val images of 64 px" in result.stdout
    assert result.stderr.endswith(f"writing {directory}: {23 + 7 * 12 + 900 + 13} of 1020\n")
    assert result.stdout.count("\n") == 1
    return directory


@pytest.mark.parametrize("folder", _SETS)
def test_sets_have_the_counts_asked_for_and_every_class(written: Path, folder: str) -> None:
    numbers = [str(label) for label in range(10)]
    names = numbers if "v2" in folder else _SUBSETS.get(folder, list(CLASSES))
    assert sorted(os.listdir(written / folder)) == sorted(names)
    counts = [len(list((written / folder / name).glob("*.JPEG"))) for name in names]
    assert sum(counts) == (23 if folder == "train" else 12)
    assert max(counts) - min(counts) <= 1
    for file in (written / folder).rglob("*.JPEG"):
        with Image.open(file) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (40, 40), "RGB")


def test_nothing_else_is_written(written: Path) -> None:
    folders = ["imagenet-a", "imagenet-c", "imagenet-r", "imagenet-v2", "sketch", "train", "val"]
    assert sorted(os.listdir(written)) == ["coco", *folders, "voc"]
    assert os.listdir(written.parent) == ["set"]
    files = {folder: list((written / folder).rglob("*")) for folder in folders}
    assert all(one.suffix == ".JPEG" for found in files.values() for one in found if one.is_file())
    coco = sorted(str(one.relative_to(written)) for one in (written / "coco").rglob("*.*"))
    assert coco == [
        *(f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")),
        *(f"coco/train2017/{number:012d}.jpg" for number in range(1, 12)),
        *(f"coco/val2017/{number:012d}.jpg" for number in (1, 2)),
    ]
    names = {"train": range(1, 12), "val": (1, 2)}
    pairs = [f"{split}_{number:012d}" for split, numbers in names.items() for number in numbers]
    voc = sorted(str(one.relative_to(written / "voc")) for one in (written / "voc").rglob("*.*"))
    assert voc == [
        *(f"ImageSets/Segmentation/{split}.txt" for split in names),
        *(f"JPEGImages/{name}.jpg" for name in pairs),
        *(f"SegmentationClass/{name}.png" for name in pairs),
        "classes.txt",
    ]


@pytest.mark.parametrize(
    ("folder", "style"),
    [("train", "photo"), ("imagenet-r", "rendition"), ("sketch", "sketch")]
    + [(folder, "photo") for folder in _SETS[5:]],
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


def test_pictures_of_imagenet_a_are_turned(written: Path) -> None:
    turns = set()
    for file in (written / "imagenet-a").rglob("*.JPEG"):
        index = int(file.stem.rpartition("_")[2])
        picture = render(3, "imagenet-a", index, 40)
        assert CLASSES[picture.label] == file.parent.name
        with Image.open(file) as image:
            read = np.asarray(image).astype(int)
        away = [np.abs(read - np.rot90(picture.image, turn)).mean() for turn in range(4)]
        turns.add(int(np.argmin(away)))
        assert min(away) < 6 < away[0]
    assert turns <= {1, 2, 3}
    assert len(turns) > 1


def test_every_cell_of_imagenet_c_holds_the_first_pictures_of_val(written: Path) -> None:
    root = written / "imagenet-c"
    assert sorted(os.listdir(root)) == sorted(CORRUPTIONS)
    val = {file.relative_to(written / "val"): file for file in (written / "val").rglob("*.JPEG")}
    for corruption in CORRUPTIONS:
        assert sorted(os.listdir(root / corruption)) == ["1", "2", "3", "4", "5"]
        for severity in (1, 5):
            cell = root / corruption / str(severity)
            assert {file.relative_to(cell) for file in cell.rglob("*.JPEG")} == set(val)
    away = {}
    for severity in ("1", "5"):
        for name, file in val.items():
            clean = middle(Image.open(file), 48)
            with Image.open(root / "gaussian_noise" / severity / name) as image:
                assert (image.format, image.size) == ("JPEG", (48, 48))
                difference = np.asarray(image).astype(int) - np.asarray(clean)
            away[severity] = np.abs(difference).mean()
    assert 5 < away["1"] < away["5"]


def test_imagenet_c_can_be_smaller_larger_or_left_out(tmp_path: Path) -> None:
    common = ("--train", 10, "--val", 11, "--size", 32, "--detection", 0)
    _run("shapes", tmp_path / "without", *common, "--corrupted", 0)
    assert "imagenet-c" not in os.listdir(tmp_path / "without")
    _run("shapes", tmp_path / "few", *common, "--corrupted", 10, "--derived-size", 20)
    cell = tmp_path / "few/imagenet-c/fog/3"
    assert len(list(cell.rglob("*.JPEG"))) == 10
    assert Image.open(next(cell.rglob("*.JPEG"))).size == (20, 20)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_holds_the_pictures_and_annotations_of_the_world_in_memory(
    written: Path, split: str
) -> None:
    files = CocoFolder(written / "coco", split)
    memory = ShapesDetection(split, image_size=64, num_images=len(files), seed=3)
    assert files.ground_truth(range(len(files))) == memory.ground_truth(range(len(memory)))
    for index in range(len(files)):
        read, drawn = (np.asarray(one.load(index), int) for one in (files, memory))
        assert np.abs(read - drawn).mean() < 6
        with Image.open(files.path(index)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_holds_the_masks_of_the_world_in_memory(written: Path, split: str) -> None:
    files = MaskFolder(written / "voc", split)
    memory = ObjectMasks(ShapesDetection(split, image_size=64, num_images=len(files), seed=3))
    assert files.classes == memory.classes
    for index in range(len(files)):
        assert (files.mask(index) == memory.mask(index)).all()
        difference = np.asarray(files.load(index)).astype(int) - np.asarray(memory.load(index))
        assert np.abs(difference).mean() < 6  # JPEG's
    with Image.open(written / f"voc/SegmentationClass/{split}_000000000001.png") as image:
        assert image.mode == "P"
        colours = image.getpalette()
    # As published: background, aeroplane, bicycle, bird, boat, …; the border of objects.
    assert colours is not None
    assert colours[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert colours[-3:] == [224, 224, 192] or len(colours) < 768


def test_coco_can_be_left_out_and_has_a_val_image_at_least(tmp_path: Path) -> None:
    common = ("--train", 10, "--val", 10, "--size", 16, "--corrupted", 0)
    result = _run("shapes", tmp_path / "without", *common, "--detection", 0)
    assert not {"coco", "voc"} & {*os.listdir(tmp_path / "without")}
    assert "; 6 robustness sets of 10\n" in result.stdout
    result = _run("shapes", tmp_path / "one", *common, "--detection", 1)
    assert "coco with 1 train and 1 val images of 128 px" in result.stdout
    assert CocoFolder(tmp_path / "one/coco", "val").sizes.tolist() == [[128, 128]]


def test_derived_sets_have_the_side_of_the_embedded_recipes() -> None:
    recipe = RECIPES / "shapes/base.yaml"
    size = yaml.safe_load(recipe.read_text())["data"]["image_size"]
    option = next(
        one
        for one in typer.main.get_command(app).commands["shapes"].params  # type: ignore[attr-defined]
        if one.name == "derived_size"
    )
    assert option.default == size


def test_files_have_the_labels_of_the_world_in_memory(written: Path) -> None:
    files = open_source(str(written), "val", image_size=40)
    memory = open_source("shapes", "val", image_size=40, num_images=12, seed=3)
    assert files.classes == memory.classes
    for position in range(len(files)):
        index = int(Path(files.identifier(position)).stem.rpartition("_")[2])
        assert files.labels[position] == memory.labels[index]
        read, drawn = (np.asarray(x, int) for x in (files.load(position), memory.load(index)))
        assert np.abs(read - drawn).mean() < 6


def test_scenes_are_written_as_they_are_in_memory(tmp_path: Path) -> None:
    numbers = ("--train", 120, "--val", 60, "--derived-size", 16, "--detection", 4)
    result = _run("shapes", tmp_path / "world", "--setting", "scenes", "--size", 48, *numbers)
    assert result.exit_code == 0, result.output
    source = open_source(str(tmp_path / "world"), "train", image_size=48)
    world = open_source("shapes:scenes", "train", image_size=48, num_images=120)
    assert source.classes == world.classes
    np.testing.assert_array_equal(np.bincount(source.labels), np.full(60, 2))
    for kind, number in (("imagenet-r", 36), ("imagenet-a", 40), ("sketch", 60)):
        assert len(list((tmp_path / "world" / kind).iterdir())) == number
        assert recognise(tmp_path / "world" / kind) is not None
    fog = tmp_path / "world/imagenet-c/fog/3"
    assert len(list(fog.iterdir())) == 60  # unasked, an image of every class
    coco = CocoFolder(tmp_path / "world/coco", "train")
    assert [one.name for one in coco.categories] == ["cross", "disc", "ring", "square", "star"]
    _fails(
        *("shapes", tmp_path / "small", "--setting", "scenes", "--train", 60, "--val", 59),
        match="59 images for val.*there are 60 classes",
    )


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
        ("--corrupted", 9, "9 images for each part of imagenet-c; every class needs an image"),
        ("--corrupted", 2000, "made of val, which has 1024"),
        ("--derived-size", 8, "image size 8"),
        ("--detection-size", 5000, "image size 5000"),
        ("--perturbed", 3, "3 images for each part of imagenet-p"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, option: str, value: int, match: str) -> None:
    _fails("shapes", tmp_path / "set", option, value, match=match)
    assert os.listdir(tmp_path) == []


def test_videos_need_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    install = r"pip install 'sercli\[robustness\]'"
    _fails("shapes", tmp_path / "set", "--perturbed", 10, match=install)
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

        alone = check.check(written, check.Reading(tell, processes=1))
        monkeypatch.setattr(check, "_FEW", 0)
        together = check.check(written, check.Reading(tell, processes=2))
    finally:
        broken.unlink()
    assert alone.problems == together.problems
    assert len(alone.problems) == 1
    for one, other in zip(alone.splits, together.splits, strict=True):
        assert (one.split, one.num_images, one.modes) == (
            other.split,
            other.num_images,
            other.modes,
        )
        np.testing.assert_equal(one.facts, other.facts)
        np.testing.assert_array_equal(one.sizes, other.sizes)
    assert told[-1] == ("val", 12, 12)


# -- check, of the robustness sets -------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "layout", "counts"),
    [
        ("imagenet-r", "imagenet-r", ["12"]),
        ("imagenet-a", "imagenet-a", ["12"]),
        ("sketch", "imagenet-sketch", ["12"]),
        ("imagenet-v2", "imagenet-v2", ["12", "12", "12"]),
        ("imagenet-v2/top-images", "imagenet-v2", ["12"]),
        ("imagenet-c", "imagenet-c", ["900"]),
    ],
)
def test_sound_sets_are_recognised(
    written: Path, folder: str, layout: str, counts: list[str]
) -> None:
    result = _run("check", written / folder)
    assert result.exit_code == 0, result.output
    train = written / "train"
    assert f"is taken as {layout}, with the classes of {train}" in result.stdout
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("│ images  "))
    assert [cell.strip() for cell in row.split("│")[2:-1]] == counts
    assert "images can be read" in result.stdout
    assert _run("check", written / folder, "--layout", layout, "--fast").exit_code == 0


def test_ordinary_sets_are_still_ordinary(written: Path, tmp_path: Path) -> None:
    for place in (written, written / "train", written / "val"):
        assert recognise(place) is None
    for name in ("fog", "snow", "frost", "7"):  # weather, as classes
        _image(tmp_path / "set" / name / "a.jpg")
    assert recognise(tmp_path / "set") is None
    for number in range(10):
        _image(tmp_path / "digits" / str(number) / "a.jpg")
    assert recognise(tmp_path / "digits") is None
    assert _run("check", tmp_path / "digits").exit_code == 0
    sketch = shutil.copytree(tmp_path / "set", tmp_path / "apart/sketch")
    assert recognise(sketch) is None
    result = _run("check", written / "imagenet-r", "--layout", "folder")
    assert "taken as" not in result.stdout


def _folders(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_published_sets_are_recognised_by_their_classes(tmp_path: Path) -> None:
    assert recognise(_folders(tmp_path / "x", imagenet_r_classes())) == "imagenet-r"
    assert recognise(_folders(tmp_path / "y", imagenet_a_classes())) == "imagenet-a"
    assert recognise(_folders(tmp_path / "z", imagenet_classes())) is None
    assert recognise(_folders(tmp_path / "sketch", imagenet_classes())) == "imagenet-sketch"
    assert recognise(_folders(tmp_path / "v", tuple(map(str, range(1000))))) == "imagenet-v2"
    (tmp_path / "p/tilt/n01440764").mkdir(parents=True)
    assert recognise(tmp_path / "p") == "imagenet-p"
    (tmp_path / "c/noise/shot_noise/2/n01440764").mkdir(parents=True)
    assert recognise(tmp_path / "c") == "imagenet-c"


def _problems(*arguments: object, number: int) -> list[str]:
    result = _fails("check", *arguments, match=f"has {number} problem")
    assert "a robustness set must be what was published" in str(result.exception)
    return [line for line in result.stdout.splitlines() if ": " in line and "│" not in line]


def test_swapped_lists_are_told_at_once(tmp_path: Path) -> None:
    root = _folders(tmp_path / "imagenet-r", imagenet_a_classes())
    told = "114 folders that are no classes of it"
    (line,) = _problems(root, number=1)
    assert line.startswith(f"{root}: {told}")
    assert line.endswith("its classes are those of ImageNet-A")
    _problems(root, "--layout", "imagenet-r", number=1)


def test_everything_that_is_wrong_with_imagenet_c(written: Path, tmp_path: Path) -> None:
    root = shutil.copytree(written / "imagenet-c", tmp_path / "imagenet-c")
    train = ("--classes", written)
    assert _run("check", root, *train).exit_code == 0
    shutil.rmtree(root / "fog")
    shutil.rmtree(root / "snow/3")
    shutil.rmtree(root / "contrast/1/star")
    _image(root / "contrast/2/sun/a.JPEG", size=(48, 48))
    last = sorted((root / "frost/1/ring").iterdir())[-1]
    _cut(last, keep=300)
    middle_one = sorted((root / "frost/2/heart").iterdir())[0]
    _image(middle_one, size=(50, 48))
    first = sorted((root / "frost/4/arrow").iterdir())[0]
    _image(first, size=(48, 47))
    lines = _problems(root, *train, number=7)
    assert lines[0] == f"{root}: contrast/2: 1 folder that is no class of it (sun)"
    assert str(first) in lines[1]
    assert "48 × 47 pixels instead of 48 × 48" in lines[1]
    assert lines[2] == f"{root}: 1 corruption missing (fog)"
    assert lines[3] == f"{root}: snow: no severity 3"
    assert lines[4] == f"{root}: contrast/1: 1 class missing (star)"
    assert lines[5].startswith(f"cannot read the image {last}: ")
    assert lines[6].startswith(f"cannot read the image {middle_one}: it has 50 × 48 pixels")


def test_what_is_wrong_with_v2(written: Path, tmp_path: Path) -> None:
    root = shutil.copytree(written / "imagenet-v2", tmp_path / "v2")
    train = ("--classes", written / "train")
    shutil.rmtree(root / "top-images/3")
    (root / "threshold-0.7/10").mkdir()
    assert _problems(root, *train, number=2) == [
        f"{root}/threshold-0.7: 1 folder that is no class of it (10)",
        f"{root}/top-images: 1 class missing (3)",
    ]
    (root / "top-images").rename(root / "best")
    result = _fails("check", root, *train, match="has 1 problem;")
    assert "rename it to matched-frequency" in result.stdout
    variant = ("--layout", "imagenet-v2-top-images")
    _fails("check", root / "matched-frequency", *variant, *train, match="has 1 problem;")


def test_without_other_classes_imagenets_are_meant(written: Path, tmp_path: Path) -> None:
    root = shutil.copytree(written / "imagenet-c/fog", tmp_path / "a/b/fog").parent
    result = _fails("check", root, match="problem")
    assert "with ImageNet's 1000 classes" in result.stdout
    assert "fog/1 and 4 other cells: 10 folders that are no classes of it (arrow," in result.stdout


def test_options_of_check_that_do_not_fit(written: Path) -> None:
    _fails("check", written, "--layout", "imagenet-q", match="layout imagenet-q; it must be folder")
    _fails("check", written, "--classes", written, match="an ordinary data set")
    _fails("check", written / "none", "--layout", "imagenet-c", match="does not exist")
    _fails("check", written / "imagenet-r", "--classes", written / "none", match="does not exist")


@pytest.mark.run
def test_videos_are_checked_too(tmp_path: Path) -> None:
    pytest.importorskip("av")
    counts = ("--train", 10, "--val", 10, "--perturbed", 10, "--corrupted", 0)
    _run("shapes", tmp_path / "set", *counts, "--detection", 0, "--size", 32, "--derived-size", 16)
    root = tmp_path / "set/imagenet-p"
    for fast in ((), ("--fast",)):
        result = _run("check", root, *fast)
        assert result.exit_code == 0, result.output
        assert "31 frames 90, 41 frames 10" in result.stdout
        assert "all 100 videos" in result.stdout
    video = next((root / "tilt/star").iterdir())
    _cut(video, keep=100)
    (line,) = _problems(root, number=1)
    assert line.startswith(f"cannot read the video {video}: ")

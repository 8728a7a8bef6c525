"""Sets with a class for every pixel: layouts, indices, and what is wrong with files."""

import pickle

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sercli.cli import app
from sercli.data import open_source
from sercli.data.masks.folder import MaskFolder
from sercli.data.masks.layouts import VOC_CLASSES
from sercli.data.masks.objects import ObjectMasks
from sercli.data.masks.opening import open_masks, require_masks
from sercli.data.registry import find_kind
from sercli.data.shapes.detection import ShapesDetection
from sercli.data.source import UnreadableImage
from sercli.errors import UserError
from tests.support.masks import palette, scene, write_ade, write_voc

FEW = {"train": 4, "val": 2}


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "voc", FEW)


@pytest.fixture
def ade(tmp_path):
    return write_ade(tmp_path / "ade", FEW)


def test_both_layouts_give_the_same_classes(voc, ade):
    one, other = (open_masks(str(root), "train", image_size=16) for root in (voc, ade))
    assert (one.layout, other.layout) == ("voc", "ade20k")
    assert one.classes == other.classes == ("background", "red", "blue")
    assert len(one) == len(other) == 4
    for index in range(4):
        mask = scene(index, one.size(index))[1]
        assert (one.mask(index) == mask).all()
        assert (other.mask(index) == mask).all()  # 0 of ADE20K is ignored, 1 is the first class
        assert one.load(index).size == one.size(index) == mask.shape[::-1]
    assert [one.identifier(0), other.identifier(0)] == [
        "JPEGImages/train_000.jpg", "images/training/000.jpg",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(one)).describe(3) == one.describe(3)


def test_classes_that_nobody_lists(voc, ade):
    (voc / "classes.txt").unlink()
    assert MaskFolder(voc, "val").classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    (ade / "classes.txt").unlink()
    assert len(MaskFolder(ade, "val").classes) == 150
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{n}\t0\t1\t1\t1\tn {n}" for n in (1, 2, 3))]
    (ade / "objectInfo150.txt").write_text("\n".join(rows))
    assert MaskFolder(ade, "val").classes == ("n 1", "n 2", "n 3")


@pytest.mark.parametrize(
    ("names", "line"),
    [("one\n", "has 1 names"), ("a\nb\na\n", "has 'a' twice"), ("a\n\nb\n", "one of them empty")],
)
def test_a_list_of_classes_that_is_none(voc, names, line):
    (voc / "classes.txt").write_text(names)
    with pytest.raises(UserError, match=line):
        require_masks(str(voc))


def test_a_mask_of_another_size(voc):
    palette(scene(0, (20, 17))[1]).save(voc / "SegmentationClass/train_000.png")
    source = MaskFolder(voc, "train")
    with pytest.raises(UnreadableImage, match=r"train_000\.png: it is 20 x 17 pixels, but its"):
        source.size(0)


def test_a_mask_of_colours_is_refused(voc):
    path = voc / "SegmentationClass/train_001.png"
    Image.open(path).convert("RGB").save(path)
    source = MaskFolder(voc, "train")
    for look in (source.size, source.mask):
        with pytest.raises(UnreadableImage, match="its pixels are RGB, no indices of classes"):
            look(1)


@pytest.mark.parametrize("first", [0, 1])
def test_an_index_beyond_the_classes(voc, ade, first):
    path = (
        ade / "annotations/training/000.png" if first else voc / "SegmentationClass/train_000.png"
    )
    root = ade if first else voc
    values = np.array(Image.open(path))
    values[5, 5] = first + 3
    Image.fromarray(values).save(path)
    rule = f"the index {first + 3}, but the 3 classes have {first} to {first + 2}"
    with pytest.raises(UnreadableImage, match=rule):
        MaskFolder(root, "train").mask(0)
    values[5, 5] = 255
    Image.fromarray(values).save(path)
    assert MaskFolder(root, "train").mask(0)[5, 5] == 255


def test_a_truncated_mask_or_image(voc):
    source = MaskFolder(voc, "train")
    files = ("SegmentationClass/train_000.png", "JPEGImages/train_001.jpg")
    for path, look in zip(files, (lambda: source.mask(0), lambda: source.load(1)), strict=True):
        data = (voc / path).read_bytes()
        (voc / path).write_bytes(data[: len(data) // 2])
        with pytest.raises(UnreadableImage, match=path.rpartition("/")[2]):
            look()


def test_what_is_missing_is_one_line(voc, tmp_path):
    (voc / "SegmentationClass/val_001.png").unlink()
    with pytest.raises(UserError, match=r"val_001\.png is missing, the mask of val_001\.jpg"):
        require_masks(str(voc))
    (voc / "JPEGImages/val_000.jpg").unlink()
    with pytest.raises(UserError, match=r"no image val_000, which .*val\.txt lists \(and 1 more"):
        require_masks(str(voc))
    (voc / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt: No such file"):
        require_masks(str(voc))
    for line in ("../x", ".hidden"):
        (voc / "ImageSets/Segmentation/train.txt").write_text(line)
        with pytest.raises(UserError, match="which is no name of an image"):
            require_masks(str(voc))
    for place, what in ((tmp_path / "no", "does not exist"), (tmp_path, "has no masks")):
        with pytest.raises(UserError, match=what):
            require_masks(str(place))


def test_class_folders_are_no_masks_and_masks_no_class_folders(voc):
    assert find_kind(str(voc)).name == "masks"
    with pytest.raises(UserError, match="`ser segment` takes it"):
        open_source(str(voc), "train", image_size=16)


def test_each_pixel_has_the_class_of_the_object_in_front():
    detection = ShapesDetection("val", image_size=48, num_images=40)
    source = ObjectMasks(detection)
    assert source.classes[0] == "background"
    assert len(source.classes) == 11
    for index in range(40):
        picture = detection.render(index)
        drawn = np.zeros((48, 48), np.uint8)
        for thing in picture.objects:  # from the back to the front
            drawn[thing.mask] = 1 + thing.label
        hardly_seen = [thing.mask for thing in picture.objects if thing.mask.sum() < 16]
        for mask in hardly_seen:  # which no annotation has
            drawn[mask] = 0
        assert (source.mask(index) == drawn).all()
    assert np.unique(source.mask(3)).size > 2
    assert source.identifier(3) == "val/4"
    (opened,) = {type(open_masks("shapes", "val", image_size=32))}
    assert opened is ObjectMasks


def check(root, *options):
    done = CliRunner().invoke(app, ["data", "check", str(root), *options])
    return done.exit_code, done.output + str(done.exception or "")


def test_check_finds_nothing_in_sound_sets(voc, ade):
    for root, title in ((voc, "PASCAL VOC's"), (ade, "ADE20K's")):
        status, printed = check(root)
        assert status == 0, printed
        assert f"a set with masks in {title} layout" in printed.replace("\n", " ")
        assert "all 6 images can be read" in printed


def test_check_lists_all_there_is(voc):
    (voc / "SegmentationClass/val_001.png").unlink()
    palette(scene(0, (20, 17))[1]).save(voc / "SegmentationClass/train_000.png")
    path = voc / "SegmentationClass/train_001.png"
    Image.open(path).convert("RGB").save(path)
    values = np.array(Image.open(voc / "SegmentationClass/train_002.png"))
    values[3, 3] = 9
    palette(values).save(voc / "SegmentationClass/train_002.png")
    status, printed = check(voc)
    assert status != 0
    for line in (
        "val_001.png is missing", "it is 20 x 17 pixels", "its pixels are RGB", "the index 9",
        "has 4 problems",
    ):  # fmt: skip
        assert line in printed, line
    assert "has 3 problems" in check(voc, "--fast")[1]  # indices are pixels

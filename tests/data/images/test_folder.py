"""Class folders: what is found, what is kept of it, how every pixel format is read."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sercli.data import UnreadableImage, has_split, open_source
from sercli.data.images.folder import ImageFolder, class_names
from sercli.errors import SerError, UserError
from tests.support.coco_tree import write_coco_tree
from tests.support.pictures import files_of, folder, image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SER_CACHE", str(directory))
    return directory


# -- what is found -----------------------------------------------------------------------------


def test_a_folder_gives_sorted_classes_and_all_images_in_them(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "set",
        *("n02/b.JPEG", "n02/a.png", "n02/deep/er/c.jpg", "n01/z.Bmp", "n10/x.webp", "n10/y.TIFF"),
    )
    for stray in ("n01/._z.jpg", ".hidden/a.jpg", "n02/.trash/a.jpg"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_bytes(b"")
    for other in ("n01/notes.txt", "n01/jpg", "readme.md", "loose.jpg"):
        (root / other).write_bytes(b"")
    source = open_source(str(root), "train", image_size=32)
    assert source.classes == ("n01", "n02", "n10")
    assert source.labels.dtype == np.int64
    assert files_of(source) == [
        ("n01/z.Bmp", "n01"),
        ("n02/a.png", "n02"),
        ("n02/b.JPEG", "n02"),
        ("n02/deep/er/c.jpg", "n02"),
        ("n10/x.webp", "n10"),
        ("n10/y.TIFF", "n10"),
    ]
    assert (source.name, source.split) == (str(root), "train")
    for index in range(len(source)):
        assert source.load(index).size == (8, 6)
        assert source.describe(index) == str(root / source.identifier(index))


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "elsewhere", "a.jpg")
    root = folder(tmp_path / "set", "n01/b.jpg")
    (root / "n02").symlink_to(elsewhere, target_is_directory=True)
    (root / "n01/up").symlink_to(root, target_is_directory=True)
    (root / "n01/self").symlink_to(root / "n01", target_is_directory=True)
    assert files_of(ImageFolder(root)) == [("n01/b.jpg", "n01"), ("n02/a.jpg", "n02")]


def test_many_ways_to_a_directory_are_one(tmp_path: Path) -> None:
    # Each of 40 directories links to the next by two names: 2^40 paths.
    for number in range(40):
        (tmp_path / f"set/n01/{number}").mkdir(parents=True)
        for name in "xy":
            (tmp_path / f"set/n01/{number}/{name}").symlink_to(f"../{number + 1}")
    image(tmp_path / "set/n01/40/a.jpg")
    assert len(ImageFolder(tmp_path / "set")) == 1


# What is not read as an image, and what is said of it.
_STRANGE = {
    "a FIFO": os.mkfifo,
    "a socket": lambda path: _socket(path),
    "a link that leads nowhere": lambda path: path.symlink_to("gone"),
    "a link that leads to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


@pytest.mark.parametrize("what", _STRANGE)
def test_what_is_no_regular_file_is_named_by_the_scan(tmp_path: Path, what: str) -> None:
    root = folder(tmp_path / "set", "n01/b.jpg", "n02/a.jpg")
    _STRANGE[what](root / "n01/x.jpg")
    _expect(root, rf"n01/x\.jpg is {what}; images are regular files")
    source = ImageFolder(root)  # as the check opens it
    assert files_of(source)[1] == ("n01/x.jpg", "n01")
    with pytest.raises(UnreadableImage, match=r"n01/x\.jpg"):
        source.load(1)


def test_a_file_that_became_a_pipe_after_the_scan_is_not_waited_for(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "n01/b.jpg")
    source = ImageFolder(root)
    (root / "n01/b.jpg").unlink()
    os.mkfifo(root / "n01/b.jpg")
    for read in (source.load, lambda index: source.header(index, decode=False)):
        with pytest.raises(UnreadableImage, match="it is a FIFO, no regular file"):
            read(0)


@pytest.mark.parametrize("where", ["n03", "n01/more"])
def test_a_link_to_a_folder_that_is_gone_is_not_passed_over(tmp_path: Path, where: str) -> None:
    root = folder(tmp_path / "set", "n01/b.jpg", "n02/a.jpg")
    (root / where).symlink_to(tmp_path / "unmounted")
    _expect(root, f"{where} is a link that leads nowhere")


def test_what_systems_add_is_no_data_at_any_depth(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "n01/a.jpg", "n02/b.jpg")
    for added in (
        *("@eaDir/a", "#recycle", "lost+found", "__MACOSX/n01", "$RECYCLE.BIN", ".Trash-1000"),
        *("System Volume Information", "n01/@EADIR/a.jpg", "n01/deep/@eaDir", "n02/.ipynb"),
    ):
        image(root / added / "thumb.jpg")
    (root / "n01/._a.jpg").write_bytes(b"AppleDouble")
    (root / "n01/Thumbs.db").write_bytes(b"")
    source = open_source(str(root), "train", image_size=1)
    assert files_of(source) == [("n01/a.jpg", "n01"), ("n02/b.jpg", "n02")]
    assert class_names(root) == source.classes
    assert dict(ImageFolder(root).passed_over) == {
        "@eaDir": 3, "#recycle": 1, "lost+found": 1, "__MACOSX": 1, "$RECYCLE.BIN": 1, ".*": 2,
        "System Volume Information": 1, "._*": 1, "Thumbs.db": 1,
    }  # fmt: skip


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch) -> None:
    # Tests may run as root, who may read everything.
    root = folder(tmp_path / "set", "train/n01/a.jpg", "train/n02/b.jpg")
    real = os.scandir

    def denied(path):
        if os.fsdecode(path).endswith("n02"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    _expect(root, r"cannot list .*n02: Permission denied")


def test_a_name_that_is_not_utf8_is_read_and_printable(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "n01/a.png")
    os.rename(os.fsencode(root / "n01/a.png"), os.fsencode(root) + b"/n01/\xff.png")
    source = ImageFolder(root)
    assert source.load(0).size == (8, 6)
    assert source.identifier(0).encode() == b"n01/\\xff.png"


def test_splits_are_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "train/n01/a.jpg", "train/n02/b.jpg", "train/n02/c.jpg")
    assert has_split(str(root), "train")
    assert not has_split(str(root), "val")
    folder(root, "val/n01/d.jpg", "val/n02/e.jpg", "sketch/n01/f.jpg")
    assert has_split(str(root), "val")
    assert len(open_source(str(root), "train", image_size=1)) == 3
    val = open_source(str(root), "val", image_size=1)
    assert files_of(val) == [("n01/d.jpg", "n01"), ("n02/e.jpg", "n02")]
    assert val.split == "val"


def test_a_flat_folder_is_all_train_even_with_a_class_called_train(tmp_path: Path) -> None:
    root = folder(tmp_path / "coco", "boat/a.jpg", "train/b.jpg")
    assert has_split(str(root), "train")
    assert not has_split(str(root), "val")
    assert open_source(str(root), "train", image_size=1).classes == ("boat", "train")
    with pytest.raises(UserError, match="has no val/ folder"):
        open_source(str(root), "val", image_size=1)


def test_sources_travel_to_other_processes(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "set", "n/a.png")), "train", image_size=1)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.load(0).tobytes() == source.load(0).tobytes()


@pytest.mark.parametrize("index", [-1, 1, 10**9])
def test_an_index_out_of_range_is_an_error(tmp_path: Path, index: int) -> None:
    source = ImageFolder(folder(tmp_path / "set", "n/a.png"))
    for method in (source.load, source.describe, source.identifier):
        with pytest.raises(IndexError):
            method(index)


def test_shapes_is_the_embedded_world() -> None:
    train = open_source("shapes", "train", image_size=16)
    assert (len(train), len(open_source("shapes", "val", image_size=16))) == (4096, 1024)
    assert train.name == "shapes"
    few = open_source("shapes", "val", image_size=20, num_images=12, seed=5)
    assert (len(few), few.load(11).size) == (12, (20, 20))
    assert has_split("shapes", "train")
    assert has_split("shapes", "val")


# -- what the user got wrong -------------------------------------------------------------------


def _expect(path: Path, match: str, split: str = "train") -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_source(str(path), split, image_size=32)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_missing_directories_andfiles_of(tmp_path: Path) -> None:
    _expect(tmp_path / "none", "none does not exist")
    _expect(image(tmp_path / "one.jpg"), r"one\.jpg is a file")
    with pytest.raises(UserError, match="does not exist"):
        has_split(str(tmp_path / "none"), "val")


def test_folders_without_class_folders_or_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _expect(tmp_path / "empty", "holds no class folders; the layout is")
    loose = folder(tmp_path / "loose", "train/cat/a.jpg", "val/b.jpg")
    _expect(loose, "val holds images but no class folders; the layout", split="val")
    (tmp_path / "texts/n01").mkdir(parents=True)
    (tmp_path / "texts/n01/a.txt").write_text("x")
    _expect(tmp_path / "texts", "1 class folder but no image")


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "n01/a.jpg")
    (root / "n02").mkdir()
    _expect(root, r"1 empty class folder \(n02\)")
    for number in range(3, 9):
        (root / f"n0{number}/deep").mkdir(parents=True)
    _expect(root, r"7 empty class folders \(n02, n03, n04, n05, n06 and 2 more\)")


@pytest.mark.parametrize("beside", [None, "val/n01/a.jpg", "test/a.jpg"])
def test_an_empty_trainfolder(tmp_path: Path, beside: str | None) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    if beside:
        folder(tmp_path / "set", beside)
    _expect(tmp_path / "set", "train holds no class folders")


def test_a_set_of_val_alone_has_no_train(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "val/n01/a.jpg")
    assert len(open_source(str(root), "val", image_size=1)) == 1
    _expect(root, "has no train/ folder")


def test_val_must_have_the_classes_of_train(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "val/c/1.jpg")
    _expect(root, r"1 class only in train/ \(a\); 1 class only in val/ \(c\)", split="val")
    assert open_source(str(root), "train", image_size=1).classes == ("a", "b")


def test_the_number_of_images_is_only_for_shapes(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "n/a.jpg")
    with pytest.raises(UserError, match="only for `shapes`"):
        open_source(str(root), "train", image_size=32, num_images=5)
    with pytest.raises(UserError, match="number of images 0"):
        open_source("shapes", "train", image_size=32, num_images=0)


def test_a_split_has_one_of_two_names() -> None:
    with pytest.raises(ValueError, match="neither train nor val"):
        open_source("shapes", "test", image_size=32)


# -- pixel formats -----------------------------------------------------------------------------


def _load(tmp_path: Path, image: Image.Image, name: str, **save: object) -> np.ndarray:
    path = tmp_path / "set/n" / name
    path.parent.mkdir(parents=True)
    image.save(path, **save)
    loaded = ImageFolder(tmp_path / "set").load(0)
    assert loaded.mode == "RGB"
    return np.asarray(loaded).astype(int)


_RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey(tmp_path: Path) -> None:
    loaded = _load(tmp_path, Image.fromarray(_RAMP), "a.png")
    np.testing.assert_array_equal(loaded, np.stack([_RAMP] * 3, -1))


def test_grey_of_one_bit(tmp_path: Path) -> None:
    loaded = _load(tmp_path, Image.fromarray(_RAMP > 99), "a.png")
    np.testing.assert_array_equal(loaded, 255 * np.stack([_RAMP > 99] * 3, -1))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_sixteen_bits_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    wide = np.array([[0, 128, 129, 257, 300], [32768, 65535, 65407, 65406, 514]], np.uint16)
    loaded = _load(tmp_path, Image.fromarray(wide), name)
    expected = np.rint(wide.astype(np.float64) / 65535 * 255)
    np.testing.assert_array_equal(loaded, np.stack([expected] * 3, -1))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, kind: type) -> None:
    with pytest.raises(UnreadableImage, match="no defined white"):
        _load(tmp_path, Image.fromarray(_RAMP.astype(kind)), "a.tiff")


def _palette() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])  # turns mode L into P
    return image


_PALETTE_RGB = np.array([[[10, 20, 30], [200, 100, 50]], [[0, 255, 0], [200, 100, 50]]])


def test_palette(tmp_path: Path) -> None:
    np.testing.assert_array_equal(_load(tmp_path, _palette(), "a.png"), _PALETTE_RGB)


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    expected = _PALETTE_RGB.copy()
    expected[1, 0] = 255
    loaded = _load(tmp_path, _palette(), "a.png", transparency=2)
    np.testing.assert_array_equal(loaded, expected)


def _on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(np.float64) / 255
    return colour * share + 255 * (1 - share)


def test_colour_with_alpha_lies_on_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    loaded = _load(tmp_path, Image.fromarray(pixels), "a.png")
    np.testing.assert_allclose(loaded, _on_white(pixels[..., :3], pixels[..., 3]), atol=1.01)


def test_grey_with_alpha_lies_on_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 2)).astype(np.uint8)
    image = Image.merge("LA", [Image.fromarray(pixels[..., i]) for i in (0, 1)])
    expected = _on_white(np.stack([pixels[..., 0]] * 3, -1), pixels[..., 1])
    np.testing.assert_allclose(_load(tmp_path, image, "a.png"), expected, atol=1.01)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 128, 51))
    loaded = _load(tmp_path, image, "a.jpg", quality=95)
    ink, black = np.array([255, 0, 128]), 51
    np.testing.assert_allclose(loaded[8, 8], (255 - ink) * (255 - black) / 255, atol=4)


def test_orientation_in_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me"
    assert _load(tmp_path, Image.new("RGB", (20, 10)), "a.jpg", exif=exif).shape == (10, 20, 3)


# -- files that cannot be read -----------------------------------------------------------------


def _unreadable(tmp_path: Path, content: bytes, name: str, match: str) -> None:
    path = tmp_path / "set/n" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=match) as caught:
        ImageFolder(tmp_path / "set").load(0)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, SerError)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_a_cut_file(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = tmp_path / name
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    _unreadable(tmp_path, content[: int(len(content) * share)], name, r"cannot read the image")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    _unreadable(tmp_path, b"", "a.jpg", "not a known image format")
    _unreadable(tmp_path, b"<html>404</html>", "a.jpg", "not a known image format")
    _unreadable(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n", "a.jpg", "not a known image format")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    source = ImageFolder(folder(tmp_path / "set", "n/a.jpg"))
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(UnreadableImage, match="No such file"):
        source.load(0)


def test_an_image_that_would_fill_the_memory(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    _unreadable(tmp_path, bomb, "a.png", "more than 178,956,970 pixels")


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("set/a.jpg", "cut short")))
    assert (error.path, error.reason) == ("set/a.jpg", "cut short")
    assert str(error) == "cannot read the image set/a.jpg: cut short"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_detection_set_has_no_class_folders(tmp_path: Path, split: str) -> None:
    write_coco_tree(tmp_path / "coco")
    for read in (has_split, lambda path, split: open_source(path, split, image_size=32)):
        with pytest.raises(UserError, match=r"COCO's format.*ser coco-detect"):
            read(str(tmp_path / "coco"), split)

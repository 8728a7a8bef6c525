"""Class folders: what is found, what is kept of it, how every pixel format is read."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sercli.data import ImageSource, UnreadableImage, has_split, open_source
from sercli.data.images import manifest
from sercli.data.images.folder import ImageFolder
from sercli.errors import SerError, UserError
from tests.support.coco_tree import write_coco_tree

_OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SER_CACHE", str(directory))
    return directory


def _image(path: Path, level: int = 100, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level // 2, 7)).save(path)
    return path


def _folder(root: Path, *files: str) -> Path:
    for file in files:
        _image(root / file)
    return root


def _age(root: Path) -> None:
    """Give every directory a time long past, as data sets have."""
    for directory, _, _ in os.walk(root):
        os.utime(directory, _OLD)


def _files(source: ImageSource) -> list[tuple[str, str]]:
    return [(source.identifier(i), source.classes[source.labels[i]]) for i in range(len(source))]


# -- what is found -----------------------------------------------------------------------------


def test_a_folder_gives_sorted_classes_and_all_images_in_them(tmp_path: Path) -> None:
    root = _folder(
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
    assert _files(source) == [
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
    elsewhere = _folder(tmp_path / "elsewhere", "a.jpg")
    root = _folder(tmp_path / "set", "n01/b.jpg")
    (root / "n02").symlink_to(elsewhere, target_is_directory=True)
    (root / "n01/up").symlink_to(root, target_is_directory=True)
    (root / "n01/self").symlink_to(root / "n01", target_is_directory=True)
    (root / "n01/dead.jpg").symlink_to(tmp_path / "gone.jpg")
    source = ImageFolder(root)
    assert _files(source) == [("n01/b.jpg", "n01"), ("n01/dead.jpg", "n01"), ("n02/a.jpg", "n02")]
    with pytest.raises(UnreadableImage, match=r"dead\.jpg: No such file"):
        source.load(1)


def test_a_name_that_is_not_utf8_is_read_and_printable(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "n01/a.png")
    os.rename(os.fsencode(root / "n01/a.png"), os.fsencode(root) + b"/n01/\xff.png")
    source = ImageFolder(root)
    assert source.load(0).size == (8, 6)
    assert source.identifier(0).encode() == b"n01/\\xff.png"


def test_splits_are_folders(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "train/n01/a.jpg", "train/n02/b.jpg", "train/n02/c.jpg")
    assert has_split(str(root), "train")
    assert not has_split(str(root), "val")
    _folder(root, "val/n01/d.jpg", "val/n02/e.jpg", "sketch/n01/f.jpg")
    assert has_split(str(root), "val")
    assert len(open_source(str(root), "train", image_size=1)) == 3
    val = open_source(str(root), "val", image_size=1)
    assert _files(val) == [("n01/d.jpg", "n01"), ("n02/e.jpg", "n02")]
    assert val.split == "val"


def test_a_flat_folder_is_all_train_even_with_a_class_called_train(tmp_path: Path) -> None:
    root = _folder(tmp_path / "coco", "boat/a.jpg", "train/b.jpg")
    assert has_split(str(root), "train")
    assert not has_split(str(root), "val")
    assert open_source(str(root), "train", image_size=1).classes == ("boat", "train")
    with pytest.raises(UserError, match="has no val/ folder"):
        open_source(str(root), "val", image_size=1)


def test_sources_travel_to_other_processes(tmp_path: Path) -> None:
    source = open_source(str(_folder(tmp_path / "set", "n/a.png")), "train", image_size=1)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.load(0).tobytes() == source.load(0).tobytes()


@pytest.mark.parametrize("index", [-1, 1, 10**9])
def test_an_index_out_of_range_is_an_error(tmp_path: Path, index: int) -> None:
    source = ImageFolder(_folder(tmp_path / "set", "n/a.png"))
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


def test_missing_directories_and_files(tmp_path: Path) -> None:
    _expect(tmp_path / "none", "none does not exist")
    _expect(_image(tmp_path / "one.jpg"), r"one\.jpg is a file")
    with pytest.raises(UserError, match="does not exist"):
        has_split(str(tmp_path / "none"), "val")


def test_folders_without_class_folders_or_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _expect(tmp_path / "empty", "holds no class folders; the layout is")
    _expect(_folder(tmp_path / "loose", "a.jpg"), "holds images but no class folders; the layout")
    (tmp_path / "texts/n01").mkdir(parents=True)
    (tmp_path / "texts/n01/a.txt").write_text("x")
    _expect(tmp_path / "texts", "1 class folder but no image")


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "n01/a.jpg")
    (root / "n02").mkdir()
    _expect(root, r"1 empty class folder \(n02\)")
    for number in range(3, 9):
        (root / f"n0{number}/deep").mkdir(parents=True)
    _expect(root, r"7 empty class folders \(n02, n03, n04, n05, n06 and 2 more\)")


@pytest.mark.parametrize("beside", [None, "val/n01/a.jpg", "test/a.jpg"])
def test_an_empty_train_folder(tmp_path: Path, beside: str | None) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    if beside:
        _folder(tmp_path / "set", beside)
    _expect(tmp_path / "set", "train holds no class folders")


def test_a_set_of_val_alone_has_no_train(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "val/n01/a.jpg")
    assert len(open_source(str(root), "val", image_size=1)) == 1
    _expect(root, "has no train/ folder")


def test_val_must_have_the_classes_of_train(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "val/c/1.jpg")
    _expect(root, r"1 class only in train/ \(a\); 1 class only in val/ \(c\)", split="val")
    assert open_source(str(root), "train", image_size=1).classes == ("a", "b")


def test_the_number_of_images_is_only_for_shapes(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", "n/a.jpg")
    with pytest.raises(UserError, match="only for `shapes`"):
        open_source(str(root), "train", image_size=32, num_images=5)
    with pytest.raises(UserError, match="number of images 0"):
        open_source("shapes", "train", image_size=32, num_images=0)


def test_a_split_has_one_of_two_names() -> None:
    with pytest.raises(ValueError, match="neither train nor val"):
        open_source("shapes", "test", image_size=32)


# -- the cache of file lists -------------------------------------------------------------------


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder that is scanned, rather than taken from the cache."""
    scanned: list[str] = []
    real = manifest.scan

    def counted(root: str) -> manifest.Manifest:
        scanned.append(root)
        return real(root)

    monkeypatch.setattr(manifest, "scan", counted)
    return scanned


@pytest.fixture
def aged(tmp_path: Path) -> Path:
    root = _folder(tmp_path / "set", "n01/a.jpg", "n02/b.jpg", "n02/deep/é.jpg")
    _age(root)
    return root


def test_a_folder_is_scanned_once(aged: Path, scans: list[str], cache: Path) -> None:
    before = sorted(map(str, aged.rglob("*")))
    first, second = ImageFolder(aged), ImageFolder(aged)
    assert len(scans) == 1
    assert _files(first) == _files(second)
    assert first.classes == second.classes
    np.testing.assert_array_equal(first.labels, second.labels)
    assert second.load(2).size == (8, 6)
    assert sorted(map(str, aged.rglob("*"))) == before
    assert len(list(cache.rglob("*.npz"))) == 1


@pytest.mark.parametrize("where", ["n01", "n02/deep", "n03"])
def test_a_change_in_any_directory_is_seen(aged: Path, scans: list[str], where: str) -> None:
    old = _files(ImageFolder(aged))
    _image(aged / where / "new.jpg")
    new = _files(ImageFolder(aged))
    assert len(scans) == 2
    assert {name for name, _ in new} - {name for name, _ in old} == {f"{where}/new.jpg"}
    _age(aged)
    ImageFolder(aged)
    (aged / where / "new.jpg").unlink()
    if where == "n03":
        (aged / where).rmdir()
    assert _files(ImageFolder(aged)) == old


def test_another_folder_under_the_same_name_is_seen(aged: Path, tmp_path: Path) -> None:
    ImageFolder(aged)
    aged.rename(tmp_path / "moved")
    _folder(aged, "n05/a.jpg")
    assert ImageFolder(aged).classes == ("n05",)


def test_a_folder_still_being_filled_is_not_kept(tmp_path: Path, scans: list[str]) -> None:
    root = _folder(tmp_path / "set", "n01/a.jpg")
    ImageFolder(root)
    ImageFolder(root)
    assert len(scans) == 2


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "flipped", "other format", "pickle"])
def test_a_damaged_cache_is_replaced(
    aged: Path, scans: list[str], cache: Path, damage: str
) -> None:
    expected = _files(ImageFolder(aged))
    (stored,) = cache.rglob("*.npz")
    whole = stored.read_bytes()
    position = whole.index(b"a.jpg")
    if damage == "other format":
        with np.load(stored) as old:
            np.savez(stored, **{**old, "format": np.array(0)})
    elif damage == "pickle":
        with np.load(stored) as old:
            np.savez(stored, **{**old, "names": np.array([{"a": 1}], object)})
    else:
        stored.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "noise": bytes(range(256)) * 20,
                "empty": b"",
                "flipped": whole[:position] + b"X" + whole[position + 1 :],
            }[damage]
        )
    assert _files(ImageFolder(aged)) == expected
    assert len(scans) == 2
    assert _files(ImageFolder(aged)) == expected
    assert len(scans) == 2


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
    assert manifest.cache_directory() == Path("/s")
    monkeypatch.delenv("SER_CACHE")
    assert manifest.cache_directory() == Path("/x/ser")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert manifest.cache_directory() == Path("/h/.cache/ser")


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
    source = ImageFolder(_folder(tmp_path / "set", "n/a.jpg"))
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

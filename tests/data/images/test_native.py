"""The fast decoder against Pillow: the same pixels of the same files, and the same refusals."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from sercli.data.images import native
from sercli.data.images.decode import read_pixels, read_rgb
from sercli.data.images.folder import ImageFolder
from sercli.data.loading import load_batches
from sercli.data.source import UnreadableImage
from sercli.data.subset import with_classes


def photo(width, height, seed=0):
    """Gradients with structure at every scale, and noise."""
    draws = np.random.default_rng(seed)
    levels = np.full((height, width, 3), 128.0)
    for octave in range(1, 6):
        knots = draws.normal(scale=40 / octave, size=(2**octave, 2**octave, 3))
        for channel in range(3):
            small = Image.fromarray(knots[..., channel].astype(np.float32))
            levels[..., channel] += np.asarray(small.resize((width, height), Image.BICUBIC))
    levels += draws.normal(scale=4, size=levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}), **settings)
    return file.getvalue()


PHOTO = photo(61, 43)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be shown turned, which no decoder of ours does
BY_LIBJPEG = {
    "baseline": encoded(PHOTO),
    "progressive": encoded(PHOTO, progressive=True),
    "no subsampling": encoded(PHOTO, subsampling=0),
    "half subsampling": encoded(PHOTO, subsampling=1),
    "restart markers": encoded(PHOTO, restart_marker_rows=1),
    "stored as RGB": encoded(PHOTO, keep_rgb=True),
    "grey": encoded(PHOTO.convert("L")),
    "grey progressive": encoded(PHOTO.convert("L"), progressive=True),
    "exif": encoded(PHOTO, exif=TURNED),
    "one pixel": encoded(photo(1, 1)),
    "one line": encoded(photo(255, 1)),
    "odd": encoded(photo(17, 9)),
    "followed by junk": encoded(PHOTO) + b"junk",
    "large": encoded(photo(500, 375)),
}
BY_PILLOW = {
    "cmyk": encoded(PHOTO.convert("CMYK")),
    "png": encoded(PHOTO, "PNG"),
    "transparent": encoded(Image.merge("RGBA", (*PHOTO.split(), PHOTO.convert("L"))), "PNG"),
    "palette": encoded(PHOTO.convert("P"), "GIF"),
    "16 bits": encoded(
        Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "PNG"
    ),
    "bmp": encoded(PHOTO, "BMP"),
}


def written(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("name", [*BY_LIBJPEG, *BY_PILLOW])
def test_the_levels_are_pillows(tmp_path, name):
    path = written(tmp_path, {**BY_LIBJPEG, **BY_PILLOW}[name])
    pixels = read_pixels(path, called="it")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(read_rgb(path, called="it")))


@pytest.mark.parametrize("name", [*BY_LIBJPEG, *BY_PILLOW])
def test_who_decodes_what(name):
    data = {**BY_LIBJPEG, **BY_PILLOW}[name]
    found = native.decode(bytearray(data), Image.open(io.BytesIO(data)))
    assert (found is not None) == (name in BY_LIBJPEG)


def outcome(read, path):
    try:
        return np.asarray(read(path, called="it"))
    except UnreadableImage as error:
        return str(error)


def spoiled():
    """Each kind of file cut anywhere, and with bytes changed or left out."""
    draws = np.random.default_rng(0)
    for name in ("baseline", "progressive", "grey", "restart markers", "exif"):
        data = BY_LIBJPEG[name]
        for length in [*range(0, len(data), len(data) // 40), *range(len(data) - 4, len(data))]:
            yield data[:length]
        yield data[:-2] + b"\0\0"
        for _ in range(60):
            changed = bytearray(data)
            for place in draws.integers(len(data), size=draws.integers(1, 4)):
                changed[place] = draws.integers(256)
            first = draws.integers(len(data))
            yield bytes(changed)
            yield data[:first] + data[first + draws.integers(1, 40) :]


def test_the_same_files_are_refused_in_the_same_words(tmp_path):
    refused = read = 0
    for data in spoiled():
        path = written(tmp_path, data)
        by_pillow, fast = outcome(read_rgb, path), outcome(read_pixels, path)
        assert type(by_pillow) is type(fast), (by_pillow, fast)
        if isinstance(fast, str):
            assert by_pillow == fast
        else:  # what stands for pixels that are lost differs by release of libjpeg-turbo
            assert by_pillow.shape == fast.shape
        refused, read = refused + isinstance(fast, str), read + isinstance(fast, np.ndarray)
    assert refused > 100
    assert read > 100


def test_a_torchvision_without_libjpeg_leaves_all_to_pillow(tmp_path, monkeypatch):
    path = written(tmp_path, BY_LIBJPEG["baseline"])
    fast = read_pixels(path, called="it")
    monkeypatch.setattr(native, "available", lambda: False)
    assert np.array_equal(read_pixels(path, called="it"), fast)


def test_what_is_large_is_not_read_at_once(tmp_path, monkeypatch):
    path = written(tmp_path, BY_LIBJPEG["baseline"])
    fast = read_pixels(path, called="it")
    monkeypatch.setattr("sercli.data.images.decode._READ_AT_ONCE", 10)
    assert np.array_equal(read_pixels(path, called="it"), fast)
    assert np.array_equal(read_rgb(path, called="it"), fast)


class Pixels:
    def __init__(self, path):
        self.path = path

    def __getitem__(self, _key):
        return read_pixels(self.path, called="it").shape


def test_libjpeg_prints_nothing_from_a_loader_process(tmp_path, capfd):
    path = written(tmp_path, BY_LIBJPEG["baseline"].replace(b"\xff\xc4", b"\0\xff\xc4", 1))
    native.available()
    (shapes,) = load_batches(Pixels(path), [[0]], workers=1)
    assert shapes == [(43, 61, 3)]
    assert capfd.readouterr().err == ""
    read_pixels(path, called="it")
    assert "extraneous" in capfd.readouterr().err  # it is such a file


def test_folders_and_subsets_have_pixels(tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(encoded(photo(20 + number, 10)))
    folder = ImageFolder(tmp_path)
    assert [folder.pixels(i).shape for i in range(2)] == [(10, 20, 3), (10, 21, 3)]
    assert np.array_equal(with_classes(folder, ["b"]).pixels(0), folder.pixels(1))
    with pytest.raises(IndexError):
        folder.pixels(2)


class WithoutErrors(Pixels):
    def __getitem__(self, key):
        kept = os.dup(2)
        os.close(2)
        try:
            return super().__getitem__(key)
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def test_a_loader_process_without_standard_error_reads_all_the_same(tmp_path):
    path = written(tmp_path, BY_LIBJPEG["baseline"])
    assert list(load_batches(WithoutErrors(path), [[0]], workers=1)) == [[(43, 61, 3)]]

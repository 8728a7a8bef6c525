"""Parts of files: read as files of their own, with few of many open."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from sercli.data.images import stored
from sercli.data.images.decode import read_header, read_pixels, read_rgb
from sercli.data.images.stored import Span, Window, open_stored
from sercli.errors import UserError
from tests.support.archives import picture


def part(path: Path, content: bytes, *, before: bytes = b"x" * 700) -> Span:
    """A file that holds `content` between other bytes."""
    path.write_bytes(before + content + b"y" * 300)
    status = os.stat(path)
    return Span(str(path), len(before), len(content), status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("largest", [0, 2**30])
def test_an_image_is_the_same_in_a_file_a_part_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(stored, "_IN_MEMORY", largest)
    (tmp_path / "a.png").write_bytes(picture(1))
    places = (
        str(tmp_path / "a.png"),
        part(tmp_path / "a.tar", picture(1)),
        memoryview(picture(1)),
    )
    whole = [np.asarray(read_rgb(where, called="it")) for where in places]
    for where, pixels in zip(places, whole, strict=True):
        assert np.array_equal(pixels, whole[0])
        assert np.array_equal(read_pixels(where, called="it"), whole[0])
        assert read_header(where, called="it", decode=False).height == 9
        with open_stored(where) as (file, size):
            assert (size, file.read()) == (len(picture(1)), picture(1))


def test_a_window_is_a_file_that_begins_and_ends_where_the_part_does(tmp_path: Path) -> None:
    content = bytes(range(200))
    window, file = Window(part(tmp_path / "a", content)), io.BytesIO(content)
    for place, whence, count in ((0, 0, 7), (-9, 2, 20), (5, 1, 3), (190, 0, 50), (500, 0, 4)):
        if whence == os.SEEK_CUR:
            window.seek(20)
            file.seek(20)
        assert window.seek(place, whence) == file.seek(place, whence)
        assert window.read(count) == file.read(count)
        assert window.tell() == file.tell()
    with pytest.raises(ValueError, match="it must be >= 0"):
        window.seek(-900, os.SEEK_CUR)


def test_a_thousand_archives_need_few_descriptors(tmp_path: Path) -> None:
    spans = [part(tmp_path / f"{number}", b"%03d" % number) for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, span in enumerate(spans):
            assert stored.read_span(span) == b"%03d" % number
    assert len(os.listdir("/proc/self/fd")) <= before + stored._OPEN_AT_ONCE


def test_a_file_that_has_changed_is_refused_open_or_not(tmp_path: Path) -> None:
    span = part(tmp_path / "a", b"abc")
    assert stored.read_span(span) == b"abc"
    with open(span.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="has changed since the images in it were listed"):
        stored.read_span(span)
    with pytest.raises(UserError, match="has changed"):
        Window(span).read(1)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_file_that_was_written_anew_with_its_size_is_refused(
    tmp_path: Path, is_open: bool
) -> None:
    span = part(tmp_path / "a", b"abc")
    if is_open:
        assert stored.read_span(span) == b"abc"
    part(tmp_path / "a", b"xyz")
    os.utime(span.path, ns=(0, span.mtime_ns + 1))
    with pytest.raises(UserError, match="has changed since"):
        stored.read_span(span)
    os.utime(span.path, ns=(0, span.mtime_ns))  # somebody wants it so
    assert stored.read_span(span) == b"xyz"


def test_what_was_read_last_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_OPEN_AT_ONCE", 2)
    spans = {name: part(tmp_path / name, name.encode()) for name in "abc"}
    opened: list[str] = []
    as_listed = stored._open_as_listed

    def counted(span: Span) -> int:
        opened.append(os.path.basename(span.path))
        return as_listed(span)

    monkeypatch.setattr(stored, "_open_as_listed", counted)
    for name in "abacacb":
        assert stored.read_span(spans[name]) == name.encode()
    assert "".join(opened) == "abcb"


def test_a_read_that_gives_less_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of more than 2 GiB, and when a signal comes."""
    pread, content = os.pread, bytes(range(100))
    span = part(tmp_path / "a", content)
    monkeypatch.setattr(os, "pread", lambda file, size, place: pread(file, min(size, 7), place))
    assert stored.read_span(span) == content
    with pytest.raises(EOFError, match="ends after 500 of its 2,000 bytes"):
        stored.read_span(Span(span.path, 600, 2000, span.length, span.mtime_ns))

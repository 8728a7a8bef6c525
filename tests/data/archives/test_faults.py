"""What is wrong with an archive is one line: what was received, the rule, what to do."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from sercli.data import UnreadableImage, open_source
from sercli.data.images import stored
from sercli.errors import UserError
from tests.support.archives import pictures, samples, tar_bytes, write_tar, write_zip


def opened(path: Path | str, split: str = "train"):
    return open_source(str(path), split, image_size=32)


def refusal(path: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        opened(path, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def member_of(kind: bytes, name: str = "b/1.png", link: str = "a/1.png", size: int = 0) -> bytes:
    """A tar with an image, a member of some type, and an image."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for one in ("a/1.png", None, "b/2.png"):
            member = tarfile.TarInfo(one or name)
            member.type = tarfile.REGTYPE if one else kind
            member.linkname = "" if one else link
            member.size = 0 if one else size
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return file.getvalue()


# -- Tars that are not whole ----------------------------------------------------------------------

WHOLE = tar_bytes({f"{folder}/{number}.png": b"x" * 700 for folder in "ab" for number in range(3)})
END = 6 * (512 + 1024)  # where the end mark stands

TRUNCATED = {
    "within an image": (WHOLE[: END - 500], "it ends within b/2.png, after"),
    "behind a header": (WHOLE[:512], "it ends within a/0.png"),
    "within a header": (
        WHOLE[: END - 1536 + 100],
        "it ends behind b/1.png, without tar's end mark",
    ),
    "between two images": (WHOLE[: END - 1536], "it ends behind b/1.png, without tar's end mark"),
    "within what fills a block": (
        WHOLE[: END - 200],
        "it ends behind b/2.png, without tar's end mark",
    ),
    "without an end mark": (WHOLE[:END], "it ends behind b/2.png, without tar's end mark"),
    "damaged": (WHOLE[:1536] + b"y" * 512 + WHOLE[2048:], "it is damaged behind a/0.png"),
    "no tar": (b"y" * 4000, "it is no tar archive (invalid header)"),
    "empty": (b"", "it is empty; copy or download it again"),
    "joined by cat": (WHOLE + WHOLE, "more follows its end mark, behind b/2.png"),
}


@pytest.mark.parametrize("how", TRUNCATED)
def test_a_tar_that_is_not_whole_is_refused_with_its_last_member(tmp_path: Path, how: str) -> None:
    data, told = TRUNCATED[how]
    text = refusal(made(tmp_path / "x.tar", data))
    assert told in text
    assert text.startswith("x.tar: ")
    assert "again" in text or "tar -A" in text


def test_a_truncated_tar_within_a_tar_is_told_by_its_name(tmp_path: Path) -> None:
    inner = tar_bytes({"1.png": b"x" * 700})
    files = {"n01440764.tar": inner, "n01443537.tar": inner[:900], "n01484850.tar": b""}
    text = refusal(write_tar(tmp_path / "x.tar", files))
    assert "x.tar: n01443537.tar: it ends within 1.png" in text
    assert "(and 1 more such)" in text
    assert "holds no image" in refusal(write_tar(tmp_path / "y.tar", {"deep.txt": b""}))


@pytest.mark.parametrize("length", [0, 3, 600, 2048])
def test_a_size_that_leads_back_or_beyond_ends(tmp_path: Path, length: int) -> None:
    header = bytearray(tarfile.TarInfo("a/1.png").tobuf()[:512])
    for size in (-1, -512, -(2**40), 2**62):
        header[124:136] = (
            b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
            if size < 0
            else (b"\x80" + size.to_bytes(11, "big"))
        )
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        text = refusal(made(tmp_path / "x.tar", bytes(header) + b"\0" * length))
        assert "x.tar: it" in text


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_larger_than_any_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 2**40
    path = made(tmp_path / "x.tar", member.tobuf(tarfile.GNU_FORMAT))
    with open(path, "r+b") as file:
        file.truncate(2**31)  # sparse on the disk
    assert "a header of" in refusal(path)


def test_names_upon_names_without_end_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 512
    assert "x.tar: it" in refusal(made(tmp_path / "x.tar", (member.tobuf() + b"y" * 512) * 3000))


# -- Members that are not taken -------------------------------------------------------------------

MEMBERS = {
    "a symbolic link": (member_of(tarfile.SYMTYPE), "b/1.png is a symbolic link"),
    "a hard link": (member_of(tarfile.LNKTYPE), "b/1.png is a hard link"),
    "a link to a folder": (member_of(tarfile.SYMTYPE, "b"), "b is a symbolic link"),
    "a device": (member_of(tarfile.CHRTYPE), "b/1.png is a device"),
    "a FIFO": (member_of(tarfile.FIFOTYPE), "b/1.png is a FIFO"),
    "a sparse file": (member_of(tarfile.GNUTYPE_SPARSE), "b/1.png is stored sparse"),
    "a volume's rest": (member_of(b"M"), "b/1.png is of a type that is not read"),
    "a way out": (tar_bytes({"../x.png": b""}), "../x.png leads out of the archive"),
    "a way out within": (tar_bytes({"a/../../x.png": b""}), "a/../../x.png leads out"),
    "an absolute path": (tar_bytes({"/etc/x.png": b""}), "/etc/x.png has an absolute path"),
    "a drive": (tar_bytes({"C:\\x.png": b""}), "C:\\x.png has an absolute path"),
    "a NUL": (tar_bytes({"a\0b/x.png" + "y" * 100: b""}), "a\0b/x.pngy"),
    "no name": (tar_bytes({"": b""}), "a member without a name has no name"),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_a_member_that_is_no_file_below_the_archive_is_refused(tmp_path: Path, what: str) -> None:
    data, told = MEMBERS[what]
    assert f"x.tar: {told}" in refusal(made(tmp_path / "x.tar", data))


def test_what_systems_add_may_be_a_link(tmp_path: Path) -> None:
    data = member_of(tarfile.SYMTYPE, ".snapshot")
    assert len(opened(made(tmp_path / "x.tar", data))) == 2


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a/1.png", "b/1.png", "a/1.png"):
            archive.addfile(tarfile.TarInfo(name))
    text = refusal(made(tmp_path / "x.tar", file.getvalue()))
    assert "a/1.png stands more than once (in x.tar and x.tar)" in text


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number, suffix in enumerate(("jpg", "png")):
        files = {f"a.{suffix}": b"", "a.cls": b"0"}
        write_tar(tmp_path / f"x-{number}.tar", files)
    text = refusal(tmp_path)
    assert "a stands more than once (in x-0.tar and x-1.tar)" in text


# -- Labels ---------------------------------------------------------------------------------------

LABELS = {
    "two images": ({"a.jpg": b"", "a.png": b"", "a.cls": b"0"}, "the key a has 2 images"),
    "none": ({"a.jpg": b"", "a.cls": b"0", "b.jpg": b""}, "1 of 2 images have no label, b.jpg"),
    "empty": ({"a.jpg": b"", "a.cls": b" \n"}, "a.cls is empty"),
    "long": ({"a.jpg": b"", "a.cls": b"1" * 2000}, "a.cls is larger than 1,024 bytes"),
    "below 0": (
        {"a.jpg": b"", "a.cls": b"-1"},
        "a.cls has the label -1; labels are names, or whole numbers from 0",
    ),
    "a float": ({"a.jpg": b"", "a.cls": b"1.0\n"}, "a.cls has the label 1.0; labels are names"),
    "with a sign": ({"a.jpg": b"", "a.cls": b"+1"}, "a.cls has the label +1; labels are names"),
    "beyond": ({"a.jpg": b"", "a.cls": b"1" * 30}, "a.cls has the label 1111"),
    "json below 0": ({"a.jpg": b"", "a.json": b'{"label": -3}'}, "a.json has the label -3"),
    "bad json": (
        {"a.jpg": b"", "a.json": b'{"label": 0}', "b.jpg": b"", "b.json": b"{"},
        "1 of its .json members cannot be read",
    ),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_that_do_not_tell_a_class_are_refused(tmp_path: Path, what: str) -> None:
    files, told = LABELS[what]
    assert told in refusal(write_tar(tmp_path / "x.tar", files))


def test_json_without_labels_is_no_label(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"",
        "a.json": b'{"label": "a dog", "width": 3}',
        "b.jpg": b"",
        "b.json": b"[",
    }
    assert opened(write_tar(tmp_path / "x.tar", files)).classes == ()


# -- What cannot be read where it lies ------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_a_compressed_tar_is_refused_by_its_content(tmp_path: Path, suffix: str) -> None:
    path = made(tmp_path / f"x.{suffix}", gzip.compress(WHOLE))
    assert refusal(path).startswith(f"x.{suffix}: it is compressed (gzip)")
    assert "gunzip it first" in refusal(tmp_path)  # as a folder, too


@pytest.mark.parametrize(
    ("begins", "unpacks"),
    [
        (b"\xfd7zXZ\0", "unxz"),
        (b"BZh9", "bunzip2"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"\x04\x22\x4d\x18", "unlz4"),
        (b"\x1f\x9d\x90", "uncompress"),
        (b"\x5d\0\0\x80", "unlzma"),
        (b"7z\xbc\xaf\x27\x1c", "7z x"),
        (b"Rar!", "unrar x"),
    ],
)
def test_what_is_compressed_is_refused_with_what_unpacks_it(
    tmp_path: Path, begins: bytes, unpacks: str
) -> None:
    text = refusal(made(tmp_path / "x.tar", begins + b"x" * 600))
    assert f"{unpacks} it first, or unpack it and name the folder" in text


def test_a_compressed_zip_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pictures(), how=zipfile.ZIP_DEFLATED)
    assert "18 members deflated" in refusal(path)
    assert "zip -0 -r" in refusal(path)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "x.zip", {"a/1.png": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "1 member encrypted (a/1.png)" in refusal(made(tmp_path / "y.zip", bytes(data)))


def test_a_split_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "x.zip", {"a/1.png": b"x"}).read_bytes())
    end = data.index(b"PK\x05\x06")
    data[end + 4 : end + 8] = struct.pack("<HH", 1, 1)
    assert "it is a part of a split zip" in refusal(made(tmp_path / "y.zip", bytes(data)))
    assert "it is a part of a split zip" in refusal(made(tmp_path / "z.zip", b"PK\x07\x08" + data))


def test_a_zip_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "x.zip", pictures()).read_bytes()
    assert "it is truncated" in refusal(made(tmp_path / "y.zip", data[:-30]))
    assert "x.zip: it is no tar archive" in refusal(made(tmp_path / "x.zip", b"hello" * 300))
    spoilt = bytearray(data)
    spoilt[0:4] = b"PK\x05\x06"
    assert "or at no header" in refusal(made(tmp_path / "z.zip", bytes(spoilt)))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("a/1.png")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, "../etc")
    assert "x.zip: a/1.png is a symbolic link" in refusal(path)


@pytest.mark.parametrize("what", ["a FIFO", "a link that leads nowhere", "a folder"])
def test_what_is_no_archive_by_its_nature_is_not_waited_for(tmp_path: Path, what: str) -> None:
    write_tar(tmp_path / "x-0.tar", {"a/1.png": b"", "b/1.png": b""})
    other = tmp_path / "x-1.tar"
    if what == "a FIFO":
        os.mkfifo(other)
        assert "x-1.tar: it is a FIFO" in refusal(tmp_path)
    elif what == "a folder":
        other.mkdir()
        assert len(opened(tmp_path)) == 2
    else:
        other.symlink_to("nowhere")
        assert "cannot look at" in refusal(tmp_path)


# -- While it is read -----------------------------------------------------------------------------


def test_an_archive_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", pictures())
    source = opened(path)
    source.load(0)
    data = path.read_bytes()
    other = made(tmp_path / "other", data + b"\0" * 10_240)
    with open(path, "r+b") as file:  # in place, while it is open
        file.write(other.read_bytes())
    with pytest.raises(UserError, match=r"x\.tar has changed since the images in it were listed"):
        source.load(1)
    assert len(opened(path)) == 12


def test_an_archive_that_was_replaced_by_another_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_OPEN_AT_ONCE", 1)
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", {f"n{name}/1.png": pictures()[next(iter(pictures()))]})
    source = opened(tmp_path)
    for index in (0, 1):
        source.load(index)
    os.replace(write_tar(tmp_path / "new", pictures()), tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"a\.tar has changed"):
        source.load(0)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.load(0)


def test_an_image_that_cannot_be_decoded_is_as_one_in_a_folder(tmp_path: Path) -> None:
    files = {**samples({"n01440764/x.png": b"no image"}), **samples({"n01443537/y.png": b""})}
    path = write_tar(tmp_path / "x.tar", files)
    source = opened(path)
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match=r"x\.tar: [xy]\.png: its content is not"):
            source.load(index)

"""Classes of ImageNet's validation images: from the devkit in any form, never from numbers."""

import io
import tarfile
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from sercli.data.imagenet_labels import (
    find_validation_labels,
    validation_number,
    validation_wnids,
    wnid_of,
)
from sercli.errors import UserError

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# As in the devkit: numbers are no places among the sorted wnids, and inner nodes follow the leaves.
WNIDS = {1: "n02119789", 2: "n02100735", 3: "n01440764", 1001: "n00001740"}
TRUTH = (3, 1, 2, 1)
TOLD = ["n01440764", "n02119789", "n02100735", "n02119789"]


def meta(more=()):
    """A meta.mat; `more`: further numbers and their wnids."""
    wnids = WNIDS | dict(more)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = np.zeros((len(wnids), 1), kinds)
    for row, (number, wnid) in zip(rows[:, 0], wnids.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = number, wnid, "a thing"
        row["num_children"] = 0 if number <= 1000 else 3
    file = io.BytesIO()
    savemat(file, {"synsets": rows}, do_compression=True)
    return file.getvalue()


def truth():
    return "".join(f"{number}\n" for number in TRUTH).encode()


FILES = {
    "ILSVRC2012_devkit_t12/readme.txt": b"ILSVRC2012\n",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth(),
    "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
}


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def pack(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def refusal(*folders):
    with pytest.raises(UserError) as error:
        validation_wnids(*folders)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_number_of_an_image_stands_in_its_name():
    assert validation_number(b"ILSVRC2012_val_00000293.JPEG") == 293
    assert validation_number(b"ILSVRC2012_val_00050000.jpg") == 50_000
    for other in (
        b"n01440764_18.JPEG",
        b"ILSVRC2012_val_293.JPEG",
        b"xILSVRC2012_val_00000293.JPEG",
    ):
        assert validation_number(other) is None


@pytest.mark.parametrize("form", ["folder", "its data folder", "its files", "tar.gz", "tar"])
def test_the_devkit_tells_classes_in_every_form(tmp_path, form):
    inner = {name.rpartition("/")[2]: content for name, content in FILES.items()}
    if form == "folder":
        write(tmp_path, FILES)
    elif form == "its data folder":
        write(tmp_path / "data", inner)
    elif form == "its files":
        write(tmp_path, inner)
    elif form == "tar.gz":
        pack(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", FILES)
    else:
        pack(tmp_path / "ILSVRC2012_devkit_t12.tar", FILES, "w")
    assert validation_wnids(tmp_path) == TOLD
    (tmp_path / "images").mkdir()
    assert validation_wnids(tmp_path / "images", tmp_path) == TOLD


def test_a_text_with_a_wnid_a_line_tells_classes(tmp_path):
    (tmp_path / "notes.txt").write_text("whatever\n")
    (tmp_path / "val wnids.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(TOLD).encode() + b"\r\n\n"
    )
    assert validation_wnids(tmp_path) == TOLD
    labels = find_validation_labels(tmp_path)
    assert labels.files == (str(tmp_path / "val wnids.txt"),)
    (tmp_path / "again.txt").write_text("\n".join(TOLD))
    assert validation_wnids(tmp_path) == TOLD  # other line ends, and the same wnids
    (tmp_path / "again.txt").write_text("\n".join(reversed(TOLD)))
    assert "both hold wnids, and not the same" in refusal(tmp_path)
    (tmp_path / "again.txt").unlink()
    (tmp_path / "val wnids.txt").write_text("n01440764\nn02119789 x\n")
    assert "line 2 of" in refusal(tmp_path)


def test_a_bare_list_of_numbers_is_refused_with_the_reason(tmp_path):
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_bytes(truth())
    text = refusal(tmp_path)
    assert "ILSVRC2012_validation_ground_truth.txt has no meta.mat beside it" in text
    assert "not places among the sorted wnids" in text
    assert "put ILSVRC2012_devkit_t12.tar.gz" in text
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").unlink()
    assert "nothing in" in refusal(tmp_path)


def test_what_does_not_tell_classes_is_refused(tmp_path):
    data = tmp_path / "devkit" / "data"
    write(tmp_path, {"devkit/data/meta.mat": meta(), f"devkit/data/{_TRUTH}": b"3\n1\n1002\n"})
    assert "line 3 of" in refusal(tmp_path)
    for damaged in (
        b"",
        b"MATLAB 5.0",
        meta()[:-40],
        meta()[:128] + b"\xff" * 64,
        zlib.compress(b""),
    ):
        (data / "meta.mat").write_bytes(damaged)
        assert "meta.mat cannot be read" in refusal(tmp_path)
    other = io.BytesIO()
    savemat(other, {"synsets": np.zeros(3)})
    (data / "meta.mat").write_bytes(other.getvalue())
    assert "it must have synsets with WNID" in refusal(tmp_path)


def test_a_damaged_devkit_is_refused(tmp_path):
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    pack(path, FILES)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-200], whole[:100], b"\x1f\x8b" + b"x" * 600, b"x" * 5000):
        path.write_bytes(damaged)
        assert "cannot be read as ImageNet's devkit" in refusal(tmp_path)
    pack(path, {name: data for name, data in FILES.items() if "meta" not in name})
    assert "holds no meta.mat" in refusal(tmp_path)


def test_an_image_beyond_the_list_is_refused():
    assert wnid_of(4, TOLD, image="it") == "n02119789"
    for number in (0, 5):
        with pytest.raises(
            UserError, match=f"it is image {number}, and classes are told of 4 images"
        ):
            wnid_of(number, TOLD, image="it")

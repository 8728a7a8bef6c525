"""The published robustness sets in their real shape: what is read, and what is refused."""

from __future__ import annotations

import functools
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sercli.data import ImageSource, UnreadableImage
from sercli.data.corruptions.catalogue import as_jpeg, corrupt, corruption_generator
from sercli.data.robustness import published as robustness_published
from sercli.data.robustness import sets as robustness_sets
from sercli.data.robustness import videos
from sercli.data.robustness.imagenet_classes import (
    imagenet_a_classes,
    imagenet_classes,
    imagenet_r_classes,
    is_imagenet,
)
from sercli.data.robustness.sets import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    KINDS,
    PERTURBATIONS,
    SEVERITIES,
    find_v2,
    open_corrupted,
    open_otf,
    open_perturbed,
    open_set,
)
from sercli.data.shapes.files import Derived, file_sets, write_sets
from sercli.data.shapes.outlines import CLASSES
from sercli.data.shapes.world import ShapesSource
from sercli.errors import UserError

WNIDS = imagenet_classes()
# A head may have its classes in any order.
HEAD = tuple(random.Random(0).sample(WNIDS, 1000))
_PLACE = {name: place for place, name in enumerate(HEAD)}

Files = dict[str, int]  # class folder → images


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SER_CACHE", str(tmp_path_factory.mktemp("cache")))


def _jpeg(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 199)).save(path)
    return path


def _tree(root: Path, files: Files, image: Path, name: str = "image_{}.JPEG") -> Path:
    """Class folders of hard links to one image, made in shuffled order."""
    folders = list(files)
    random.Random(1).shuffle(folders)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(files[folder]):
            os.link(image, root / folder / name.format(number))
    (root / "README.txt").write_text("as archives have it")
    return root


def _spread(names: Sequence[str], total: int) -> Files:
    """Unequal counts that add up to `total`."""
    each, more = divmod(total, len(names))
    return {name: each + (i < more) + (i % 2 or -1) for i, name in enumerate(names)}


def _sketches() -> Files:
    """889 classes of 51 images and 111 of 50, as ImageNet-Sketch's archive has them."""
    smaller = {*random.Random(3).sample(WNIDS, 111)}
    return {name: 50 if name in smaller else 51 for name in WNIDS}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five kinds of class folders with the published numbers of (tiny) images."""
    root = tmp_path_factory.mktemp("published")
    for folder, files, name in (
        ("imagenet-r", _spread(imagenet_r_classes(), 30_000), "art_{}.jpg"),
        ("imagenet-a", _spread(imagenet_a_classes(), 7_500), "0.01_cat_0.9_{}.jpg"),
        ("sketch", _sketches(), "sketch_{}.JPEG"),
        ("imagenetv2-top-images-format-val", {str(i): 10 for i in range(1000)}, "{}.jpeg"),
    ):
        # One image each, as a file system allows some 65,000 links to one.
        image = _jpeg(root / f"{folder}.jpg")
        _tree(root / folder, files, image, name)
    return root


def _open(kind: str, path: Path, head: Sequence[str] = HEAD, **options: bool) -> object:
    return open_set(kind, path, head, **options)


def _refuses(match: str | Iterable[str], call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told
    assert caught.value.exit_status == 2
    for part in [match] if isinstance(match, str) else match:
        assert part in told, told
    return told


# -- lists -------------------------------------------------------------------------------------


def _timm(name: str) -> list[str]:
    return (resources.files("timm") / "data" / "_info" / name).read_text().split()


def test_class_lists_are_timms() -> None:
    assert list(WNIDS) == sorted(_timm("imagenet_synsets.txt")) == _timm("imagenet_synsets.txt")
    for names, indices in (
        (imagenet_r_classes(), _timm("imagenet_r_indices.txt")),
        (imagenet_a_classes(), _timm("imagenet_a_indices.txt")),
    ):
        assert [WNIDS[int(i)] for i in indices] == list(names)
    assert len({*imagenet_r_classes()} & {*imagenet_a_classes()}) == 86
    assert is_imagenet(HEAD)
    assert not is_imagenet(HEAD[1:])
    assert not is_imagenet((*HEAD[1:], HEAD[1]))
    assert not is_imagenet(CLASSES)


def test_names() -> None:
    assert len(CORRUPTIONS) * len(SEVERITIES) == 75
    assert len(PERTURBATIONS) == len(set(PERTURBATIONS)) == 10
    assert len(KINDS) == 6
    with pytest.raises(ValueError, match="is none of"):
        open_set("imagenet-q", Path(), HEAD)


def test_neither_torch_nor_timm_is_imported() -> None:
    program = (
        "import sys, sercli.data.robustness.check as check;"
        "from sercli.data.robustness.imagenet_classes import imagenet_r_classes;"
        "assert len(imagenet_r_classes()) == 200;"
        "assert not {'torch', 'timm', 'av'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -- ImageNet-R, -A, -Sketch -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "folder", "total", "indices"),
    [
        ("imagenet-r", "imagenet-r", 30_000, "imagenet_r_indices.txt"),
        ("imagenet-a", "imagenet-a", 7_500, "imagenet_a_indices.txt"),
        ("imagenet-sketch", "sketch", 50_889, None),
    ],
)
def test_labels_are_looked_up_in_the_heads_order(
    trees: Path, kind: str, folder: str, total: int, indices: str | None
) -> None:
    opened = open_set(kind, trees / folder, HEAD)
    assert (opened.variant, opened.partial, opened.notes) == (kind, False, ())
    source = opened.source
    assert (len(source), source.classes, source.split) == (total, HEAD, "val")
    assert source.labels.dtype == np.int64
    for index in range(0, total, 331):
        wnid = source.identifier(index).split("/")[0]
        assert source.labels[index] == _PLACE[wnid]
        assert source.describe(index) == str(trees / folder / source.identifier(index))
    assert source.load(7).size == (8, 8)
    if indices is None:
        assert opened.subset is None
    else:
        assert opened.subset is not None
        assert opened.subset.dtype == np.int64
        expected = sorted(_PLACE[WNIDS[int(i)]] for i in _timm(indices))
        assert opened.subset.tolist() == expected
        assert set(opened.subset.tolist()) == set(source.labels.tolist())
    with pytest.raises(IndexError):
        source.load(total)


def test_sources_travel_to_other_processes(trees: Path) -> None:
    source = pickle.loads(pickle.dumps(open_set("imagenet-a", trees / "imagenet-a", HEAD).source))
    assert source.load(5).size == (8, 8)


@pytest.mark.parametrize(
    ("kind", "folder", "told"),
    [
        ("imagenet-r", "imagenet-a", "114 folders that are no classes of it (n01558993,"),
        ("imagenet-r", "imagenet-a", "its classes are those of ImageNet-A"),
        ("imagenet-a", "imagenet-r", "its classes are those of ImageNet-R"),
        ("imagenet-r", "sketch", "its classes are all 1000"),
        ("imagenet-a", "sketch", "800 folders that are no classes of it"),
        ("imagenet-r", "imagenetv2-top-images-format-val", "1000 folders that are no classes of"),
        ("imagenet-sketch", "imagenet-r", "800 classes missing"),
        ("imagenet-r", ".", "4 folders that are no classes of it (imagenet-a, imagenet-r,"),
    ],
)
@pytest.mark.parametrize("allow_partial", [False, True])
def test_another_set_is_refused(
    trees: Path, kind: str, folder: str, told: str, allow_partial: bool
) -> None:
    if allow_partial and "missing" in told:
        pytest.skip("a part of ImageNet-Sketch looks like this")
    _refuses(
        [told, f"{trees / folder}: "],
        lambda: open_set(kind, trees / folder, HEAD, allow_partial=allow_partial),
    )


@pytest.fixture
def r_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet-R with two images a class, as if 400 had been published."""
    monkeypatch.setitem(robustness_published._NUM_IMAGES, "imagenet-r", 400)
    image = _jpeg(tmp_path / "image.jpg")
    return _tree(tmp_path / "r", dict.fromkeys(imagenet_r_classes(), 2), image)


def _accepts_as_partial(root: Path, note: str, kind: str = "imagenet-r") -> None:
    _refuses([note, "--allow-partial", f"ser data check {root}"], lambda: _open(kind, root))
    opened = open_set(kind, root, HEAD, allow_partial=True)
    assert opened.partial
    assert note in "; ".join(opened.notes)
    assert opened.subset is not None
    assert len(opened.subset) == 200


def test_what_is_missing_is_refused_or_noted(r_tree: Path) -> None:
    assert not open_set("imagenet-r", r_tree, HEAD).partial
    one, other = imagenet_r_classes()[:2]
    (r_tree / one / "image_0.JPEG").unlink()
    _accepts_as_partial(r_tree, "399 images instead of 400")
    (r_tree / one / "image_1.JPEG").unlink()
    _accepts_as_partial(r_tree, f"1 empty class folder ({one})")
    shutil.rmtree(r_tree / one)
    shutil.rmtree(r_tree / other)
    _accepts_as_partial(r_tree, f"2 classes missing ({one}, {other})")


def test_too_many_images_are_no_published_set(r_tree: Path) -> None:
    one = r_tree / imagenet_r_classes()[0]
    os.link(one / "image_0.JPEG", one / "again.JPEG")
    _accepts_as_partial(r_tree, "401 images instead of 400")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({51: 50}, ["50,888 images instead of 50,889"]),
        ({50: 51}, ["50,890 images instead of 50,889"]),
        # As many as there should be, but not where they should be.
        ({50: 49, 51: 52}, ["2 classes without exactly 50 or 51 images ("]),
        ({50: 49}, ["1 class without exactly 50 or 51 images (", "50,888 images instead of"]),
        ({51: None}, ["1 class missing (", "50,838 images instead of 50,889"]),
        ("paper", ["50,000 images instead of 50,889"]),
    ],
)
def test_imagenet_sketch_is_what_its_archive_holds(
    tmp_path: Path, change: dict[int, int | None] | str, told: list[str] | None
) -> None:
    """`change`: one class of so many images has another number (None: is missing)."""
    files: dict[str, int | None] = {**_sketches()}
    if isinstance(change, str):  # the paper's 1000 × 50 is no archive that there is
        files = dict.fromkeys(files, 50)
    else:
        firsts = {old: next(n for n, count in files.items() if count == old) for old in change}
        files |= {firsts[old]: new for old, new in change.items()}
    counts = {name: count for name, count in files.items() if count is not None}
    rule = robustness_published.folder_rule("imagenet-sketch", HEAD)
    found = rule.apply(counts)
    assert not found.wrong
    assert len(found.lacking) == len(told or [])
    for line, part in zip(found.lacking, told or [], strict=True):
        assert line.startswith(part)
    if told:
        words = robustness_published.published_rule("imagenet-sketch", HEAD)
        assert words.endswith("1000 classes, with 50 or 51 images each, 50,889 images in all")
        _refuses(
            [told[0], words],
            lambda: found.require(tmp_path, "imagenet-sketch", words, allow_partial=False),
        )
        found.require(tmp_path, "imagenet-sketch", words, allow_partial=True)


@pytest.mark.parametrize("name", ["n01440764", "cats", "N01443537"])
def test_an_extra_class_is_never_accepted(r_tree: Path, name: str) -> None:
    (r_tree / name).mkdir()
    for allow_partial in (False, True):
        told = _refuses(
            f"1 folder that is no class of it ({name})",
            lambda partial=allow_partial: _open("imagenet-r", r_tree, allow_partial=partial),
        )
        assert "--allow-partial" not in told


def test_imagenets_own_val_is_none_of_the_sets(tmp_path: Path) -> None:
    image = _jpeg(tmp_path / "image.jpg")
    files = dict.fromkeys(WNIDS, 50)
    _tree(tmp_path / "val", files, image, "ILSVRC2012_val_{:08d}.JPEG")
    _refuses("ImageNet's own val", lambda: _open("imagenet-sketch", tmp_path / "val"))


def test_missing_and_empty_directories(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for kind in KINDS[:3]:
        _refuses(
            "no class folders",
            lambda kind=kind: _open(kind, tmp_path / "empty", allow_partial=True),
        )
    for kind in KINDS:
        _refuses("does not exist", lambda kind=kind: _open(kind, tmp_path / "none"))
        _refuses("is a file", lambda kind=kind: _open(kind, tmp_path / "file"))


def test_a_truncated_image_is_named(r_tree: Path) -> None:
    cut = r_tree / imagenet_r_classes()[3] / "cut.JPEG"
    cut.write_bytes((r_tree.parent / "image.jpg").read_bytes()[:200])
    opened = open_set("imagenet-r", r_tree, HEAD, allow_partial=True)
    names = [opened.source.identifier(i) for i in range(len(opened.source))]
    with pytest.raises(UnreadableImage, match=r"cut\.JPEG"):
        opened.source.load(names.index(f"{cut.parent.name}/cut.JPEG"))


# -- ImageNet-V2 -------------------------------------------------------------------------------


def test_numbered_folders_index_the_sorted_wnids(trees: Path) -> None:
    opened = open_set(KINDS[5], trees / "imagenetv2-top-images-format-val", HEAD)
    assert (len(opened.source), opened.subset) == (10_000, None)
    assert opened.variant == "imagenet-v2-top-images"
    for index in range(10_000):
        number = int(opened.source.identifier(index).split("/")[0])
        assert HEAD[opened.source.labels[index]] == WNIDS[number]
    assert opened.source.identifier(20).split("/")[0] == "10"  # sorted as strings


def _v2(root: Path, files: Files | None = None) -> Path:
    image = _jpeg(root.parent / "image.jpg")
    return _tree(root, files or {str(i): 1 for i in range(12)}, image, "{}.jpeg")


def test_variants_are_found_by_name(tmp_path: Path) -> None:
    names = {
        "matched-frequency": "imagenetv2-matched-frequency-format-val",
        "threshold-0.7": "imagenetv2-threshold0.7-format-val",
        "top-images": "top-images",
    }
    for name in reversed(names.values()):
        _v2(tmp_path / "v2" / name)
    (tmp_path / "v2" / "papers" / "drafts").mkdir(parents=True)
    found = find_v2(tmp_path / "v2")
    assert list(found) == list(names)
    assert found == {variant: tmp_path / "v2" / name for variant, name in names.items()}
    for variant, path in found.items():
        assert find_v2(path) == {variant: path}


@pytest.mark.parametrize("name", ["imagenetv2", "v2", "matched", "threshold", "topimages"])
def test_a_variant_is_never_guessed(tmp_path: Path, name: str) -> None:
    _v2(tmp_path / "all" / name)
    for path in (tmp_path / "all", tmp_path / "all" / name):
        _refuses(
            [f"{tmp_path / 'all' / name} has", "rename it to matched-frequency, threshold-0.7 or"],
            lambda path=path: find_v2(path),
        )


def test_links_tell_the_same_as_what_they_lead_to(tmp_path: Path) -> None:
    real = _v2(tmp_path / "imagenetv2-top-images-format-val")
    for name in ("v2", "top-images", "matched-frequency"):
        (tmp_path / name).symlink_to(real, target_is_directory=True)
    assert find_v2(tmp_path / "v2") == {"top-images": tmp_path / "v2"}
    assert find_v2(tmp_path / "top-images") == {"top-images": tmp_path / "top-images"}
    _refuses("only the folder's name tells", lambda: find_v2(tmp_path / "matched-frequency"))


def test_other_errors_of_v2(tmp_path: Path, trees: Path) -> None:
    top = trees / "imagenetv2-top-images-format-val"
    _refuses(
        "holds ImageNet-V2's top-images; threshold-0.7 is asked for", lambda: _open(KINDS[4], top)
    )
    _refuses("none of ImageNet-V2's sets", lambda: find_v2(trees / "imagenet-a"))
    _v2(tmp_path / "v2/top-images")
    _v2(tmp_path / "v2/imagenetv2-top-images")
    _refuses("are both top-images", lambda: find_v2(tmp_path / "v2"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"7": None}, "1 class missing (7)"),
        ({"7": 0}, "1 empty class folder (7)"),
        ({"7": 9, "70": 11}, "2 classes without exactly 10 images (7: 9, 70: 11)"),
        ({"1000": 10}, "1 folder that is no class of it (1000)"),
        ({"007": 10}, "1 folder that is no class of it (007)"),
        ({"seven": 10}, "1 folder that is no class of it (seven)"),
    ],
)
def test_v2_must_have_ten_images_of_each_number(
    tmp_path: Path, change: dict[str, int | None], told: str
) -> None:
    counts = {**{str(i): 10 for i in range(1000)}, **change}
    root = _v2(tmp_path / "top-images", {k: v for k, v in counts.items() if v is not None})
    _refuses([told, "named 0 to 999"], lambda: _open(KINDS[5], root))
    if "no class" in told:
        _refuses(told, lambda: _open(KINDS[5], root, allow_partial=True))
    else:
        assert open_set(KINDS[5], root, HEAD, allow_partial=True).notes == (told,)


def test_a_head_for_some_of_imagenet_does_not_renumber_v2(trees: Path) -> None:
    hundred = WNIDS[:100]
    path = trees / "imagenetv2-top-images-format-val"
    _refuses("900 folders that are no classes of it", lambda: _open(KINDS[5], path, hundred))


# -- ImageNet-C --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c_cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell: an image of 224 pixels in each of 1000 classes."""
    root = tmp_path_factory.mktemp("cell")
    image = _jpeg(root / "image.jpg", (224, 224))
    files = dict.fromkeys(WNIDS, 1)
    cell = _tree(root / "cell", files, image, "ILSVRC2012_val_{:08d}.JPEG")
    for directory, _, _ in os.walk(cell):  # old enough for the cache of file lists
        os.utime(directory, (1_000_000_000, 1_000_000_000))
    return cell


@pytest.fixture
def c_tree(tmp_path: Path, c_cell: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet-C of 75 links to one cell, as if one image a class had been published."""
    monkeypatch.setitem(robustness_published._PER_CLASS, "imagenet-c", (1,))
    cells = [(c, s) for c in CORRUPTIONS for s in SEVERITIES]
    random.Random(2).shuffle(cells)
    for corruption, severity in cells:
        _link(tmp_path / "c" / corruption / str(severity), c_cell)
    return tmp_path / "c"


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=True)


def _own_cell(tree: Path, corruption: str, severity: int, files: Files, image: Path) -> Path:
    """Replace a link by class folders of its own."""
    place = tree / corruption / str(severity)
    place.unlink()
    return _tree(place, files, image, "ILSVRC2012_val_{:08d}.JPEG")


def test_all_cells_are_opened(c_tree: Path) -> None:
    corrupted = open_corrupted(c_tree, HEAD)
    assert corrupted.corruptions == CORRUPTIONS
    assert (corrupted.partial, corrupted.notes) == (False, ())
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            source = corrupted.source(corruption, severity)
            assert len(source) == 1000
            assert source.name == str(c_tree / corruption / str(severity))
    for index in range(0, 1000, 37):
        assert HEAD[source.labels[index]] == source.identifier(index).split("/")[0]
    assert pickle.loads(pickle.dumps(source)).load(3).size == (224, 224)
    _refuses("has no fog of severity 6", lambda: corrupted.source("fog", 6))
    _refuses("has no saturate of severity 1", lambda: corrupted.source("saturate", 1))


def test_groups_and_extra_corruptions(c_tree: Path, c_cell: Path) -> None:
    for corruption in ("glass_blur", "fog"):
        folder = c_tree / ("blur" if "blur" in corruption else "weather")
        folder.mkdir()
        (c_tree / corruption).rename(folder / corruption)
    for severity in SEVERITIES:
        _link(c_tree / "extra/spatter" / str(severity), c_cell)
    corrupted = open_corrupted(c_tree, HEAD)
    assert corrupted.corruptions == (*CORRUPTIONS, "spatter")
    assert not corrupted.partial
    (c_tree / "extra/spatter/2").unlink()
    _refuses("spatter: no severity 2", lambda: open_corrupted(c_tree, HEAD))


def test_missing_cells(c_tree: Path) -> None:
    (c_tree / "fog/3").unlink()
    (c_tree / "fog/5").unlink()
    _refuses(
        ["fog: no severity 3, 5", "each of 15 corruptions × 5 severities", "--allow-partial"],
        lambda: open_corrupted(c_tree, HEAD),
    )
    corrupted = open_corrupted(c_tree, HEAD, allow_partial=True)
    assert corrupted.corruptions == tuple(c for c in CORRUPTIONS if c != "fog")
    assert (corrupted.partial, corrupted.notes) == (True, ("fog: no severity 3, 5",))
    _refuses("has no fog of severity 1", lambda: corrupted.source("fog", 1))
    (c_tree / "jpeg_compression").rename(c_tree / "jpeg")
    _refuses(
        "1 corruption missing (jpeg_compression)",
        lambda: open_corrupted(c_tree, HEAD),
    )


def test_a_folder_that_is_no_imagenet_c(tmp_path: Path, trees: Path, c_tree: Path) -> None:
    for path in (trees / "imagenet-a", c_tree / "fog", c_tree / "fog/1"):
        for allow_partial in (False, True):
            _refuses(
                "<corruption>/<1…5>/<class>",
                lambda p=path, a=allow_partial: open_corrupted(p, HEAD, allow_partial=a),
            )
    _refuses("does not exist", lambda: open_corrupted(tmp_path / "none", HEAD))


def test_cells_with_other_classes_or_counts(c_tree: Path, c_cell: Path) -> None:
    image = c_cell.parent / "image.jpg"
    _own_cell(c_tree, "fog", 2, dict.fromkeys(WNIDS[1:], 1), image)
    _own_cell(c_tree, "snow", 4, {**dict.fromkeys(WNIDS, 1), WNIDS[5]: 2}, image)
    notes = (
        "snow/4: 1 class without exactly 1 images (n01496331: 2)",
        "fog/2: 1 class missing (n01440764)",
    )
    _refuses(notes, lambda: open_corrupted(c_tree, HEAD))
    corrupted = open_corrupted(c_tree, HEAD, allow_partial=True)
    assert corrupted.notes == notes
    assert len(corrupted.source("fog", 2)) == 999
    (c_tree / "fog/2/n99999999").mkdir()
    _refuses(
        "fog/2: 1 folder that is no class of it (n99999999)",
        lambda: open_corrupted(c_tree, HEAD, allow_partial=True),
    )


def test_what_all_cells_lack_is_said_once(c_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(robustness_published._PER_CLASS, "imagenet-c", (50,))
    _refuses(
        "gaussian_noise/1 and 74 other cells: 1000 classes without exactly 50 images",
        lambda: open_corrupted(c_tree, HEAD),
    )


@pytest.mark.parametrize("size", [(256, 256), (224, 223)])
def test_images_of_another_side_are_errors(
    c_tree: Path, c_cell: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    other = _jpeg(tmp_path / "other.jpg", size)
    cell = _own_cell(c_tree, "fog", 2, dict.fromkeys(WNIDS, 1), c_cell.parent / "image.jpg")
    name = "ILSVRC2012_val_00000000.JPEG"
    told = f"{size[0]} × {size[1]} pixels instead of 224 × 224"
    # not in the first image: seen when it is read
    (cell / WNIDS[9] / name).unlink()
    os.link(other, cell / WNIDS[9] / name)
    source = open_corrupted(c_tree, HEAD).source("fog", 2)
    assert source.load(8).size == (224, 224)
    with pytest.raises(UnreadableImage, match=told):
        source.load(9)
    # in the first: seen when the set is opened
    (cell / WNIDS[0] / name).unlink()
    os.link(other, cell / WNIDS[0] / name)
    for allow_partial in (False, True):
        _refuses(
            [f"{cell / WNIDS[0] / name}", told],
            lambda a=allow_partial: open_corrupted(c_tree, HEAD, allow_partial=a),
        )


# -- ImageNet-P --------------------------------------------------------------------------------


def _video_tree(root: Path, classes: Sequence[str], video: Path | None = None) -> Path:
    for perturbation in random.Random(3).sample(PERTURBATIONS, 10):
        for name in random.Random(4).sample(list(classes), len(classes)):
            path = root / perturbation / name / "ILSVRC2012_val_00000001.mp4"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"") if video is None else os.link(video, path)
    return root


@pytest.fixture
def p_tree(tmp_path: Path) -> Path:
    """ImageNet-P without frames, for a head of ten classes."""
    return _video_tree(tmp_path / "p", CLASSES)


def test_what_is_wrong_with_videos_folders(p_tree: Path) -> None:
    def refuses(told: str, allow_partial: bool = False) -> None:
        _refuses(told, lambda: open_perturbed(p_tree, CLASSES, allow_partial=allow_partial))

    (p_tree / "tilt/ring/ILSVRC2012_val_00000001.mp4").rename(p_tree / "tilt/ring/x.avi")
    refuses("tilt: 1 empty class folder (ring)")
    refuses("not all perturbations have 10 videos (tilt: 9)")
    shutil.rmtree(p_tree / "tilt/ring")
    refuses("tilt: 1 class missing (ring)")
    shutil.rmtree(p_tree / "tilt")
    refuses("1 perturbation missing (tilt)")
    (p_tree / "snow/rings").mkdir()
    refuses("snow: 1 folder that is no class of it (rings)", allow_partial=True)
    shutil.rmtree(p_tree)
    refuses("does not exist")
    p_tree.mkdir()
    refuses("<perturbation>/<class>/*.mp4")
    refuses("<perturbation>/<class>/*.mp4", allow_partial=True)


def test_without_pyav_one_line_says_what_to_install(
    p_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    _refuses("pip install 'sercli[robustness]'", lambda: open_perturbed(p_tree, CLASSES))


def _frames(number: int, side: int = 64) -> np.ndarray:
    steps = np.arange(side)
    moving = [np.add.outer(steps * 2, steps + 5 * t) % 200 for t in range(number)]
    return np.stack([np.stack([one, one // 2, 255 - one], -1) for one in moving]).astype(np.uint8)


def test_videos_are_read_to_their_end(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for number in (1, 31):
        path = tmp_path / f"{number}.mp4"
        videos.write_video(path, _frames(number))
        read = videos.read_frames(str(path))
        assert (read.shape, read.dtype) == ((number, 64, 64, 3), np.uint8)
        assert np.abs(read.astype(int) - _frames(number)).mean() < 3
        assert videos.read_size(str(path)) == (number, 64, 64)


@pytest.mark.parametrize(
    ("share", "index_first"),
    [(0, False), (0.3, False), (0.9, False), (0.3, True), (0.9, True), (0.999, True)],
)
def test_cut_videos_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, index_first: bool
) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with monkeypatch.context() as patch:
        if index_first:  # then the file's beginning says how many frames there should be
            options = {"movflags": "faststart"}
            patch.setattr(av, "open", functools.partial(av.open, options=options))
        videos.write_video(path, _frames(31))
    assert len(videos.read_frames(str(path))) == 31
    whole = path.read_bytes()
    assert (whole.index(b"moov") < whole.index(b"mdat")) == index_first
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(videos.UnreadableVideo, match=r"cannot read the video .*mp4") as caught:
        videos.read_frames(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path, copy.reason) == (str(caught.value), str(path), copy.reason)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("<html>404</html>" * 100)
    for path, told in (("text.mp4", "no video"), ("none.mp4", "No such file")):
        for read in (videos.read_frames, videos.read_size):
            with pytest.raises(videos.UnreadableVideo, match=told):
                read(str(tmp_path / path))


def test_published_sequences(tmp_path: Path) -> None:
    pytest.importorskip("av")
    videos.write_video(tmp_path / "v.mp4", _frames(4, 224))
    root = _video_tree(tmp_path / "p", WNIDS, tmp_path / "v.mp4")
    perturbed = open_perturbed(root, HEAD)
    assert perturbed.perturbations == PERTURBATIONS
    assert (perturbed.partial, perturbed.num_videos("tilt")) == (False, 1000)
    labels = pickle.loads(pickle.dumps(perturbed)).labels("snow")
    for index in range(0, 1000, 91):
        assert HEAD[labels[index]] == perturbed.identifier("snow", index).split("/")[0]
    assert perturbed.frames("snow", 3).shape == (4, 224, 224, 3)
    first = root / "tilt" / WNIDS[0] / "ILSVRC2012_val_00000001.mp4"
    first.unlink()
    videos.write_video(first, _frames(3, 256))
    with pytest.raises(videos.UnreadableVideo, match="256 × 256 pixels instead of 224 × 224"):
        open_perturbed(root, HEAD)


# -- the embedded world ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world") / "set"
    derived = Derived(32, corrupted=10)
    write_sets(
        directory, file_sets(10, 12), derived, size=40, seed=1, progress=lambda _number: None
    )
    return directory


_WORLD = tuple(reversed(CLASSES))  # a head in another order


@pytest.mark.parametrize(
    ("kind", "folder", "number"),
    [("imagenet-r", "imagenet-r", 6), ("imagenet-a", "imagenet-a", 5)]
    + [("imagenet-sketch", "sketch", None)]
    + [(kind, "imagenet-v2", None) for kind in KINDS[3:]],
)
def test_the_embedded_sets(world: Path, kind: str, folder: str, number: int | None) -> None:
    opened = open_set(kind, world / folder, _WORLD)
    assert (len(opened.source), opened.partial) == (12, False)
    assert opened.source.classes == _WORLD
    for index in range(12):
        name = opened.source.identifier(index).split("/")[0]
        expected = CLASSES[int(name)] if "v2" in kind else name
        assert _WORLD[opened.source.labels[index]] == expected
    if number is None:
        assert opened.subset is None
    else:
        assert opened.subset is not None
        assert opened.subset.tolist() == sorted({*opened.source.labels.tolist()})
        assert len(opened.subset) == number


def test_the_embedded_corruptions_have_one_side(world: Path, tmp_path: Path) -> None:
    corrupted = open_corrupted(world / "imagenet-c", _WORLD)
    assert corrupted.corruptions == CORRUPTIONS
    assert corrupted.source("fog", 5).load(9).size == (32, 32)
    copy = shutil.copytree(world / "imagenet-c", tmp_path / "c")
    _jpeg(next((copy / "snow/2/arrow").iterdir()), (33, 33))
    _refuses("33 × 33 pixels instead of 32 × 32", lambda: open_corrupted(copy, _WORLD))


@pytest.mark.parametrize("allow_partial", [False, True])
def test_the_embedded_r_and_a_are_not_taken_for_each_other(
    world: Path, allow_partial: bool
) -> None:
    for kind, other in (KINDS[:2], KINDS[1::-1]):
        _refuses(
            f"its classes are those of the embedded world's {other}",
            lambda k=kind, o=other: open_set(k, world / o, CLASSES, allow_partial=allow_partial),
        )


@pytest.mark.parametrize("kind", KINDS[:3])
def test_folders_of_other_classes_are_refused(world: Path, kind: str) -> None:
    folder = world / ("sketch" if kind == "imagenet-sketch" else kind)
    head = tuple(name for name in CLASSES if name != "star")
    _refuses("1 folder that is no class of it (star)", lambda: _open(kind, folder, head))


def test_embedded_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_sets(
        *(tmp_path / "set", file_sets(10, 10), Derived(32, perturbed=10)),
        size=40,
        seed=1,
        progress=lambda _number: None,
    )
    perturbed = open_perturbed(tmp_path / "set/imagenet-p", _WORLD)
    assert perturbed.perturbations == PERTURBATIONS
    assert perturbed.frames("rotate", 2).shape == (31, 32, 32, 3)
    assert perturbed.frames("translate", 2).shape == (41, 32, 32, 3)
    for index in range(10):
        name = perturbed.identifier("tilt", index).split("/")[0]
        assert _WORLD[perturbed.labels("tilt")[index]] == name


# -- on the fly --------------------------------------------------------------------------------


class _Wide(ImageSource):
    """One picture of 300 × 260 pixels."""

    name, split, classes, labels = "wide", "val", ("a",), np.zeros(1, np.int64)

    def load(self, index: int) -> Image.Image:  # noqa: ARG002
        row, column = np.mgrid[:260, :300]
        levels = np.stack([row * 0.9, column * 0.8, row * 0 + 50], -1)
        return Image.fromarray(levels.astype(np.uint8))

    def describe(self, index: int) -> str:
        return f"wide/{index}"

    def identifier(self, index: int) -> str:
        return f"one/{index}"


def test_on_the_fly_is_crop_corruption_and_jpeg() -> None:
    made = open_otf(_Wide(), "contrast", 3, seed=5, image_size=224)
    cropped = _Wide().load(0).resize((295, 256), Image.Resampling.BILINEAR)
    cropped = cropped.crop((36, 16, 36 + 224, 16 + 224))  # as torchvision's Resize and CenterCrop
    generator = corruption_generator(5, "one/0", "contrast", 3)
    expected = as_jpeg(corrupt(cropped, "contrast", 3, generator), 85)
    assert made.load(0).tobytes() == expected.tobytes()
    assert (made.split, made.classes, made.identifier(0)) == ("val", ("a",), "one/0")
    assert made.describe(0) == "wide/0"
    np.testing.assert_array_equal(made.labels, [0])
    with pytest.raises(IndexError):
        made.load(1)


def test_on_the_fly_needs_no_order_and_no_process() -> None:
    val = ShapesSource("val", image_size=32, num_images=6)
    made = open_otf(val, "impulse_noise", 3, seed=0, image_size=32)
    forward = [made.load(i).tobytes() for i in range(6)]
    copy = pickle.loads(pickle.dumps(made))
    assert [copy.load(i).tobytes() for i in reversed(range(6))] == forward[::-1]
    assert len(set(forward)) == 6
    assert made.load(2).size == (32, 32)
    for other in (
        open_otf(val, "impulse_noise", 3, seed=1, image_size=32),
        open_otf(val, "impulse_noise", 4, seed=0, image_size=32),
        open_otf(val, "gaussian_noise", 3, seed=0, image_size=32),
    ):
        assert other.load(2).tobytes() != forward[2]
    assert made.name != "shapes"


@pytest.mark.parametrize(("corruption", "severity"), [("fog", 0), ("fog", 6), ("rain", 1)])
def test_on_the_fly_refuses_others(corruption: str, severity: int) -> None:
    val = ShapesSource("val", image_size=32, num_images=1)
    _refuses(
        "severities 1 to 5",
        lambda: open_otf(val, corruption, severity, seed=0, image_size=32),
    )
    assert set(EXTRA_CORRUPTIONS).isdisjoint(CORRUPTIONS)
    assert robustness_sets.open_otf is open_otf

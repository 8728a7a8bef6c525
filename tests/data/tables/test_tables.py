"""Parquet and Arrow files are the same set as the class folders of their images."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from sercli.data import has_split, open_source
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind, kind_of, require_labelled
from sercli.data.robustness.imagenet_classes import imagenet_classes
from sercli.data.source import UnreadableImage, contents
from sercli.data.tables.pages import find_pages
from sercli.errors import UserError
from tests.data.tables.conftest import CLASSES, features, jpeg, table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def opened(path, split="train", **how):
    return open_source(str(path), split, image_size=16, **how)


def refused(path, split="train"):
    with pytest.raises(UserError) as caught:
        opened(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def checked(path):
    return check_data(path, Reading(progress=lambda *_: None, processes=1))


def same(one, other):
    """Image i is the same image of the same class, called the same."""
    assert one.classes == other.classes
    assert np.array_equal(one.labels, other.labels)
    for index in range(len(other)):
        assert one.identifier(index) == other.identifier(index)
        assert np.array_equal(one.pixels(index), other.pixels(index))
        assert np.array_equal(one.load(index), other.load(index))


def stream(rows, path, **how):
    """Write rows as an Arrow stream, in batches of four."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema, **how) as out:
        out.write_table(rows, max_chunksize=4)


@pytest.fixture
def saved(tmp_path, images):
    """The images as `save_to_disk` lays them down."""
    root = tmp_path / "saved"
    root.mkdir()
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    for split, rows in (("train", images["train"]), ("validation", images["val"])):
        folder = root / split
        folder.mkdir()
        parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
        for name, part in zip(names, parts, strict=True):
            stream(table(part), folder / name)
        told = {"_data_files": [{"filename": name} for name in names], "_split": split}
        (folder / "state.json").write_text(json.dumps(told))
    return root


# -- The same set ----------------------------------------------------------------------------------


def test_parquet_of_the_hub_is_the_set_of_its_folders(parquet, folders):
    assert find_kind(str(parquet)).name == "parquet"
    assert find_kind(str(folders)).name == "folder"
    for split in ("train", "val"):
        assert has_split(str(parquet), split)
        same(opened(parquet, split), opened(folders, split))
        same(opened(parquet, split), opened(folders, split))  # from the list that was kept


def test_a_folder_of_save_to_disk_is_the_set_of_its_folders(saved, folders):
    assert find_kind(str(saved)).name == "arrow"
    for split in ("train", "val"):
        same(opened(saved, split), opened(folders, split))
        assert contents(opened(saved, split)) == contents(opened(folders, split))


def test_uncompressed_parquet_has_the_contents_of_its_folders(tmp_path, images, folders):
    path = tmp_path / "one.parquet"
    pq.write_table(table(images["train"]), path, compression="NONE", use_dictionary=False)
    same(opened(path), opened(folders))
    assert contents(opened(path)) == contents(opened(folders))


def test_one_split_of_what_is_saved_is_all_train(saved, folders):
    assert not has_split(str(saved / "validation"), "val")
    same(opened(saved / "validation"), opened(folders, "val"))


def test_streams_of_the_cache_and_files_with_a_footer(tmp_path, images, folders):
    cache = tmp_path / "cache"
    cache.mkdir()
    stream(table(images["train"]), cache / "set-train-00000-of-00001.arrow")
    stream(table(images["train"][:3]), cache / "cache-0123.arrow")  # what `map` left
    rows = table(images["val"])
    place = str(cache / "set-validation.arrow")
    with pa.OSFile(place, "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
        out.write_table(rows, max_chunksize=5)
    for split in ("train", "val"):
        same(opened(cache, split), opened(folders, split))


@pytest.mark.clients
def test_datasets_writes_what_is_read(tmp_path, folders, monkeypatch):
    """The library itself writes both forms, from the folders."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets.table import embed_table_storage

    datasets.disable_progress_bars()
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folders), cache_dir=str(tmp_path / "cache")
    )
    bare = tmp_path / "bare.parquet"
    found["train"].to_parquet(bare)
    assert "30 of 30 rows have no bytes of an image" in refused(bare)
    embedded = found.with_format("arrow").map(embed_table_storage, batched=True)
    embedded = embedded.with_format(None)
    for split in ("train", "validation"):
        mixed = embedded[split].shuffle(seed=3)
        for number in range(2):
            part = mixed.shard(2, number, contiguous=True)
            place = tmp_path / "hub" / "data" / f"{split}-{number:05}-of-00002.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            part.to_parquet(place)
    embedded.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "validation": 1})
    for form in ("hub", "saved"):
        for split in ("train", "val"):
            same(opened(tmp_path / form, split), opened(folders, split))


@pytest.mark.parametrize(
    ("image", "label"), [("img", "fine_label"), ("jpg", "labels"), ("photo", "kind")]
)
def test_columns_by_other_names(tmp_path, images, folders, image, label):
    path = tmp_path / "x.parquet"
    pq.write_table(table(images["train"], image=image, label=label), path)
    same(opened(path), opened(folders))


def test_plain_bytes_and_labels_as_text(tmp_path, images, folders):
    names, labels, data = zip(*images["train"], strict=True)
    told = [CLASSES[label] for label in labels]
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        columns = {"jpg": pa.array(data, pa.binary()), "label": pa.array(told).cast(kind)}
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        source = opened(tmp_path / "x.parquet")
        other = opened(folders)
        assert source.classes == CLASSES
        assert np.array_equal(source.labels, other.labels)
        # Nothing names them: by class, then by row.
        assert source.identifier(0) == "train/00000-000000000"
        for index in range(len(other)):
            assert np.array_equal(source.pixels(index), other.pixels(index))
    del names


def test_numbers_without_names_are_the_classes(tmp_path, images):
    rows = [(name, 10 * label, data) for name, label, data in images["train"]]
    bare = table(rows).replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet").classes == ("0", "10", "20")


def test_labels_as_text_are_names_though_they_are_of_digits(tmp_path, images):
    rows = images["train"][:3]
    text = pa.table({"image": [data for *_, data in rows], "label": ["2", "10", "1"]})
    pq.write_table(text, tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet").classes == ("1", "10", "2")


def test_what_has_no_labels_is_told_before_it_is_opened(tmp_path, images, parquet, saved):
    bare = pa.table({"image": [data for *_, data in images["train"]]})
    pq.write_table(bare, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no labels; kNN needs the class"):
        require_labelled(str(tmp_path / "x.parquet"), "kNN")
    for one in (parquet, saved):
        require_labelled(str(one), "kNN")


@pytest.mark.parametrize("form", ["x.parquet", "x.arrow"])
def test_a_label_of_another_type_is_no_label_and_is_said(tmp_path, images, form):
    """A table of pandas with a gap has floats; so have targets of a regression."""
    rows = table(images["train"]).replace_schema_metadata(None)
    rows = rows.set_column(1, "label", rows["label"].cast(pa.float64()))
    path = tmp_path / form
    pq.write_table(rows, path) if form == "x.parquet" else stream(rows, path)
    said = "1 columns 'label' of double (labels are whole numbers or text)"
    for _ in range(2):  # listed, then as it is kept
        source = opened(path)
        assert source.classes == ()
        assert any(line.startswith(f"{path}: ") and said in line for line in source.remarks())
    assert any(said in note for note in checked(path).notes)
    with pytest.raises(UserError, match=r"has no labels; .*'label' of double.*; cast the column"):
        require_labelled(str(path), "kNN")
    both = rows.append_column("class", pa.array(["a"] * 30))
    pq.write_table(both, tmp_path / "both.parquet")
    assert opened(tmp_path / "both.parquet").classes == ("a",)
    assert not any("double" in line for line in opened(tmp_path / "both.parquet").remarks())


def test_files_whose_names_tell_no_split_are_left_out_and_said(parquet, images):
    pq.write_table(table(images["val"]), parquet / "data" / "more.parquet")
    source = opened(parquet)
    assert len(source) == 30
    said = f"{parquet}: left out, as their names tell no split: more.parquet"
    assert said in source.remarks()


def test_without_labels(tmp_path, images):
    pq.write_table(table(images["train"]).select(["image"]), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert source.classes == ()
    assert not source.labels.any()
    assert source.identifier(3) == "train_003.JPEG"


def test_a_path_with_folders_is_the_name_as_it_is(tmp_path, images):
    rows = [(f"deep/er/{name}", label, data) for name, label, data in images["train"]]
    rows[0] = ("alone.JPEG", *rows[0][1:])
    pq.write_table(table(rows), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    ids = {source.identifier(index) for index in range(len(source))}
    assert ids == {f"{CLASSES[rows[0][1]]}/alone.JPEG", *(name for name, *_ in rows[1:])}


def test_a_files_own_name_tells_more_than_its_folders(tmp_path, images):
    for split, name in (("train", "train"), ("val", "validation")):
        place = tmp_path / "set" / "train-2012" / f"{name}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(images[split]), place)
    assert (len(opened(tmp_path / "set")), len(opened(tmp_path / "set", "val"))) == (30, 12)


def test_paths_that_do_not_tell_images_apart(tmp_path):
    """Twice one name in a class: rows tell; once in each class, the class does."""
    rows = [("a.jpg", 0, jpeg(0)), ("a.jpg", 1, jpeg(1)), ("b.jpg", 0, jpeg(2))]
    pq.write_table(table(rows), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert [source.identifier(i) for i in range(3)] == ["ant/a.jpg", "ant/b.jpg", "bee/a.jpg"]
    pq.write_table(table([*rows, rows[0]]), tmp_path / "y.parquet")
    source = opened(tmp_path / "y.parquet")
    assert [source.identifier(i) for i in range(4)] == [
        f"train/00000-{row:09}" for row in (0, 2, 3, 1)
    ]


def test_it_travels_to_another_process(parquet, saved):
    for path in (parquet, saved):
        source = opened(path)
        source.pixels(3)
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(again.pixels(7), source.pixels(7))


def test_it_is_read_by_forked_loaders(parquet, folders):
    import torch

    from sercli.data.loading import EvaluationImages, load_images

    def read(path):
        batches = [list(range(start, start + 10)) for start in range(0, 30, 10)]
        pictures = EvaluationImages(opened(path), 16)
        device = torch.device("cpu")
        found = load_images(pictures, batches, size=16, rows=10, workers=2, device=device)
        return torch.cat([one.clone() for one in found])

    assert torch.equal(read(parquet), read(folders))


# -- ImageNet --------------------------------------------------------------------------------------


def test_imagenet_by_human_names_has_wnids(tmp_path):
    from torchvision.models import _meta

    names = _meta._IMAGENET_CATEGORIES
    rows = [(f"{label}.JPEG", label, jpeg(label, 8)) for label in (999, 0, 134)]
    pq.write_table(table(rows, names=names), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert source.classes == imagenet_classes()
    assert source.labels.tolist() == [0, 134, 999]
    assert source.identifier(0) == "n01440764/0.JPEG"
    swapped = [names[1], names[0], *names[2:]]
    pq.write_table(table(rows, names=swapped), tmp_path / "y.parquet")
    assert opened(tmp_path / "y.parquet").classes == tuple(swapped)
    others = [f"class {i}" for i in range(1000)]
    pq.write_table(table(rows, names=others), tmp_path / "z.parquet")
    assert opened(tmp_path / "z.parquet").classes == tuple(others)


def test_bare_numbers_are_imagenet_by_the_names_of_all_images(tmp_path):
    data = jpeg(0, 8)
    rows = [(f"{wnid}_7_{wnid}.JPEG", i, data) for i, wnid in enumerate(imagenet_classes())]
    val = [(f"ILSVRC2012_val_{i:08}.JPEG", i, data) for i in range(1000)]
    root = tmp_path / "set"
    root.mkdir()
    for split, some in (("train", rows), ("validation", val)):
        pq.write_table(table(some).replace_schema_metadata(None), root / f"{split}.parquet")
    assert opened(root).classes == imagenet_classes()
    assert opened(root, "val").classes == imagenet_classes()
    rows[3], rows[4] = (rows[3][0], 4, data), (rows[4][0], 3, data)
    pq.write_table(table(rows).replace_schema_metadata(None), tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet").classes == tuple(map(str, range(1000)))


# -- What is recognised ----------------------------------------------------------------------------


def put(root, *names, data=b"PAR1"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("data/train-00000-of-00001.parquet",), "parquet"),
        (("plain_text/train-00000-of-00001.parquet", "README.md"), "parquet"),
        (("default/train/0000.parquet", "default/validation/0000.parquet"), "parquet"),
        (("train/0000.parquet", "val/0000.parquet"), "parquet"),
        (("train.parquet",), "parquet"),
        (("train.parquet", "assets/logo.png"), "parquet"),
        (("metadata.parquet", "ant/1.jpg", "bee/2.jpg"), "folder"),
        (("train.parquet", "ant/1.jpg", "bee/2.jpg"), "folder"),
        (("train/ant/1.jpg", "val/ant/2.jpg", "data/labels.parquet"), "folder"),
        (("ant/1.jpg", "ant/labels.parquet"), "folder"),
        (("train/state.json", "train/data.arrow", "dataset_dict.json"), "arrow"),
        (("state.json", "data-00000-of-00001.arrow"), "arrow"),
        (("set-train.arrow", "dataset_info.json"), "arrow"),
    ],
)
def test_what_a_folder_is(tmp_path, names, kind):
    assert kind_of(put(tmp_path, *names)).name == kind


def test_a_file_and_a_pattern(parquet, folders):
    pattern = str(parquet / "data" / "*.parquet")
    assert kind_of(pattern).name == "parquet"
    assert has_split(pattern, "val")
    same(opened(pattern), opened(folders))
    one = str(parquet / "data" / "train-0000?-of-00002.parquet")
    same(opened(one), opened(folders))
    assert not has_split(one, "val")
    same(opened(parquet / "data" / "validation-00000-of-00001.parquet"), opened(folders, "val"))
    braces = str(parquet / "data" / "{train-{00000..00001}-of-00002,validation-*}.parquet")
    same(opened(braces), opened(folders))
    same(opened(braces, "val"), opened(folders, "val"))
    assert "train-00002-of-00002.parquet missing" in refused(braces.replace("1}", "2}"))
    assert "matches no file" in refused(parquet / "data" / "none-*.parquet")
    with pytest.raises(UserError, match="does not exist"):
        kind_of(str(parquet / "data" / "*.nothing"))


def test_two_sets_in_one_folder_are_refused(tmp_path):
    root = put(tmp_path, "cropped/train-0.parquet", "full/train-0.parquet")
    assert "holds files of train in 2 folders" in refused(root)


def test_the_registry_imports_no_pyarrow(tmp_path):
    put(tmp_path, "data/train-00000-of-00001.parquet")
    code = (
        "import sys; from sercli.data import registry; kind = registry.kind_of(sys.argv[1]);"
        "assert kind.has_split(sys.argv[1], 'train');"
        "print(sorted({'torch', 'pyarrow'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- What is refused -------------------------------------------------------------------------------


def test_without_pyarrow_one_line_says_so(parquet, saved, monkeypatch):
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name == "pyarrow" else found(name, *more)
    )
    for path in (parquet, saved):
        assert refused(path).endswith("; pip install 'sercli[parquet]'")


def test_a_file_that_lacks_of_a_series(parquet):
    os.remove(parquet / "data" / "train-00001-of-00002.parquet")
    line = "1 of 2 files lack: train-00001-of-00002.parquet"
    assert line in checked(parquet).problems
    some = opened(parquet)
    assert len(some) == 17
    assert some.remarks() == (f"{parquet}: {line}",)
    some = opened(parquet / "data" / "train-*.parquet")  # who names files means these
    assert some.remarks() == ()


def test_two_series_of_one_split(parquet, images):
    pq.write_table(table(images["train"]), parquet / "data" / "train-00000-of-00001.parquet")
    assert "series of 1 and of 2 files" in refused(parquet)


def test_a_file_that_was_cut_short(parquet):
    path = parquet / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert "train-00001-of-00002.parquet is no whole parquet file" in refused(parquet)
    report = checked(parquet)
    assert len(report.problems) == 1
    assert "is no whole parquet file" in report.problems[0]
    assert [one.num_images for one in report.splits] == [17, 12]  # what else there is, is read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no whole parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_parquet(tmp_path, content, said):
    (tmp_path / "train.parquet").write_bytes(content)
    assert said in refused(tmp_path)


def test_a_missing_column_and_another_schema(tmp_path, images):
    whole = table(images["train"])
    pq.write_table(whole.drop_columns(["image"]), tmp_path / "x.parquet")
    assert "has no column of images (its columns: 'label')" in refused(tmp_path / "x.parquet")
    root = tmp_path / "set"
    root.mkdir()
    pq.write_table(whole, root / "train-00000-of-00002.parquet")
    pq.write_table(whole.drop_columns(["label"]), root / "train-00001-of-00002.parquet")
    assert "no label; the files before it have images in 'image', the label" in refused(root)
    other = whole.replace_schema_metadata(features(("bee", "ant", "cat")))
    pq.write_table(other, root / "train-00001-of-00002.parquet")
    assert "of 3 classes, with other names; the files before it" in refused(root)


@pytest.mark.parametrize("wrong", [3, -1, None])
def test_labels_out_of_range(tmp_path, images, wrong):
    rows = [
        (name, wrong if i == 4 else label, d) for i, (name, label, d) in enumerate(images["val"])
    ]
    pq.write_table(table(rows), tmp_path / "x.parquet")
    line = f"1 of 12 labels are not one of 0…2 (row 4 has {wrong})"
    assert line in refused(tmp_path / "x.parquet")
    assert line in checked(tmp_path / "x.parquet").problems[0]
    stream(table(rows), tmp_path / "x.arrow")
    assert line in refused(tmp_path / "x.arrow")


def test_rows_that_are_links(tmp_path):
    rows = [("/else/a.jpg", 0, None), ("b.jpg", 1, jpeg(0))]
    pq.write_table(table(rows), tmp_path / "x.parquet")
    assert "1 of 2 rows have no bytes of an image" in refused(tmp_path / "x.parquet")
    stream(table(rows), tmp_path / "x.arrow")
    assert "no bytes of an image" in refused(tmp_path / "x.arrow")


def test_train_and_val_of_other_classes(parquet, images):
    path = parquet / "data" / "validation-00000-of-00001.parquet"
    pq.write_table(table(images["val"], names=("bee", "ant", "cat")), path)
    assert "the same classes in another order" in refused(parquet, "val")
    assert "the same classes in another order" in checked(parquet).problems[0]
    pq.write_table(table(images["val"], names=("ant", "bee", "cow")), path)
    assert "1 class only in train/ (cat)" in refused(parquet, "val")
    pq.write_table(table(images["val"]).select(["image"]), path)
    assert opened(parquet, "val").classes == ()  # without labels there is nothing to compare


def test_arrow_that_is_cut_short_or_compressed(tmp_path, images):
    rows = table(images["train"])
    path = tmp_path / "x.arrow"
    stream(rows, path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 8):  # the last: at the end of a batch
        path.write_bytes(whole[:length])
        assert "x.arrow" in refused(path)
    stream(rows, path, options=pa.ipc.IpcWriteOptions(compression="lz4"))
    assert "x.arrow is compressed" in refused(path)


def test_what_save_to_disk_does_not_leave(saved):
    state = saved / "train" / "state.json"
    told = json.loads(state.read_text())
    for change, said in (
        ({"_indices_files": [{"filename": "i.arrow"}]}, "a choice of rows"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "names the file '../x.arrow'"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow is missing"),
        ({"_data_files": []}, "names no files"),
    ):
        state.write_text(json.dumps(told | change))
        assert said in refused(saved)
    (saved / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    assert "names no splits" in refused(saved)


def test_one_unreadable_image_is_one_unreadable_image(tmp_path, images):
    rows = [
        (name, label, b"no image" if i == 5 else d)
        for i, (name, label, d) in enumerate(images["train"])
    ]
    pq.write_table(table(rows), tmp_path / "x.parquet")
    stream(table(rows), tmp_path / "x.arrow")
    for path in (tmp_path / "x.parquet", tmp_path / "x.arrow"):
        report = checked(path)
        (line,) = report.problems
        assert f"{path}: cat/train_005.JPEG" in line
        assert "is not a known image format" in line
        source = opened(path)
        index = next(i for i in range(30) if source.identifier(i) == "cat/train_005.JPEG")
        with pytest.raises(UnreadableImage):
            source.pixels(index)


def test_a_damaged_page_costs_its_images(tmp_path, images):
    path = tmp_path / "x.parquet"
    how = {"row_group_size": 10, "use_dictionary": False, "compression": "ZSTD"}
    pq.write_table(table(images["train"]), path, **how)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    (page,) = find_pages(lambda at, n: bytes(data[start + at :][:n]), size=size, rows=10).data
    data[start + page.offset : start + page.offset + 4] = b"\xff" * 4  # the codec's first bytes
    path.write_bytes(data)
    report = checked(path)
    assert len(report.problems) == 10
    assert report.splits[0].num_images == 30


def test_a_file_that_changed_since_it_was_opened(parquet, saved):
    for root, suffix in ((parquet, "parquet"), (saved, "arrow")):
        source = opened(root)
        for file in root.rglob(f"*.{suffix}"):
            file.write_bytes(file.read_bytes() + b"x")
        with pytest.raises(UserError, match="has changed since the images in it were listed"):
            source.pixels(0)


# -- The check -------------------------------------------------------------------------------------


def test_a_check_says_what_is_there(parquet, saved):
    report = checked(parquet)
    assert report.problems == ()
    assert [one.num_images for one in report.splits] == [30, 12]
    assert report.splits[0].facts["classes"] == 3
    assert report.taken_as == "a set in parquet files, 3 files"
    assert report.notes == ("passed over, as no data: 1 files of test",)
    assert checked(saved).problems == ()


def test_a_check_notes_what_should_be_known(tmp_path, images):
    rows = [row for row in images["train"] if row[1] != 1]
    pq.write_table(table(rows, paths=False), tmp_path / "x.parquet")
    notes = " ".join(checked(tmp_path / "x.parquet").notes)
    assert "train has no image of 1 class (bee)" in notes
    assert "called by their rows" in notes
    pq.write_table(table(rows).select(["image"]), tmp_path / "y.parquet")
    assert "have no labels" in " ".join(checked(tmp_path / "y.parquet").notes)


# -- As a user does --------------------------------------------------------------------------------


@pytest.mark.run
def test_a_short_pretraining_has_equal_weights(tmp_path, parquet, saved, folders):
    import torch

    from sercli import families
    from sercli.engine import pretraining
    from sercli.evals.monitor import training_monitor

    tiny = (
        "data.image_size=16", "data.workers=0", "model.patch_size=4", "model.width=16",
        "model.depth=4", "model.num_heads=2", "method.hidden_width=16", "method.output_width=8",
        "addon.projector_width=8", "train.batch_size=12", "train.max_steps=3", "train.log_steps=1",
    )  # fmt: skip
    weights = []
    for path in (folders, parquet, saved):
        recipe = families.resolve("shapes/moco-ser", tiny, {"data.path": str(path)})
        run = pretraining.prepare(recipe, out=tmp_path / "runs" / path.name).run
        pretraining.train(run, device=torch.device("cpu"), make_monitor=training_monitor)
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line).get("loss") for line in lines]
        weights.append((losses, (run.path / "encoder.safetensors").read_bytes()))
    assert len(weights[0][0]) >= 3
    assert weights[1] == weights[0]
    assert weights[2] == weights[0]

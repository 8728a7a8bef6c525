"""Images without labels: how they are told from class folders, and what is done with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sercli.cli import app
from sercli.data import has_split, open_source
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind, require_labelled
from sercli.data.subset import with_share
from sercli.errors import UserError
from tests.support.pictures import age, folder, image
from tests.support.refusals import refused

TINY = (
    "data.image_size=16", "data.workers=0", "model.patch_size=4", "model.width=16",
    "model.depth=4", "model.num_heads=2", "method.hidden_width=16", "method.output_width=8",
    "addon.projector_width=8", "train.batch_size=12", "train.max_steps=2", "train.log_steps=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))


def opened(path, split="train", **options):
    return open_source(str(path), split, image_size=8, **options)


def names(source):
    return [source.identifier(index) for index in range(len(source))]


def run(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


# What is there, and what it is: nothing that was a set of class folders is another one now.
@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["b.png", "a.png"], "unlabelled"),
        (["a.png", "notes.txt", ".thumbs/x.png", "@eaDir/y.png"], "unlabelled"),
        (["train/a.png", "val/b.png"], "unlabelled"),
        (["train/a.png", "val/cat/b.png"], "unlabelled"),
        (["cat/a.png", "dog/b.png"], "folder"),
        (["cat/a.png", "loose.png"], "folder"),
        (["train/cat/a.png", "val/b.png"], "folder"),
        (["train/cat/a.png", "train/loose.png", "val/cat/b.png"], "folder"),
        (["train/a.png", "cat/b.png"], "folder"),  # classes called cat and train
        (["2019/01/a.png", "2019/02/b.png"], "folder"),
        (["notes.txt"], "folder"),
    ],
)
def test_only_what_has_no_class_folders_has_no_labels(tmp_path, files, kind):
    root = folder(tmp_path / "set", *(one for one in files if one != "notes.txt"))
    if "notes.txt" in files:
        root.mkdir(exist_ok=True)
        (root / "notes.txt").write_text("what these are")
    assert find_kind(str(root)).name == kind
    assert find_kind(f"unlabelled:{root}").name == "unlabelled"


def test_all_images_below_a_folder_in_the_order_of_scans(tmp_path):
    root = folder(tmp_path / "set", "b/c/1.png", "b/2.png", "z.png", "a-/3.png", "a/4.png", "b.png")
    image(root / "b" / ".hidden" / "5.png")
    (root / "empty").mkdir()
    source = opened(f"unlabelled:{root}")
    assert names(source) == ["b.png", "z.png", "a/4.png", "a-/3.png", "b/2.png", "b/c/1.png"]
    assert source.classes == ()
    assert source.labels.tolist() == [0] * 6
    assert source.labels.dtype == np.int64
    assert source.describe(2) == f"{root}/a/4.png"
    age(root)
    kept = [names(opened(f"unlabelled:{root}")) for _ in range(2)]
    assert kept == [names(source)] * 2
    # The same folder as classes is a list of its own.
    (root / "empty").rmdir()
    assert opened(root).classes == ("a", "a-", "b")
    assert names(opened(f"unlabelled:{root}")) == names(source)


def test_a_kept_list_is_used_until_a_folder_changes(tmp_path, monkeypatch):
    root = folder(tmp_path / "set", "a.png", "b.png")
    monkeypatch.setattr("sercli.data.images.kept._SETTLED_NS", 0)
    opened(root)
    listed = []
    monkeypatch.setattr("sercli.data.images.manifest.scan", lambda *_, **__: listed.append(1))
    assert names(opened(root)) == ["a.png", "b.png"]
    assert not listed
    monkeypatch.undo()
    image(root / "c.png")
    assert names(opened(root)) == ["a.png", "b.png", "c.png"]


def test_splits_are_folders_as_ever(tmp_path):
    root = folder(tmp_path / "set", "train/a.png", "train/b.png", "val/cat/c.png")
    assert names(opened(root)) == ["a.png", "b.png"]
    assert has_split(str(root), "val")
    val = opened(root, "val")
    assert (names(val), val.classes) == (["cat/c.png"], ())
    flat = folder(tmp_path / "flat", "a.png")
    assert not has_split(str(flat), "val")
    refused(lambda: opened(flat, "val"), f"{flat} has no val/ folder")


def test_a_share_is_drawn_from_all_and_classes_are_refused(tmp_path):
    root = folder(tmp_path / "set", *(f"{k:02}.png" for k in range(20)))
    some = {share: set(names(opened(root, share=share))) for share in (0.1, 0.5)}
    assert {share: len(found) for share, found in some.items()} == {0.1: 2, 0.5: 10}
    assert some[0.1] < some[0.5]
    assert some[0.5] != set(names(with_share(opened(root), 0.5, seed=1)))
    part = opened(root, share=0.5)
    assert part.classes == ()
    assert part.labels.tolist() == [0] * 10
    refused(lambda: opened(root, classes=("a",)), f"{root} has no labels; data.classes needs")
    refused(lambda: require_labelled(str(root), "kNN"), f"{root} has no labels; kNN needs")


def test_what_is_wrong_is_refused_or_listed(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(lambda: opened(f"unlabelled:{empty}"), f"no image lies below {empty}")
    refused(lambda: opened("unlabelled:/nowhere"), "/nowhere does not exist")
    root = folder(tmp_path / "set", "a.png", "deep/b.png")
    (root / "deep" / "gone.png").symlink_to(tmp_path / "nothing")
    refused(lambda: opened(f"unlabelled:{root}"), "gone.png is a link that leads nowhere")
    (root / "deep" / "gone.png").unlink()
    (root / "deep" / "bad.png").write_bytes(b"no image")

    report = check_data(Path(f"unlabelled:{root}"), Reading(lambda *_: None))
    assert report.taken_as == "images without labels"
    assert [(one.num_images, dict(one.facts)) for one in report.splits] == [(3, {})]
    assert len(report.problems) == 1
    assert "bad.png" in report.problems[0]
    # Loose images beside class folders are left out, which is said.
    (note,) = check_data(root, Reading(lambda *_: None)).notes
    assert note.startswith("1 image beside the class folders of")
    assert f"unlabelled:{root} takes all" in note


@pytest.mark.parametrize("packed", ["x-0000.tar", "train.parquet", "all.ZIP", "data.arrow"])
@pytest.mark.parametrize("below", ["", "train"])
def test_images_beside_archives_or_tables_are_not_guessed_at(tmp_path, packed, below):
    """A picture of what is in shards is not the set; and a download may lie beside a set."""
    root = folder(tmp_path / "set", f"{below}/a.png".lstrip("/"))
    (root / below / packed).write_bytes(b"")
    for act in (opened, lambda path: require_labelled(str(path), "kNN"),
                lambda path: check_data(path, Reading(print))):  # fmt: skip
        with pytest.raises(UserError, match=f"holds images, and {packed} beside them"):
            act(root)
    assert names(opened(f"unlabelled:{root}")) == ["a.png"]


def test_links_that_lead_in_a_circle_end(tmp_path):
    root = folder(tmp_path / "set", "a.png", "deep/b.png")
    (root / "deep" / "up").symlink_to(root)
    (root / "again").symlink_to(root / "deep")
    assert names(opened(f"unlabelled:{root}")) == ["a.png", "again/b.png"]


def test_pretraining_goes_on_without_knn_and_what_needs_labels_says_so(tmp_path):
    root = folder(tmp_path / "set", *(f"{k:02}.png" for k in range(30)))
    path = tmp_path / "run"
    settings = [word for one in TINY for word in ("--set", one)]
    status, printed = run(
        "pretrain", "--recipe", "shapes/moco-ser", "--data", root, "--out", path,
        "--device", "cpu", *settings,
    )  # fmt: skip
    assert status == 0, printed
    assert printed.count("has no labels: the monitor watches for collapse, not kNN") == 1
    assert "30 images of 16 px, no labels" in printed.replace("\n", " ")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "embedding_std" in row]
    assert measured
    assert not any("knn_top1" in row for row in rows)
    for command in (("knn", path), ("knn", path, "--shots", "10%"), ("linear-eval", path)):
        status, printed = run(*command, "--device", "cpu")
        assert status != 0
        assert f"{root} has no labels" in printed.replace("\n", "")
    labelled = folder(tmp_path / "labelled", *(f"{c}/{k}.png" for c in "ab" for k in range(5)))
    status, printed = run("knn", path, "--data", labelled, "--no-floor", "--device", "cpu")
    assert status == 0, printed
    features = tmp_path / "features.npz"
    status, printed = run("features", path, "--out", features, "--device", "cpu")
    assert status == 0, printed
    with np.load(features) as arrays:
        assert arrays["features"].shape == (30, 16)
        assert not {"labels", "classes"} & set(arrays)

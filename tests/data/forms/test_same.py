"""The same images in any form are the same set: pixels, labels, order, batches, losses, kNN.

Everything is compared with class folders. Who writes the forms is not ours (`tests.support.forms`).
"""

import itertools

import numpy as np
import pytest
import torch

from sercli.data import has_split, open_source
from sercli.data.loading import load_rows
from sercli.recipe.schema import Views
from sercli.runs.places import parted
from sercli.runs.run_dir import RunDir
from sercli.views.plan import partition, plan_views
from sercli.views.reading import TrainingImages, batches
from tests.support.command_line import run_in_process, ser
from tests.support.forms import EACH_FORM, FORMS, LABELLED, NUM_TRAIN, SPLITS, TRAINING, WNIDS
from tests.support.training import TIMES, interrupt_after, losses, start, train, weights

SOME = ["shards", "zip", "parquet", "arrow"]


def opened(path, split="train"):
    return open_source(str(path), split, image_size=16)


def settings(path, *more):
    return (*TRAINING, f"data.path={path}", *more)


@pytest.mark.parametrize("form", EACH_FORM)
def test_image_i_is_the_same_image_of_the_same_class(written, form):
    path = written.typed(form)
    for split in SPLITS:
        assert has_split(path, split)
        found, expected = opened(path, split), opened(written.folders, split)
        assert found.split == split
        assert len(found) == len(expected)
        if FORMS[form].labelled:
            assert found.classes == expected.classes == WNIDS
            assert found.labels.tolist() == expected.labels.tolist()
        else:
            assert (found.classes, set(found.labels)) == ((), {0})
        for index in range(len(expected)):
            assert np.array_equal(found.pixels(index), expected.pixels(index))
            assert found.load(index).tobytes() == expected.load(index).tobytes()
            size = expected.file_size(index) if FORMS[form].tells_sizes else None
            assert found.file_size(index) == size
        ids = [found.identifier(index) for index in range(len(found))]
        assert len(set(ids)) == len(ids)
        if FORMS[form].same_names:
            assert ids == [expected.identifier(index) for index in range(len(expected))]


def epochs_of(source, workers):
    """Which images and which pixels the batches of two epochs have."""
    plan = plan_views(Views(), image_size=16, patch_size=4)
    images = TrainingImages(source, Views(), plan, seed=3)
    steps = range(2 * (len(source) // 8))
    keys = batches(len(source), partition(8, None), batch_size=8, seed=3, steps=steps)
    return [
        (
            [note.image for note in batch.notes],
            [c.numpy().tobytes() for c in batch.columns.values()],
        )
        for batch in load_rows(images, keys, rows=8, workers=workers)
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("form", SOME)
def test_the_order_of_an_epoch_is_the_folders_permutation(written, form, workers):
    found = epochs_of(opened(written.typed(form)), workers)
    assert found == epochs_of(opened(written.folders), 0)
    drawn = list(itertools.chain.from_iterable(images for images, _ in found))
    assert len(set(drawn[: len(drawn) // 2])) == len(drawn) // 2 > NUM_TRAIN - 8
    assert drawn[: len(drawn) // 2] != drawn[len(drawn) // 2 :]


@pytest.fixture(scope="module")
def from_folders(written, tmp_path_factory):
    run = start(tmp_path_factory.mktemp("runs") / "folders", settings(written.folders))
    train(run)
    assert len(losses(run)) == 12
    return run


@pytest.mark.parametrize("form", EACH_FORM)
def test_losses_are_equal_to_the_bit(written, from_folders, tmp_path, form):
    run = start(tmp_path / "run", settings(written.typed(form)))
    train(run)
    assert losses(run) == losses(from_folders)
    assert torch.equal(weights(run), weights(from_folders))


@pytest.mark.parametrize("form", SOME)
def test_stopped_within_a_shard_and_resumed_is_bit_equal(written, from_folders, tmp_path, form):
    run = start(tmp_path / "run", settings(written.typed(form), "data.workers=1"))
    interrupt_after(run, 5)  # of an epoch of three steps, with images of every shard
    assert len(losses(run)) < 12
    train(run)
    assert losses(run) == losses(from_folders)
    assert torch.equal(weights(run), weights(from_folders))


# -- Whole commands --------------------------------------------------------------------------------


def pretrain(path, out, *more):
    """The words of a pretraining."""
    chosen = [word for one in TRAINING for word in ("--set", one)]
    named = [word for one in parted(str(path)) for word in ("--data", one)]
    return ["pretrain", "--recipe", "shapes/moco-ser", "--out", str(out), *named, *chosen, *more]


def done(words, monkeypatch, capsys):
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert status == 0, errors


@pytest.mark.run
@pytest.mark.parametrize("form", LABELLED)
def test_knn_is_equal(written, from_folders, monkeypatch, capsys, form):
    found = []
    for path in (written.folders, written.typed(form)):
        done(["knn", from_folders.path, "--data", path], monkeypatch, capsys)
        (result,) = (one for one in from_folders.read_results() if one.name == "knn")
        found.append((result.metrics, result.protocol_id))
    assert found[0] == found[1]


@pytest.mark.run
def test_whole_commands_are_equal(written, tmp_path, monkeypatch, capsys):
    """Also what is monitored meanwhile; several roots and braces as they are typed."""
    rows = {}
    for form in ("shards in braces", "two roots", "list"):
        typed = written.typed(form)
        done(pretrain(typed, tmp_path / form), monkeypatch, capsys)
        rows[form] = losses(RunDir.open(tmp_path / form), left_out=TIMES)
    assert "knn_top1" in rows["list"][-1]
    assert rows["shards in braces"] == rows["two roots"] == rows["list"]


@pytest.mark.run
def test_two_ranks_train_from_shards_as_from_folders(written, tmp_path):
    rows = []
    for name, path in (("folders", written.folders), ("shards", written.typed("shards"))):
        out = tmp_path / name
        result = ser(*pretrain(path, out, "--nproc", "2", "--set", "data.workers=1"))
        assert result.returncode == 0, result.stderr
        rows.append(losses(RunDir.open(out)))
    assert len(rows[0]) == 12
    assert rows[0] == rows[1]

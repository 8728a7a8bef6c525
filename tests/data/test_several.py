"""Several sets as one: classes, splits, names of images, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sercli.cli import app
from sercli.data import has_split, open_source
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind
from sercli.data.source import contents
from sercli.families import resolve
from sercli.runs.facts import facts_of
from sercli.runs.places import joined, parted
from tests.data.images.test_unlabelled import TINY
from tests.support.pictures import files_of, folder, image
from tests.support.refusals import refused


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))


def opened(*paths, split="train", **options):
    return open_source(joined([str(one) for one in paths]), split, image_size=8, **options)


def names(source):
    return [source.identifier(index) for index in range(len(source))]


def test_one_place_is_itself_and_several_are_a_list():
    for place in ("shapes", "/a b", '["', '["a"]', "[]", '["a", 1]', '["a", "b'):
        assert joined([place]) == place
        assert parted(place) == [place]
    places = ["/a", 'with "quotes"', "ü, \udce9", "c\\d"]
    assert parted(joined(places)) == places


def test_equal_class_folders_are_one_class(tmp_path):
    one = folder(tmp_path / "one", "cat/2.png", "cat/1.png", "dog/1.png")
    two = folder(tmp_path / "two", "cat/1.png", "ant/1.png")
    source = opened(one, two)
    assert source.classes == ("ant", "cat", "dog")
    assert files_of(source) == [
        ("two/ant/1.png", "ant"),
        ("one/cat/1.png", "cat"), ("one/cat/2.png", "cat"), ("two/cat/1.png", "cat"),
        ("one/dog/1.png", "dog"),
    ]  # fmt: skip
    assert source.describe(3) == f"{two}/cat/1.png"
    image(two / "cat" / "1.png", level=7)
    assert source.load(3).tobytes() != source.load(1).tobytes()
    assert source.pixels(0).shape == (6, 8, 3)
    assert files_of(pickle.loads(pickle.dumps(source))) == files_of(source)
    # In whatever order, from wherever.
    expected = contents(source)
    assert contents(opened(two, one)) == expected
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for place in (one, two):
        place.rename(moved / place.name)
    assert contents(opened(moved / "one", moved / "two")) == expected
    with pytest.raises(IndexError):
        source.load(5)


def test_names_tell_sets_apart(tmp_path):
    for place in ("a/x/train", "b/x/train"):
        folder(tmp_path / place, "cat/1.png")
    source = opened(tmp_path / "b/x/train", f"{tmp_path}/a/x/train/")
    assert names(source) == ["a/x/train/cat/1.png", "b/x/train/cat/1.png"]


def test_numbers_stay_in_their_order(tmp_path):
    lists = []
    for number, lines in enumerate((["a.png,2", "a.png,10"], ["a.png,3", "a.png,2"])):
        place = folder(tmp_path / f"s{number}", "a.png", "b.png")
        lines[1] = lines[1].replace("a.png", "b.png")
        (place / "l.csv").write_text("\n".join(lines))
        lists.append(place / "l.csv")
    assert opened(*lists).classes == ("2", "3", "10")


def test_splits_of_all_of_them(tmp_path):
    one = folder(tmp_path / "one", "train/cat/1.png", "val/cat/2.png")
    two = folder(tmp_path / "two", "cat/3.png", "dog/4.png")
    assert has_split(joined([str(one), str(two)]), "val")
    val = opened(one, two, split="val")
    assert (val.classes, files_of(val)) == (("cat", "dog"), [("one/cat/2.png", "cat")])
    assert len(opened(one, two)) == 3
    three = folder(tmp_path / "three", "train/newt/1.png", "val/newt/2.png")
    assert opened(one, three, split="val").labels.tolist() == [0, 1]
    assert not has_split(joined([str(two), str(folder(tmp_path / "four", "cat/1.png"))]), "val")
    refused(lambda: opened(two, tmp_path / "four", split="val"), "val images are needed here")


def test_files_tell_their_split_by_name(tmp_path):
    root = folder(tmp_path / "set", "i/1.png", "i/2.png")
    for name, line in (("my-train.csv", "i/1.png,cat"), ("my-val.csv", "i/2.png,cat")):
        (root / name).write_text(line)
    given = (root / "my-val.csv", root / "my-train.csv")
    assert files_of(opened(*given)) == [("my-train.csv/1.png", "cat")]
    assert files_of(opened(*given, split="val")) == [("my-val.csv/2.png", "cat")]
    (root / "my-val.csv").write_text("i/2.png,dog")
    refused(lambda: opened(*given, split="val"), "1 class only in val/ (dog)")


def test_what_cannot_be_one_set(tmp_path):
    labelled = folder(tmp_path / "labelled", "cat/1.png")
    flat = folder(tmp_path / "flat", "1.png", "2.png")
    other = folder(tmp_path / "other", "a/1.png")
    refused(lambda: opened(labelled, flat), f"{labelled} has labels and {flat} has none")
    both = opened(flat, f"unlabelled:{other}")
    assert (both.classes, names(both)) == ((), ["flat/1.png", "flat/2.png", "other/a/1.png"])
    assert len(opened(flat, f"unlabelled:{other}", share=0.34)) == 1
    refused(lambda: opened(flat, f"{flat}/../flat"), "are one set; its images would be there twice")
    refused(lambda: opened(tmp_path, labelled), f"{labelled} lies in {tmp_path}")
    refused(
        lambda: opened(labelled, "shapes"), "shapes is the embedded world; only images in files"
    )
    refused(lambda: opened(labelled, tmp_path / "gone"), f"{tmp_path}/gone does not exist")
    refused(lambda: opened(labelled, "s3://bucket/x"), "URLs are not read")


def test_a_check_is_of_each(tmp_path):
    one = folder(tmp_path / "one", "cat/1.png")
    two = folder(tmp_path / "two", "1.png")
    place = joined([str(one), str(two)])
    report = check_data(Path(place), Reading(lambda *_: None))
    assert report.taken_as == "several sets"
    assert [split.split for split in report.splits] == ["one: train", "two: train"]
    assert len(report.problems) == 1
    assert "has labels and" in report.problems[0]
    result = CliRunner().invoke(app, ["data", "check", str(two), str(one)])
    assert "has labels and" in result.output
    assert "1 problem" in str(result.exception)
    result = CliRunner().invoke(
        app, ["data", "check", str(one), str(folder(tmp_path / "b", "a/1.png"))]
    )
    assert result.exit_code == 0, result.output


def test_recipes_have_a_list_and_one_place_as_ever(tmp_path):
    many = resolve("shapes/moco-none", ("data.path=[/a, 007]",), {}).recipe
    assert parted(many.data.path) == ["/a", "007"]
    assert many.model_dump(mode="json")["data"]["path"] == ["/a", "007"]
    assert "path:\n  - /a\n  - '007'\n" in many.to_yaml()
    file = tmp_path / "recipe.yaml"
    file.write_text(many.to_yaml())
    assert resolve(str(file), (), {}).recipe == many
    one = resolve("shapes/moco-none", ("data.path=[/a]",), {}).recipe
    assert one == resolve("shapes/moco-none", (), {"data.path": "/a"}).recipe
    assert one.model_dump(mode="json")["data"]["path"] == "/a"


def test_a_run_of_several_is_evaluated_and_resumed(tmp_path):
    roots = [
        folder(tmp_path / place, *(f"{c}/{k}.png" for c in "ab" for k in range(8)))
        for place in ("one", "two")
    ]
    given = [word for one in roots for word in ("--data", str(one))]
    path = tmp_path / "run"
    settings = [word for one in TINY for word in ("--set", one)]
    words = ["pretrain", "--recipe", "shapes/moco-ser", *given, "--out", str(path), *settings]
    result = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    record = json.loads((path / "run.json").read_text())
    assert record["data"]["kind"] == "several"
    assert record["recipe"]["data"]["path"] == [str(one) for one in roots]
    assert find_kind(facts_of(str(path)).data_path).name == "several"
    for more in ([], given):
        result = CliRunner().invoke(app, ["knn", str(path), *more, "--no-floor", "--device", "cpu"])
        assert result.exit_code == 0, result.output
    told = json.loads((path / "results" / "knn.json").read_text())["data"]
    assert parted(told["path"]) == [os.fspath(one) for one in roots]

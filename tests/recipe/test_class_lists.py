"""`data.classes`: a list of names, in a recipe or in a file beside it."""

import os

import pytest

from sercli.families import resolve
from sercli.recipe.class_lists import read_class_list
from tests.support.refusals import refused


def _list(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_name_a_line(tmp_path):
    text = (
        "# ImageNet-100\nn02869837 bonnet, poke bonnet\r\n\nn01749939  # kingsnake\nhot dog\nC#\n"
    )
    names = ("n02869837", "n01749939", "hot dog", "C#")
    assert read_class_list(_list(tmp_path / "x.txt", f"\ufeff{text}")) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names no class"),
        (b"# nothing\n\n", "names no class"),
        (b"a\nb\na\n", "names 'a' twice"),
        (b"\xff\xfe", "is no text"),
        (b"".join(b"%d\n" % i for i in range(500_000)) + b"499999\n", "'499999' twice"),  # at once
        (b"a\0b\n", "is no list of classes"),
        (b"a\n" * (3 << 20), "is no list of classes"),
    ],
)
def test_what_is_no_list(tmp_path, content, words):
    (tmp_path / "x.txt").write_bytes(content)
    refused(lambda: read_class_list(tmp_path / "x.txt"), words)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        refused(lambda name=name: read_class_list(tmp_path / name), "no list of classes at")
    refused(lambda: read_class_list(tmp_path / ("x" * 300)), "File name too long")


def test_a_recipe_has_the_names_and_not_the_file(tmp_path, monkeypatch):
    listed = _list(tmp_path / "lists.txt", "star\n007\n1_0\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: shapes/moco-ser\ndata: {classes: lists.txt, share: 0.1}\n")
    first = resolve(str(recipe), (), {}).recipe
    assert first.data.classes == ("007", "1_0", "star")
    assert first.data.share == 0.1
    (tmp_path / "run.yaml").write_text(first.to_yaml())
    listed.unlink()  # a run does not change with the list
    assert resolve(str(tmp_path / "run.yaml"), (), {}).recipe == first
    refused(lambda: resolve(str(recipe), (), {}), "no list of classes at", "lists.txt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").write_text("a\n")
    for given in ("data.classes=7", "data.classes=[a]", "data={classes: 7}"):
        assert resolve("shapes/moco-ser", (given,), {}).recipe.data.classes == ("a",)
    back = resolve(str(tmp_path / "run.yaml"), ("data.classes=null",), {}).recipe
    assert back.data.classes is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.classes=[]", "at least one class"),
        ("data.classes=[a, b, a]", "none of them twice"),
        ("data.classes=[[a]]", "data.classes"),
        ("data.classes={a: 1}", "unknown recipe key data.classes.a"),
        ("data.share=0", "data.share = 0"),
        ("data.share=1.1", "data.share = 1.1"),
    ],
)
def test_other_values_are_one_line(setting, words):
    refused(lambda: resolve("shapes/moco-ser", (setting,), {}), words)

"""What is no path is refused wherever one is given."""

import os
from pathlib import Path

import pytest

from sercli.runs.places import require_place
from tests.support.command_line import run_in_process
from tests.support.refusals import refused

URLS = ("s3://bucket/set", "gs://b/x", "https://host/x.zip", "hf://datasets/x", "file:///x")


@pytest.mark.parametrize("given", [*URLS, *map(Path, URLS)])
def test_urls_are_not_read(given):
    line = refused(lambda: require_place(given, "data"), "URLs are not read", "mount it")
    assert str(given).replace(":/", "://", isinstance(given, Path)) in line  # as it was written


def test_what_no_file_system_takes():
    refused(lambda: require_place("", "data"), "data is empty")
    refused(lambda: require_place("a\0b", "data"), "a\\x00b", "no path holds a NUL")
    line = refused(lambda: require_place("a" * 300, "data"), "File name too long")
    assert len(line) < 200
    refused(lambda: require_place("x/" * 5000, "data"), "File name too long")


def test_a_link_in_a_circle_and_a_place_that_may_not_be_looked_at(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    refused(lambda: require_place(tmp_path / "loop", "data"), "Too many levels of symbolic links")
    monkeypatch.setattr(os, "stat", _denied)
    refused(lambda: require_place("x", "data"), "Permission denied")


def _denied(path):
    raise PermissionError(13, "Permission denied", path)


def test_what_may_be_a_path_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set:").mkdir()
    for path in ("set:/train", "C:/images", "a/b", "a:b", "~", tmp_path / "new", "file/below"):
        (tmp_path / "file").touch()
        require_place(path, "data")


_COMMANDS = (
    *("pretrain --data", "pretrain --out", "pretrain --resume", "pretrain --recipe"),
    *("pretrain --set data.path={}", "knn", "knn timm:x --data", "knn timm:x --data shapes --out"),
    *("compare", "export", "data check", "data shapes", "recipe show", "coco-detect timm:x --coco"),
    *("robustness timm:x --all", "robustness timm:x --imagenet-r", "linear-eval timm:x --data"),
)


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("place", ["s3://bucket/x", "a" * 300, ""])
def test_every_command_says_so_in_a_line(tmp_path, monkeypatch, capsys, command, place):
    monkeypatch.chdir(tmp_path)
    words = command.split()
    if "{}" in command:
        words[-1] = words[-1].format(place)
    else:
        words.append(place)
    if words[0] == "export":
        words.append("x.safetensors")
    status, told = run_in_process(words, monkeypatch, capsys)
    assert (status, told.count("\n")) == (2, 1), told
    if place.startswith("s3"):
        assert "URLs are not read" in told
    assert list(tmp_path.iterdir()) == []

"""Run directories below a folder, whatever else lies there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sercli.errors import UserError
from sercli.runs.finding import find_runs
from tests.support.hostile import HOSTILE


def run_at(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text('{"schema": 1, "status": "done"}')
    return path


def found(*given: Path, below: Path) -> list[str]:
    return [str(place.run.path.relative_to(below)) for place in find_runs(given).places]


def test_runs_are_found_at_any_depth_and_in_runs_but_not_in_what_ser_writes(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/er/c", "a/again", "a/detection/x", "a/checkpoints/y", ".hidden"):
        run_at(tmp_path / name)
    (tmp_path / "no run").mkdir()
    (tmp_path / "run.txt").touch()
    assert found(tmp_path, below=tmp_path) == ["a", "a/again", "b", "deep/er/c"]


def test_links_are_followed_to_runs_alone_and_in_no_circle(tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    run_at(runs / "a")
    run_at(elsewhere / "folder" / "unseen")
    run_at(elsewhere / "linked")
    for name, target in (
        ("up", tmp_path),
        ("self", runs / "self"),
        ("same", runs / "a"),
        ("z", elsewhere / "linked"),
        ("folder", elsewhere / "folder"),
        ("gone", tmp_path / "gone"),
    ):
        (runs / name).symlink_to(target)
    assert found(runs, below=runs) == ["a", "z"]
    # What is named is looked into, link or not; a run that two ways lead to is found once.
    assert found(runs / "folder", runs / "a", runs / "same", below=runs) == ["folder/unseen", "a"]


def test_a_named_run_is_named_and_one_below_a_folder_is_not(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a")
    assert [place.named for place in find_runs([run]).places] == [True]
    assert [place.named for place in find_runs([tmp_path]).places] == [False]
    assert [place.named for place in find_runs([tmp_path, run]).places] == [False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    run_at(tmp_path / "a")
    closed = run_at(tmp_path / "closed" / "b").parent
    closed.chmod(0)
    try:
        looked = find_runs([tmp_path])
    finally:
        closed.chmod(0o700)
    assert [place.run.path.name for place in looked.places] == ["a"]
    assert "closed cannot be looked into: Permission denied" in looked.skipped[0].why


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_what_holds_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="run directory"):
        find_runs([tmp_path / name])


def test_names_of_all_kinds(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if "/" not in name]
    for name in names:
        run_at(tmp_path / name)
    assert {place.run.path.name for place in find_runs([tmp_path]).places} == set(names)

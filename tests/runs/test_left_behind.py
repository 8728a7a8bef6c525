"""What killed processes leave is removed by the next start; a living one's is left alone."""

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

from sercli.errors import RunFailed, UserError
from sercli.runs import files
from sercli.runs.files import (
    is_left_behind,
    replacing_directory,
    replacing_file,
    require_writable,
    temporary,
    write_atomic,
    write_text,
)
from sercli.runs.owner import Owner
from sercli.runs.run_dir import RunDir
from tests.support.processes import left_zombie
from tests.support.refusals import refused


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def of_dead():
    """What names the temporary files of a process that has ended."""
    zombie = left_zombie()
    zombie.wait()
    return f"{Owner.here().machine}-{zombie.pid}-1"


def test_a_dead_processs_file_goes_with_the_next_write_and_a_living_ones_stays(tmp_path, of_dead):
    descriptor, living = temporary(tmp_path / "file")
    os.close(descriptor)
    (tmp_path / f".file.{of_dead}.abcd1234").touch()
    (tmp_path / f".other.{of_dead}.abcd1234").mkdir()
    (tmp_path / f".other.{of_dead}.abcd1234" / "inside").touch()
    for users in (".data.original", ".x", "..", f"{of_dead}.abcd1234"):
        (tmp_path / users).mkdir(exist_ok=True)
    write_text(tmp_path / "file", "text")
    left = [os.path.basename(living), ".data.original", ".x", f"{of_dead}.abcd1234", "file"]
    assert names(tmp_path) == sorted(left)


def test_a_number_given_anew_is_another_process(tmp_path):
    here = Owner.here()
    own, former = (
        tmp_path / f".file.{here.machine}-{here.pid}-{started}.abcd1234"
        for started in (here.started, here.started + 1)
    )
    for path in (own, former):
        path.touch()
    assert not is_left_behind(own)
    assert is_left_behind(former) == bool(here.started)


def test_another_machines_is_left_for_a_day(tmp_path):
    path = tmp_path / ".set.01234567-89-10.abcd1234"
    (path / "train").mkdir(parents=True)
    (path / "train" / "x.png").touch()
    for one in (path, path / "train"):
        os.utime(one, (1, 1))
    assert not is_left_behind(path)  # the image was written just now
    os.utime(path / "train" / "x.png", (1, 1))
    assert is_left_behind(path)


def test_long_names_have_temporary_files(tmp_path):
    name = "ä" * 127
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]
    refused(lambda: write_text(tmp_path / f"{name}ää", "text"), "name too long")


@pytest.mark.parametrize("length", [3, 242, 243, 254])
def test_names_that_are_no_text_have_temporary_files(tmp_path, length):
    name = os.fsdecode(b"\xff" + b"a" * length)
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_a_half_made_directory_goes_with_the_next_one(tmp_path, of_dead):
    half = tmp_path / f".set.{of_dead}.abcd1234"
    half.mkdir()
    (half / "image").touch()
    with replacing_directory(tmp_path / "another", what="it") as draft:
        assert not half.exists()
        assert draft.parent == tmp_path
    assert names(tmp_path) == ["another"]


def test_the_draft_of_a_killed_export_goes_with_the_next_one(tmp_path, of_dead):
    half = tmp_path / f".vit.safetensors.{of_dead}.abcd1234"
    half.mkdir()
    (half / "draft.safetensors").touch()
    out = tmp_path / f"{'v' * 243}.safetensors"  # as long as names may be
    with replacing_file(out) as draft:
        assert not half.exists()
        draft.write_text("new")
    assert (names(tmp_path), out.read_text()) == ([out.name], "new")


def test_a_draft_that_is_not_right_goes_and_the_earlier_file_stays(tmp_path):
    out = tmp_path / "vit.safetensors"
    out.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), replacing_file(out) as draft:  # noqa: PT012
        draft.write_text("half")
        raise KeyboardInterrupt
    assert (names(tmp_path), out.read_text()) == ([out.name], "earlier")


CHILD = """
import sys, time
from pathlib import Path
from sercli.runs.files import write_atomic
def write(file):
    file.write(b"half"); file.flush(); print("there", flush=True); time.sleep(100)
write_atomic(Path(sys.argv[1]), write)
"""


@pytest.mark.run
def test_a_process_that_is_killed_while_it_writes(tmp_path):
    path = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        (half,) = tmp_path.iterdir()
        write_text(path, "one")
        assert half.exists()  # it lives
        process.send_signal(signal.SIGKILL)
    write_text(path, "two")
    assert names(tmp_path) == ["file"]


def test_a_run_directory_is_swept_everywhere(tmp_path, of_dead):
    run = RunDir.create(tmp_path / "run", recipe="x", run={})
    places = (run.path, run.results, run.checkpoints, run.detection("x").checkpoints, run.heads)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f".x.{of_dead}.abcd1234").touch()
    run.sweep()
    assert not [file for place in places for file in place.glob(".*")]


def test_halves_of_checkpoints_go_also_those_of_an_earlier_version(tmp_path):
    run = RunDir.create(tmp_path / "run", recipe="x", run={})
    run.checkpoints.mkdir()
    for step in (4, 8):
        run.checkpoint_hash(step).touch()
    run.checkpoint(8).touch()
    kept = [".notes.original", "mine.sha256", run.checkpoint(8).name, run.checkpoint_hash(8).name]
    for name in (*kept, ".step-00000012.pt.abcd1234", ".step-00000012.pt.sha256.abcd123_"):
        (run.checkpoints / name).touch()
    (run.path / ".run.json.abcd1234").touch()
    run.sweep_checkpoints()
    assert names(run.checkpoints) == sorted(kept)
    assert names(run.path) == ["checkpoints", "recipe.yaml", "run.json"]


# -- places that cannot be written ----------------------------------------------------------------


def test_what_can_be_written_is_as_it_was(tmp_path):
    require_writable(tmp_path / "not" / "there")
    require_writable(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, "Read-only"), (errno.EACCES, "denied")])
def test_a_place_is_tried(tmp_path, monkeypatch, number, kind):
    def fails(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fails)
    refused(lambda: require_writable(tmp_path), "cannot write into", kind)


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="No space"):
        require_writable(tmp_path)
    assert names(tmp_path) == []


def test_a_file_where_results_go_is_found(tmp_path):
    run = RunDir.create(tmp_path / "run", recipe="x", run={})
    run.require_writable()
    run.results.touch()
    refused(run.require_writable, "results is a file")


def test_a_write_that_finds_no_directory_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    refused(lambda: write_atomic(tmp_path / "file" / "x", lambda _: None), "cannot write")
    assert names(tmp_path) == ["file"]


def draft(path):
    with replacing_file(path) as file:
        file.write_text("x")


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), draft])
def test_a_pipe_or_device_is_not_replaced_by_a_file_and_a_link_stays_one(tmp_path, write):
    """`--out /dev/null`, by a user who may do that, would take it from the whole machine."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="it is a FIFO"):
        write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    file.write_text("old")
    link.symlink_to("file")
    write(link)
    assert link.is_symlink()
    assert file.read_text() == "x"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link", "pipe"]

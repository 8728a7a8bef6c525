"""Resuming goes on with the same run or not at all, and a refusal changes nothing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import torch

from sercli.commands.subject import open_or_create
from sercli.engine import checkpoint, pretraining
from sercli.engine.resuming import compare, examine
from sercli.errors import RunFailed
from sercli.families import resolve
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process
from tests.support.pictures import write_folders
from tests.support.refusals import refused
from tests.support.signals import handled
from tests.support.training import SER, interrupt_after, losses, start, train, weights

STOPPED, TOTAL = 6, 8


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run that was stopped after six steps."""
    run = start(tmp_path_factory.mktemp("runs") / "stopped", (*SER, f"train.max_steps={TOTAL}"))
    interrupt_after(run, STOPPED)
    run.update_run(status="preempted", world_size=1)
    return run


@pytest.fixture
def run(stopped_run, tmp_path):
    shutil.copytree(stopped_run.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def resume(run, monkeypatch, capsys):
    """`ser pretrain --resume` of it: the exit status, and what it said."""

    def call(*options):
        return run_in_process(["pretrain", "--resume", run.path, *options], monkeypatch, capsys)

    return call


def everything(run):
    """All files and their bytes."""
    return {p: p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}


def edited(run, old, new):
    text = run.recipe.read_text()
    assert old in text
    run.recipe.write_text(text.replace(old, new, 1))


# -- nothing that can be used ---------------------------------------------------------------------


def damage(run):
    for step in run.checkpoint_steps():
        with open(run.checkpoint(step), "ab") as file:
            file.write(b"x")


def lose_hashes(run):
    for step in run.checkpoint_steps():
        run.checkpoint_hash(step).write_bytes(b"\xff\xfe\n")


def lose_checkpoints(run):
    for step in run.checkpoint_steps():
        run.checkpoint(step).unlink()


def lose_everything(run):
    shutil.rmtree(run.checkpoints)
    run.encoder.unlink()
    run.metrics.unlink()


WAYS = [damage, lose_hashes, lose_checkpoints, lose_everything]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_without_a_checkpoint_that_can_be_used_is_left_as_it_is(run, resume, way):
    way(run)
    before = everything(run)
    status, said = resume()
    assert status == 2
    assert f"it was saved at step {STOPPED}" in said.splitlines()[-1]
    assert f"ser pretrain --recipe {run.recipe}" in said.splitlines()[-1]
    assert everything(run) == before


@pytest.mark.parametrize("way", WAYS[:3])
def test_so_is_one_of_an_earlier_version_that_did_not_note_its_checkpoints(run, resume, way):
    told = run.read_run()
    for key in ("recipe", "recipe_sha256", "data", "saved_step"):
        del told[key]
    run.run.write_text(json.dumps(told))
    way(run)
    before = everything(run)
    status, said = resume()
    assert status == 2, said
    assert "no checkpoint of" in said
    assert everything(run) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew_and_says_so(run, resume):
    shutil.rmtree(run.checkpoints)
    run.encoder.unlink()
    told = run.read_run()
    del told["saved_step"]
    run.run.write_text(json.dumps({**told, "status": "running"}))
    run.checkpoints.mkdir()
    run.checkpoint(2).write_bytes(b"half")  # killed before its hash was written
    status, said = resume()
    assert status == 0, said
    assert f"begins at step 0, and the {STOPPED} steps that were logged are lost" in said
    assert [row["step"] for row in run.read_metrics()] == list(range(1, TOTAL + 1))


# -- another run ----------------------------------------------------------------------------------

EDITS = {
    "lr": ("\n  lr: 0.008", "\n  lr: 0.5", "train.lr was 0.008, is 0.5"),
    "batch": ("batch_size: 12", "batch_size: 8", "train.batch_size was 12, is 8"),
    "seed": ("seed: 0", "seed: 1", "seed was 0, is 1"),
    "decoder": ("decoder: pil", "decoder: fast", 'data.decoder was "pil", is "fast"'),
    "colours": (
        "data:\n",
        "data:\n  mean: [0.5, 0.5, 0.5]\n",
        "data.mean was [0.485, 0.456, 0.406], is",
    ),
    "blocks": ("model:\n", "model:\n  mlp: quick-gelu\n", 'model.mlp was "gelu", is "quick-gelu"'),
    "norms": ("model:\n", "model:\n  norm_eps: 1.0e-5\n", "model.norm_eps was 1e-06, is 1e-05"),
    "world": ("num_train: 96", "num_train: 84", "data.num_train was 96, is 84"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_recipe_is_refused_by_the_keys_that_changed(run, resume, edit):
    old, new, words = EDITS[edit]
    edited(run, old, new)
    before = everything(run)
    status, said = resume()
    (line,) = said.splitlines()
    assert status == 2
    assert words in line
    assert "--allow-changed" in line
    assert everything(run) == before


def test_allow_changed_says_what_it_gives_up_and_records_it(run, resume):
    edited(run, "\n  lr: 0.008", "\n  lr: 0.004")
    status, said = resume("--allow-changed")
    assert status == 0, said
    assert f"from step {STOPPED} on this run is no longer the one" in said
    assert "train.lr was 0.008, is 0.004" in said
    told = run.read_run()
    (change,) = told["changed"]
    assert (change["step"], change["what"]) == (STOPPED, ["train.lr was 0.008, is 0.004"])
    assert told["recipe"]["train"]["lr"] == 0.004
    run.update_run(status="preempted")
    status, said = resume()  # it is what run.json says now
    assert (status, "warning" in said) == (0, False)
    assert run.read_run()["changed"] == [change]


def test_what_changes_no_number_is_said_and_allowed(run, resume, stopped_run):
    edited(run, "log_steps: 1", "log_steps: 2")
    run.recipe.write_text(f"# a comment\n{run.recipe.read_text()}")
    status, said = resume()
    assert status == 0, said
    assert "train.log_steps was 1, is 2" in said
    whole = RunDir(stopped_run.path.with_name("whole"))
    shutil.copytree(stopped_run.path, whole.path)
    train(whole)
    assert torch.equal(weights(run), weights(whole))


def test_memory_may_be_saved_from_some_step_on(run, resume, stopped_run):
    edited(run, "accumulate: 1", "accumulate: 3")
    edited(run, "checkpointing: 'off'", "checkpointing: blocks")
    status, said = resume()
    assert status == 0, said
    assert "train.accumulate was 1, is 3" in said
    assert 'train.checkpointing was "off", is "blocks"' in said
    whole = RunDir(stopped_run.path.with_name("undivided"))
    shutil.copytree(stopped_run.path, whole.path)
    train(whole)
    torch.testing.assert_close(weights(run), weights(whole), rtol=1e-3, atol=1e-4)


def test_the_same_run_goes_on_without_a_word(run, resume):
    status, said = resume()
    assert status == 0
    assert not [line for line in said.splitlines() if not line.startswith("step ")]
    assert "changed" not in run.read_run()
    assert not run.lease.exists()


def test_a_training_cannot_become_shorter_than_it_is(run, resume):
    edited(run, f"max_steps: {TOTAL}", "max_steps: 4")
    before = everything(run)
    status, said = resume("--allow-changed")
    assert status == 2
    assert "saved at step 6 of now 4" in said
    assert everything(run) == before


def test_a_run_of_an_earlier_version_gets_a_record(run, resume):
    told = run.read_run()
    for key in ("recipe", "recipe_sha256", "data", "saved_step"):
        del told[key]
    run.run.write_text(json.dumps(told))
    edited(run, "\n  lr: 0.008", "\n  lr: 0.004")  # what it does not record is not missed
    status, said = resume()
    assert status == 0, said
    told = run.read_run()
    assert told["recipe"]["train"]["lr"] == 0.004
    assert told["data"]["images"] == 96
    assert told["saved_step"] == TOTAL


def test_a_run_from_before_there_were_decoders_goes_on_with_pillow(run, resume):
    told = run.read_run()
    assert told["recipe"]["data"].pop("decoder") == "pil"
    run.run.write_text(json.dumps(told))
    run.recipe.write_text(run.recipe.read_text().replace("  decoder: pil\n", ""))
    assert "decoder" not in run.recipe.read_text()
    status, said = resume()
    assert status == 0, said
    assert pretraining.read_recipe(run).data.decoder == "pil"


@pytest.fixture
def of_files(tmp_path):
    """A run on class folders, with the settings that bind to ranks, and its folder."""
    folder = write_folders(tmp_path / "data", classes=2, images=6, size=16)
    settings = [one for one in SER if not one.startswith("data.num")]
    resolved = resolve(
        "shapes/moco-ser",
        (*settings, f"data.path={folder}", "data.num_train=null", "data.num_val=null",
         "train.batch_size=4", "addon.preset=summary"),
        {},
    )  # fmt: skip
    return pretraining.prepare(resolved, out=tmp_path / "of-files").run, folder


def look(run, processes=1, allow_changed=False):
    return examine(run, processes=processes, allow_changed=allow_changed).comparison


def test_other_images_are_another_run(of_files):
    run, folder = of_files
    assert look(run).changes == ()
    files = sorted(folder.rglob("*.png"))
    text = files[0].read_bytes()
    files[0].write_bytes(text + b"x")
    refused(lambda: look(run), "the 12 images of", "are others")
    files[0].write_bytes(text)
    assert look(run).changes == ()
    added = files[0].with_name("more.png")
    shutil.copy(files[0], added)
    os.utime(added.parent)
    refused(lambda: look(run), "has 13 training images, before it had 12")
    (change,) = look(run, allow_changed=True).changes
    assert "13 training images" in change
    added.unlink()
    files[0].rename(files[0].with_name("renamed.png"))
    refused(lambda: look(run), "the 12 images of", "are others")


@pytest.mark.parametrize("form", ["folders", "tar", "two", "share"])
def test_other_bytes_of_the_same_sizes_are_another_run(of_files, tmp_path, form):
    """An archive that was written anew is the same set if its images are, whatever its time."""
    before, folder = of_files
    settings = [one for one in SER if not one.startswith("data.num")]
    path = tmp_path / "set.tar" if form == "tar" else folder

    def write():
        if form == "tar":
            with tarfile.open(path, "w") as archive:
                archive.add(folder, ".")

    write()
    if form == "two":
        shutil.copytree(folder, tmp_path / "more")
        path = json.dumps([str(folder), str(tmp_path / "more")])
    resolved = resolve(
        "shapes/moco-ser",
        (*settings, f"data.path={path}", "data.num_train=null", "data.num_val=null",
         f"data.share={0.5 if form == 'share' else 1}", "train.batch_size=4", "addon.fraction=0.5"),
        {},
    )  # fmt: skip
    run = pretraining.prepare(resolved, out=tmp_path / "other").run
    write()
    assert look(run).changes == ()
    for file in folder.rglob("*.png"):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    write()
    refused(lambda: look(run), "hold other bytes, under the same names", "--allow-changed")
    told = run.read_run()
    del told["data"]["sample"]  # of a version that had none
    run.run.write_text(json.dumps(told))
    assert look(run).changes == ()
    del before


def test_images_that_are_gone_say_how_to_follow_them(of_files):
    run, folder = of_files
    folder.rename(folder.with_name("moved"))
    refused(lambda: look(run), f"{folder} does not exist", f"data.path into {run.recipe}")


def test_images_may_move(of_files):
    run, folder = of_files
    folder.rename(folder.with_name("moved"))
    edited(run, str(folder), str(folder.with_name("moved")))
    found = look(run)
    assert found.changes == ()
    (note,) = found.notes
    assert "data.path was" in note
    assert "same run" in note


def test_another_number_of_processes_is_said_and_where_it_matters_refused(of_files, run):
    run.update_run(world_size=1)
    recipe, source = examine(run, processes=1, allow_changed=False).resolved.recipe, None
    source = pretraining.training_source(recipe)
    (note,) = compare(run, recipe, source, processes=2, allow_changed=False).notes
    assert "2 processes, before it was 1: the same run, but for rounding" in note
    bound, _ = of_files
    assert look(bound, processes=2).changes == ()  # it has not trained yet
    bound.update_run(world_size=1)
    refused(lambda: look(bound, processes=2), "2 processes, before it was 1", "addon.keys rank-loc")
    assert look(bound, processes=2, allow_changed=True).changes


def test_plugins_may_lie_elsewhere(run):
    told = run.read_run()
    told["recipe"]["plugins"] = [{"file": "/before/x.py", "sha256": "1"}]
    run.run.write_text(json.dumps({**told, "recipe_sha256": "0" * 64}))
    refused(lambda: look(run), "plugins was")


@pytest.mark.parametrize("options", [["--allow-changed"], ["--take-over"]])
def test_options_of_a_resume_need_one(monkeypatch, capsys, options):
    status, said = run_in_process(["pretrain", *options], monkeypatch, capsys)
    assert (status, "--resume RUNDIR" in said) == (2, True)


# -- damaged text ---------------------------------------------------------------------------------


def test_damaged_rows_are_left_out_and_told_of(run, resume):
    line = bytes(range(128, 256))
    lines = run.metrics.read_bytes().splitlines()
    run.metrics.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n" + line)
    status, said = resume()
    assert status == 0, said
    assert "1 damaged lines are left out" in said
    assert [row["step"] for row in run.read_metrics()] == list(range(1, TOTAL + 1))


@pytest.mark.parametrize("status", [None, 5, ["done"]])
def test_a_run_without_a_status_is_refused(run, resume, status):
    told = {**run.read_run(), "status": status}
    run.run.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    before = everything(run)
    code, said = resume()
    assert (code, "status" in said) == (2, True)
    assert everything(run) == before


# -- places ---------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_refused_before_it_trains(run, resume):
    shutil.rmtree(run.checkpoints)
    run.checkpoints.touch()
    status, said = resume()
    assert (status, "checkpoints is a file" in said) == (2, True)


@pytest.mark.parametrize("command", ["knn", "linear-eval", "equiv-score", "coco-detect"])
def test_evaluators_find_that_a_result_could_not_be_written(run, command, monkeypatch, capsys):
    run.results.touch()
    monkeypatch.setattr("sercli.encoders.loading.read_encoder", None)  # not even read
    status, said = run_in_process([command, run.path], monkeypatch, capsys)
    assert (status, "results is a file" in said) == (2, True)


def test_a_directory_that_vanishes_ends_the_run_and_is_not_made_anew(tmp_path, monkeypatch):
    run = start(tmp_path / "run")
    save = checkpoint.save

    def vanishing(*arguments, **options):
        save(*arguments, **options)
        shutil.rmtree(run.path)

    monkeypatch.setattr(checkpoint, "save", vanishing)
    with pytest.raises(RunFailed, match="has vanished"):
        train(run)
    assert not run.path.exists()


def test_results_of_a_run_that_vanished_make_no_half_of_one(tmp_path):
    gone = tmp_path / "run"
    with pytest.raises(RunFailed, match="has vanished"):
        open_or_create(gone, owner=str(gone), command=())
    assert not gone.exists()


def test_a_run_under_way_is_not_resumed(run, resume):
    from sercli.runs.lease import leased

    with leased(run):
        before = everything(run)
        status, said = resume()
        assert (status, "is being trained by process" in said) == (2, True)
        status, _ = resume("--take-over")
        assert status == 2
        assert everything(run) == before
    assert losses(run)


def stopped_while_it_is_compared(monkeypatch, number, meanwhile=lambda: None):
    """A signal comes before the run is this process's: it looks at it, or imports torch."""

    def comes(*_arguments, **_options):
        meanwhile()
        os.kill(os.getpid(), number)

    monkeypatch.setattr("sercli.engine.resuming.examine", comes)


@pytest.mark.parametrize("before", ["running", "failed", "preempted"])
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, ("preempted", 75)), (signal.SIGINT, ("interrupted", 130))],
)
def test_what_stops_a_resume_before_its_first_step_is_said(
    run, resume, monkeypatch, before, number, said
):
    run.update_run(status=before, exit_status=None)
    stopped_while_it_is_compared(monkeypatch, number)
    with handled():
        assert resume()[0] == said[1]
    told = run.read_run()
    assert (told["status"], told["exit_status"]) == said
    assert told["error"].endswith(f"continue with: ser pretrain --resume {run.path}")


def test_a_resume_that_is_stopped_says_nothing_of_a_run_that_is_anothers(run, resume, monkeypatch):
    from sercli.runs.lease import leased

    with contextlib.ExitStack() as other:
        stopped_while_it_is_compared(
            monkeypatch, signal.SIGTERM, lambda: other.enter_context(leased(run))
        )
        before = run.read_run()
        with handled():
            assert resume()[0] == 75
        assert run.read_run() == before


def test_nor_of_one_that_another_has_brought_to_its_end(run, resume, monkeypatch):
    stopped_while_it_is_compared(
        monkeypatch, signal.SIGTERM, lambda: run.update_run(status="done", exit_status=0)
    )
    with handled():
        assert resume()[0] == 75
    assert run.read_run()["status"] == "done"


# -- with processes -------------------------------------------------------------------------------


def resuming(run, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "sercli", "pretrain", "--resume", str(run.path), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.run
@pytest.mark.parametrize("options", [(), ("--nproc", "2")])
def test_of_two_resumes_at_once_one_is_refused(tmp_path, options):
    run = start(tmp_path / "run", (*SER, "train.epochs=12", "train.monitor_epochs=0"))
    interrupt_after(run, STOPPED)
    run.update_run(status="preempted", world_size=1)
    both = [resuming(run, *options) for _ in range(2)]
    ends = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, ends
    assert set(codes) <= {0, 2}, ends  # on a busy machine one may be done before the other looks
    for code, said in zip(codes, ends, strict=True):
        assert ("is being trained by" in said) == (code == 2), said
        assert "Traceback" not in said
    assert ("before it was 1: the same run" in "".join(ends)) == bool(options)
    assert [row["step"] for row in run.read_metrics()] == list(range(1, 97))
    told = run.read_run()
    assert (told["status"], told["world_size"]) == ("done", 2 if options else 1)
    assert not run.lease.exists()

"""The training engine: exact resume, signals, damaged checkpoints, non-finite steps, exit codes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sercli.encoders.loading import load_encoder
from sercli.engine import checkpoint, pretraining
from sercli.engine.trainer import Trainer
from sercli.errors import RunFailed, UserError
from sercli.families import resolve
from sercli.runs.run_dir import RunDir
from tests.support import toy_addon
from tests.support.training import SER, TINY, interrupt_after, losses, start, train, weights


def command(*arguments):
    return [sys.executable, "-m", "sercli", "pretrain", *arguments]


def options(path, settings=SER):
    return [f"--out={path}", *(item for s in settings for item in ("--set", s))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    run = start(tmp_path_factory.mktemp("runs") / "whole")
    train(run)
    return run


def test_a_run_directory_holds_what_it_should(whole):
    state = whole.read_run()
    assert state["status"] == "done"
    assert state["recipe_name"] == "shapes/moco-ser"
    assert state["titles"] == {"method": "MoCo-v3", "addon": "SER"}
    assert state["timings"]["steps"] == 24
    assert state["timings"]["images_per_s"] > 0
    assert state["flops"]["ratio_weight0"] > 1
    assert state["versions"]["torch"] == torch.__version__
    rows = list(whole.read_metrics())
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert rows[-1]["epoch"] == 3
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_inv"] + row["loss_equiv"], rel=1e-6)
    assert rows[4]["lr"] == pytest.approx(8e-3 * 12 / 256)  # the warm-up is over
    assert rows[-1]["lr"] < 0.02 * rows[4]["lr"]
    assert whole.checkpoint_steps() == [20, 24]
    assert all(whole.checkpoint_verifies(step) for step in (20, 24))
    digest = subprocess.run(
        ["sha256sum", "-c", whole.checkpoint_hash(24).name], cwd=whole.checkpoints, check=False
    )
    assert digest.returncode == 0


def test_recipe_yaml_repeats_the_run(whole, tmp_path):
    again = pretraining.prepare(resolve(str(whole.recipe), (), {}), out=tmp_path / "again").run
    assert again.recipe.read_text() == whole.recipe.read_text()
    train(again)
    assert losses(again) == losses(whole)


def test_a_plug_in_whose_loss_raises_is_recorded_as_a_failed_run(tmp_path):
    text = Path(toy_addon.__file__).read_text()
    assert text.count("        vectors = ") == 1
    broken = text.replace(
        "        vectors = ", "        raise ValueError('mine')\n        vectors = "
    )
    (tmp_path / "toy.py").write_text(broken)
    settings = (*TINY, "addon.name=toy", "addon.width=8", "addon.layer=2")
    plugins = (tmp_path / "toy.py",)
    with pytest.raises(ValueError, match="mine"):
        start(tmp_path / "run", settings, "shapes/moco-none", plugins=plugins)
    state = RunDir.open(tmp_path / "run").read_run()
    assert (state["status"], state["exit_status"], state["error"]) == ("failed", 1, "mine")


def test_loader_processes_do_not_change_the_run(whole, tmp_path):
    run = start(tmp_path / "workers", (*SER, "data.workers=2"))
    train(run)
    assert losses(run) == losses(whole)


@pytest.mark.run
def test_killed_and_resumed_is_bit_equal(whole, tmp_path):
    path = tmp_path / "killed"
    with subprocess.Popen(command(*options(path)), env=one_thread()) as process:
        wait_for_rows(path, 10)  # beyond a checkpoint, in the middle of the second epoch
        process.kill()
    run = RunDir.open(path)
    assert run.read_run()["status"] == "running"
    done = len(losses(run))
    assert 10 <= done < 24
    train(run)
    assert losses(run) == losses(whole)
    assert torch.equal(weights(run), weights(whole))


@pytest.mark.run
def test_sigterm_leaves_a_checkpoint_and_75(whole, tmp_path):
    path = tmp_path / "preempted"
    with subprocess.Popen(
        command(*options(path)), env=one_thread(), stderr=subprocess.PIPE
    ) as process:
        wait_for_rows(path, 3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert f"ser pretrain --resume {path}" in errors.decode().splitlines()[-1]
    run = RunDir.open(path)
    assert run.read_run()["status"] == "preempted"
    stopped = len(losses(run))
    assert run.checkpoint_steps()[-1] == stopped < 24
    resumed = subprocess.run(
        command("--resume", str(path)), env=one_thread(), capture_output=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    state = run.read_run()
    assert (state["status"], state["exit_status"], state["error"]) == ("done", 0, None)
    assert losses(run) == losses(whole)
    assert "knn_top1" in list(run.read_metrics())[-1]


@pytest.mark.run
def test_ctrl_c_is_130_and_resumable(tmp_path):
    path = tmp_path / "interrupted"
    with subprocess.Popen(
        command(*options(path)), env=one_thread(), stderr=subprocess.PIPE
    ) as process:
        wait_for_rows(path, 3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors.decode()
    run = RunDir.open(path)
    assert run.read_run()["status"] == "interrupted"
    assert run.checkpoint_verifies(run.checkpoint_steps()[-1])


MILESTONES = (*SER, "train.checkpoint_epochs=0.375", "train.keep_epochs=1")


def test_milestones_stay_through_a_resume(whole, tmp_path, capsys):
    run = start(tmp_path / "milestones", MILESTONES)
    printed = " ".join(capsys.readouterr().out.split())
    found = re.search(
        r"milestones every epoch a checkpoint that is kept: 3 of about (.*) MB, (.*) MB in all",
        printed,
    )
    interrupt_after(run, 13)
    assert run.checkpoint_steps() == [8, 12, 13]
    train(run)
    assert run.checkpoint_steps() == [8, 16, 21, 24]  # every third and every eighth were written
    assert all(run.checkpoint_verifies(step) for step in run.checkpoint_steps())
    assert losses(run) == losses(whole)
    assert torch.equal(weights(run), weights(whole))
    size = run.checkpoint(8).stat().st_size / 1e6
    assert 0 < size - float(found[1]) < 0.15  # names, and the zip file around the tensors
    assert float(found[2]) == pytest.approx(3 * float(found[1]), rel=0.01)
    early, late = (load_encoder(run.checkpoint(step)).state_dict() for step in (8, 24))
    assert early.keys() == late.keys()
    assert not torch.equal(early["pos_embed"], late["pos_embed"])


def test_milestones_stay_when_the_run_goes_on_with_others(tmp_path):
    run = start(tmp_path / "run", (*MILESTONES, "train.max_steps=20"))
    interrupt_after(run, 11)
    text = run.recipe.read_text()
    assert "keep_epochs: 1.0" in text
    run.recipe.write_text(text.replace("keep_epochs: 1.0", "keep_epochs: 1.5"))
    train(run)
    assert run.checkpoint_steps() == [8, 12, 18, 20]  # none that was a milestone is dropped
    assert run.read_run()["milestones"] == [8, 12]


@pytest.mark.parametrize("epochs", ["null", "0", "4"])
def test_without_milestones_the_last_two_stay(tmp_path, capsys, epochs):
    run = start(tmp_path / "run", (*SER, "train.epochs=2", f"train.keep_epochs={epochs}"))
    told = "every 4 epochs: none, as the run is shorter" in " ".join(
        capsys.readouterr().out.split()
    )
    assert told == (epochs == "4")
    train(run)
    assert run.checkpoint_steps() == [12, 16]


def test_a_disk_too_small_for_all_milestones_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(9, 5, 4e5))
    start(tmp_path / "run", MILESTONES)
    assert "in all; 0.4 MB are free" in " ".join(capsys.readouterr().out.split())


def test_damaged_checkpoint_is_refused_and_the_previous_used(whole, tmp_path):
    run = start(tmp_path / "damaged")
    interrupt_after(run, 13)
    steps = run.checkpoint_steps()
    assert steps == [12, 13]
    with open(run.checkpoint(13), "r+b") as file:
        file.seek(run.checkpoint(13).stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    warnings = []
    state = checkpoint.load_latest(run, warnings.append)
    assert state["step"] == 12
    assert len(warnings) == 1
    assert "step-00000013.pt is damaged" in warnings[0]
    train(run)
    assert losses(run) == losses(whole)


@pytest.mark.run
def test_two_processes_by_nproc_train_and_tell_their_status(whole, tmp_path):
    path = tmp_path / "two"
    arguments = [*options(path), "--nproc", "2"]
    result = subprocess.run(command(*arguments), env=one_thread(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    run = RunDir.open(path)
    assert run.read_run()["status"] == "done"
    assert run.read_run()["world_size"] == 2
    ours, theirs = losses(run), losses(whole)
    assert len(ours) == len(theirs)
    for mine, other in list(zip(ours, theirs, strict=True))[:3]:  # float32 drifts apart later
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-4)


def test_three_non_finite_steps_stop_the_run(tmp_path, monkeypatch):
    run = start(tmp_path / "nan")
    forward = Trainer._forward_backward

    def poisoned(trainer, views, moment):
        outcome = forward(trainer, views, moment)
        if trainer.step >= 9:
            trainer.parameters[0].grad.fill_(torch.nan)
        return outcome

    monkeypatch.setattr(Trainer, "_forward_backward", poisoned)
    with pytest.raises(
        RunFailed, match=r"gradient norm was not finite in 3 steps.*step 12 \(images"
    ):
        train(run)
    state = run.read_run()
    assert (state["status"], state["exit_status"]) == ("failed", 3)
    assert all(row["skipped"] and row["grad_norm"] is None for row in losses(run)[9:])
    kept = checkpoint.load_latest(run, pytest.fail)
    assert all(t.isfinite().all() for t in kept["objective"].values())


def test_a_single_non_finite_step_is_skipped(tmp_path, monkeypatch):
    run = start(tmp_path / "one-nan", (*SER, "train.max_steps=4"))
    forward = Trainer._forward_backward
    seen = {}

    def poisoned(trainer, views, moment):
        outcome = forward(trainer, views, moment)
        seen[trainer.step] = [p.detach().clone() for p in trainer.parameters]
        if trainer.step == 1:
            trainer.parameters[0].grad.fill_(torch.inf)
        return outcome

    monkeypatch.setattr(Trainer, "_forward_backward", poisoned)
    train(run)
    assert [row["skipped"] for row in losses(run)] == [False, True, False, False]
    assert all(map(torch.equal, seen[1], seen[2]))
    assert not all(map(torch.equal, seen[2], seen[3]))


def test_full_disk_fails_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run = start(tmp_path / "full")
    writes = []

    class Full(checkpoint._HashingWriter):
        def write(self, data):
            writes.append(len(data))
            if run.checkpoint_steps():
                self.error = OSError(28, "No space left on device")
                raise self.error
            return super().write(data)

    monkeypatch.setattr(checkpoint, "_HashingWriter", Full)
    with pytest.raises(RunFailed, match="No space left on device"):
        train(run)
    assert writes
    assert run.read_run()["exit_status"] == 3
    assert run.checkpoint_steps() == [4]
    assert run.checkpoint_verifies(4)
    assert not [f for f in run.checkpoints.iterdir() if f.name.startswith(".")]


def test_unreadable_images_are_replaced_and_too_many_fail(tmp_path, monkeypatch):
    from sercli.data.shapes.world import ShapesSource
    from sercli.data.source import UnreadableImage

    load = ShapesSource.load

    def flaky(source, index):
        if index % 40 == 7:
            raise UnreadableImage(source.describe(index), "it is truncated")
        return load(source, index)

    monkeypatch.setattr(ShapesSource, "load", flaky)
    with pytest.raises(RunFailed, match=r"of 96 images cannot be read .*shapes/train/"):
        train(start(tmp_path / "flaky"))
    monkeypatch.setattr("sercli.engine.trainer.MAX_UNREADABLE", 0.1)
    run = start(tmp_path / "tolerant")
    train(run)
    assert run.read_run()["status"] == "done"


def test_tensorboard_logs_what_metrics_say(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start(tmp_path / "board", (*SER, "train.max_steps=3", "train.tensorboard=true"))
    train(run)
    events = EventAccumulator(str(run.tensorboard)).Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    assert logged == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in losses(run)]


def last_checkpoint_changed(whole, path, change):
    """A copy of a run that has only its last checkpoint but one, with other values in it."""
    shutil.copytree(whole.path, path)
    run = RunDir.open(path)
    run.update_run(status="preempted")
    run.checkpoint(24).unlink()
    state = torch.load(run.checkpoint(20), weights_only=True)
    change(state)
    checkpoint.save(run, 20, state)
    return run


def spoil_a_head(state):
    state["objective"]["student.method.projector.0.weight"][3, 2] = torch.nan


def spoil_a_moment(state):
    next(iter(state["optimiser"]["state"].values()))["exp_avg_sq"][0] = torch.inf


@pytest.mark.parametrize(
    ("change", "named"),
    [(spoil_a_head, "projector.0.weight"), (spoil_a_moment, "optimiser's exp_avg_sq")],
)
def test_a_run_does_not_go_on_from_what_is_not_finite(whole, tmp_path, change, named):
    run = last_checkpoint_changed(whole, tmp_path / "run", change)
    with pytest.raises(UserError, match="not finite") as caught:
        train(run)
    assert named in str(caught.value)


def test_a_run_of_an_earlier_version_says_what_it_does_not_name(whole, tmp_path, capsys):
    run = last_checkpoint_changed(whole, tmp_path / "run", lambda _: None)
    train(run)
    assert "earlier version" not in capsys.readouterr().err
    older = last_checkpoint_changed(whole, tmp_path / "older", lambda _: None)
    lines = [line for line in older.recipe.read_text().splitlines() if "warmup_ramp" not in line]
    older.recipe.write_text("\n".join(lines) + "\n")
    train(older)
    said = capsys.readouterr().err
    assert "an earlier version of ser wrote" in said
    assert "today's defaults of train.warmup_ramp" in said


def test_an_edited_recipe_does_not_resume(tmp_path):
    run = start(tmp_path / "edited")
    interrupt_after(run, 5)
    run.recipe.write_text(run.recipe.read_text().replace("width: 16", "width: 32", 1))
    with pytest.raises(Exception, match="for this recipe"):
        train(run)


def one_thread():
    """The environment here, with one thread as this process has: sums are compared bit by bit."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(libraries, "1")}


def wait_for_rows(path: Path, rows: int) -> None:
    deadline = time.monotonic() + 120
    metrics = RunDir(path).metrics
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.02)
    pytest.fail(f"{path} logged fewer than {rows} steps")

"""Several processes on this machine, and what is said of how they ended: scripts stand for them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sercli.engine import launch
from sercli.errors import Interrupted, Preempted, RunFailed, SerError
from sercli.runs.run_dir import RunDir
from tests.support.signals import handled

READY = "open(os.environ['PLACE'] + '/' + rank, 'w').close()\n"
SAYS = (
    "def says(status, code, error='so'):\n"
    "    path = os.environ['PLACE'] + '/run/run.json'\n"
    "    state = json.load(open(path)) | {'status': status, 'exit_status': code, 'error': error}\n"
    "    open(path + '.new', 'w').write(json.dumps(state))\n"
    "    os.replace(path + '.new', path)\n"
)


def launched(tmp_path, monkeypatch, script, *, status="running"):
    """`launch` with two processes that run the script instead of `ser`."""
    run = RunDir.create(tmp_path / "run", recipe="x", run={"status": status, "exit_status": None})
    popen = subprocess.Popen
    code = f"import json, os, signal, sys, time; rank = os.environ['RANK']\n{SAYS}{script}"
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda _words, env: popen([sys.executable, "-c", code], env=env)
    )
    with handled():
        launch.launch(run, nproc=2, device="cpu")


def ended(tmp_path):
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    return state["status"], state["exit_status"]


def test_done_is_done(tmp_path, monkeypatch):
    launched(tmp_path, monkeypatch, "if rank == '0': says('done', 0)")
    assert ended(tmp_path) == ("done", 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_parent_is_one_to_its_workers(tmp_path, monkeypatch, number):
    """They are started deaf, as `ser` is until it can say what a signal means."""
    script = (
        "got = []\n"
        f"signal.signal({int(number)}, lambda number, frame: got.append(number))\n"
        f"signal.pthread_sigmask(signal.SIG_UNBLOCK, [{int(number)}])\n{READY}"
        "while not got: time.sleep(0.01)\n"
        "status, code = ('interrupted', 130) if got[0] == 2 else ('preempted', 75)\n"
        "if rank == '0': says(status, code)\n"
        "sys.exit(code)"
    )

    def sleep(_seconds, sent=[]):  # noqa: B006  # why: what was sent is kept between calls
        if not sent and all((tmp_path / rank).exists() for rank in "01"):
            sent.append(os.kill(os.getpid(), number))
        pause(0.01)

    pause = time.sleep
    monkeypatch.setattr(launch.time, "sleep", sleep)
    kind, word = (Interrupted, "interrupted") if number == 2 else (Preempted, "preempted")
    with pytest.raises(kind, match="so"):
        launched(tmp_path, monkeypatch, script)
    assert ended(tmp_path) == (word, kind.exit_status)


@pytest.mark.parametrize("says", ["", "says('failed', 1, 'connection closed')\n"])
def test_a_killed_worker_is_named(tmp_path, monkeypatch, says):
    script = f"if rank == '1': os.kill(os.getpid(), 9)\n{says}sys.exit(3)"
    with pytest.raises(
        RunFailed, match=r"rank 1 \(process \d+\) was killed by signal 9 \(SIGKILL\)"
    ):
        launched(tmp_path, monkeypatch, script)
    assert ended(tmp_path) == ("failed", 3)


def test_a_signal_without_a_name_is_its_number():
    assert str(launch._Ended(1, 7, -40)) == "rank 1 (process 7) was killed by signal 40"


def test_workers_that_do_not_end_after_another_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    script = "if rank == '1': os.kill(os.getpid(), 9)\ntime.sleep(600)"
    with pytest.raises(RunFailed, match=r"rank 1 .* killed"):
        launched(tmp_path, monkeypatch, script)


def test_who_hangs_after_the_others_have_said_so_is_killed_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_FAILED_SECONDS", 0.2)
    script = (
        "if rank == '1': time.sleep(600)\nsays('failed', 3, 'rank 1 has stood still')\nsys.exit(3)"
    )
    began = time.monotonic()
    with pytest.raises(SerError, match="rank 1 has stood still") as error:
        launched(tmp_path, monkeypatch, script)
    assert error.value.exit_status == 3
    assert time.monotonic() - began < launch._GRACE_SECONDS / 2


def test_what_the_run_said_before_is_not_taken_for_how_it_ended(tmp_path, monkeypatch):
    with pytest.raises(SerError, match="ended with status 1") as error:
        launched(tmp_path, monkeypatch, "sys.exit(1)", status="preempted")
    assert error.value.exit_status == 1
    assert ended(tmp_path) == ("failed", 1)


def test_a_worker_that_refuses_to_go_on_has_said_why_and_changes_nothing(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        launched(tmp_path, monkeypatch, "sys.exit(2)", status="preempted")
    assert stop.value.code == 2
    assert ended(tmp_path) == ("preempted", None)


def test_a_stop_of_workers_that_could_not_say_so_is_said_for_them(tmp_path, monkeypatch):
    script = f"signal.pthread_sigmask(signal.SIG_SETMASK, [])\n{READY}time.sleep(600)"

    def sleep(_seconds):
        if all((tmp_path / rank).exists() for rank in "01"):
            os.kill(os.getpid(), signal.SIGTERM)
        pause(0.01)

    pause = time.sleep
    monkeypatch.setattr(launch.time, "sleep", sleep)
    with pytest.raises(Preempted, match="ser pretrain --resume"):
        launched(tmp_path, monkeypatch, script)
    assert ended(tmp_path) == ("preempted", 75)

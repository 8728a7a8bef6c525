"""One writer for a run directory: on this machine, on file systems without locks, on another."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sercli.errors import RunFailed
from sercli.runs import lease as leases
from sercli.runs import owner
from sercli.runs.lease import Time, leased, refuse_if_leased
from sercli.runs.owner import Owner
from sercli.runs.run_dir import RunDir
from tests.support.processes import left_zombie
from tests.support.refusals import refused

ELSEWHERE = Owner("node7", "another-boot/1", 4711, 12345, "99")


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run", recipe="seed: 1\n", run={"status": "preempted"})


def write(run, holder, beat=0):
    run.lease.write_text(json.dumps({**vars(holder), "beat": beat}))


class Passing:
    """Time that passes when somebody sleeps; `happens` is called with it."""

    def __init__(self, happens=lambda _now: None):
        self.now, self.happens = 0.0, happens

    def sleep(self, seconds):
        self.now += seconds
        self.happens(self.now)

    @property
    def time(self):
        return Time(lambda: self.now, self.sleep)


def without_locks(_descriptor, _operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def locked_elsewhere(_descriptor, _operation):
    raise BlockingIOError(errno.EWOULDBLOCK, "locked")


both = pytest.mark.parametrize("lock", [None, without_locks], ids=["flock", "ENOLCK"])


def test_this_process_is_told_from_one_that_has_its_number():
    here = Owner.here()
    assert here.lives()
    assert owner.lives(here.pid, 0)  # a system that does not say when it was started
    if here.started:
        assert not owner.lives(here.pid, here.started + 1)
    assert ELSEWHERE.lives() is None
    zombie = left_zombie()
    assert not owner.lives(zombie.pid, 0)
    zombie.wait()
    assert not owner.lives(zombie.pid, 0)


@both
def test_a_lease_says_whose_the_run_is_and_goes_with_it(run, lock):
    passing = Passing()
    with leased(run, lock=lock, passing=passing.time) as lease:
        told = json.loads(run.lease.read_text())
        assert {key: told[key] for key in ("pid", "host")} == {
            "pid": os.getpid(),
            "host": Owner.here().host,
        }
        before = (run.lease.read_bytes(), run.lease.stat().st_mtime_ns)
        lease.beat()
        assert (run.lease.read_bytes(), run.lease.stat().st_mtime_ns) != before
        lease.require_held()
        refused(lambda: refuse_if_leased(run), "is being trained by process", str(os.getpid()))
    assert not run.lease.exists()
    assert [file.name for file in run.path.iterdir() if file.name.startswith(".")] == []
    with leased(run, lock=lock, passing=passing.time):
        pass


@both
@pytest.mark.parametrize("take_over", [False, True])
def test_a_second_one_on_this_machine_is_refused(run, lock, take_over):
    passing = Passing()
    again = dict(lock=lock, passing=passing.time, take_over=take_over)
    with leased(run, lock=lock, passing=passing.time):
        before = run.lease.read_bytes()
        refused(lambda: leased(run, **again).__enter__(), "is being trained by process", "end it")
        assert run.lease.read_bytes() == before
    assert passing.now < 60


@both
def test_a_killed_one_on_this_machine_is_taken_over_at_once(run, lock):
    zombie = left_zombie()
    here = Owner.here()
    write(run, Owner(here.host, here.boot, zombie.pid, here.started, ""))
    said, passing = [], Passing()
    with leased(run, lock=lock, passing=passing.time, say=said.append) as lease:
        assert lease.held()
    assert passing.now <= 2
    assert said == []
    zombie.wait()


def test_a_lease_from_before_this_machine_started_anew_is_of_a_dead_process(run):
    here = Owner.here()
    write(run, Owner(here.host, "boot-before/1", os.getpid(), here.started))
    os.utime(run.lease, (1, 1))
    passing = Passing()
    with leased(run, passing=passing.time):
        assert passing.now == 0


@pytest.mark.parametrize("lock", [None, without_locks, locked_elsewhere])
def test_another_machines_lease_has_to_stand_still_for_a_minute(run, lock):
    write(run, ELSEWHERE)
    said, passing = [], Passing()
    with leased(run, lock=lock, passing=passing.time, say=said.append) as lease:
        assert lease.held()
        assert passing.now >= 60
    (line,) = said
    assert "process 4711 on node7, job 99" in line
    assert "--take-over" in line
    assert not run.lease.exists()


@pytest.mark.parametrize("lock", [None, without_locks, locked_elsewhere])
def test_another_machines_lease_that_is_touched_is_left_alone(run, lock):
    write(run, ELSEWHERE)
    passing = Passing(lambda now: write(run, ELSEWHERE, 1) if now >= 40 else None)
    call = leased(run, lock=lock, passing=passing.time)
    refused(call.__enter__, "is being trained by process 4711 on node7, job 99")
    assert 40 <= passing.now < 60
    assert json.loads(run.lease.read_text())["pid"] == 4711


@pytest.mark.parametrize("lock", [None, without_locks, locked_elsewhere])
def test_take_over_does_not_wait_for_another_machine(run, lock):
    write(run, ELSEWHERE)
    said, passing = [], Passing()
    options = dict(lock=lock, passing=passing.time, say=said.append)
    with leased(run, take_over=True, **options) as lease:
        assert lease.held()
    assert passing.now <= 2
    assert said == []


def test_who_was_taken_over_writes_no_more(run):
    with leased(run) as lease:
        run.lease.unlink()
        write(run, ELSEWHERE)
        with pytest.raises(RunFailed, match="taken over by process 4711 on node7"):
            lease.require_held()
        lease.beat()
    assert json.loads(run.lease.read_text())["pid"] == 4711  # and is not removed


def test_a_lease_that_somebody_removed_is_written_anew(run):
    with leased(run) as lease:
        run.lease.unlink()
        lease.require_held()
        assert json.loads(run.lease.read_text())["pid"] == os.getpid()
        refused(lambda: leased(run, passing=Passing().time).__enter__(), "is being trained by")
    assert not run.lease.exists()


def test_of_two_that_replace_a_lease_at_once_the_last_has_it(run):
    def other(now):
        if 0 < now <= 2:
            run.lease.unlink()
            write(run, ELSEWHERE)

    passing = Passing(other)
    call = leased(run, lock=without_locks, passing=passing.time)
    refused(call.__enter__, "is being trained by process 4711")


@both
@pytest.mark.parametrize("text", [b"", b"\xff\x00", b"[]", b"{}", b'{"pid": "x"}', b"[" * 5000])
def test_a_damaged_lease_is_no_lease(run, lock, text):
    run.lease.write_bytes(text)
    passing = Passing()
    with leased(run, lock=lock, passing=passing.time) as lease:
        assert lease.held()


def test_a_pipe_in_its_place_is_not_waited_for(run):
    os.mkfifo(run.lease)
    refuse_if_leased(run)
    refused(lambda: leased(run).__enter__(), "lease.json is a FIFO")


def test_a_place_that_cannot_be_written_is_one_line(run):
    run.lease.mkdir()
    refused(lambda: leased(run).__enter__(), "lease.json")


CHILD = """
import os, sys, time
from pathlib import Path
from sercli.runs.lease import leased
from sercli.runs.run_dir import RunDir
run = RunDir(Path(sys.argv[1]))
with leased(run):
    child = os.fork()  # a loader process: it lives on for a while
    print("there", child, flush=True)
    time.sleep(100)
"""


@pytest.mark.run
def test_a_killed_process_leaves_a_run_that_can_be_taken_at_once(run):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(1)]
        loader = int(lines[0].split()[1])
        refused(lambda: leased(run).__enter__(), f"process {process.pid}")
        process.kill()
    try:
        began = time.monotonic()
        with leased(run) as lease:
            assert lease.held()
        assert time.monotonic() - began < leases.WATCH_SECONDS
    finally:
        os.kill(loader, signal.SIGKILL)

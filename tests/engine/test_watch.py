"""Two real processes: one of them is stopped or killed, or was never started."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from sercli import distributed, stages
from sercli.engine import watch
from sercli.errors import RunFailed
from sercli.runs.owner import started_at
from tests.support.processes import free_port
from tests.support.training import SER

# An hour's training, unless somebody ends it; what may stand still for some seconds.
LONG = (*SER, "train.epochs=100000", "train.monitor_epochs=0", "train.checkpoint_epochs=5000")
BOUNDS = "step=4,compile=6,save=4,monitor=4,start=60"
SER_PRETRAIN = ["-m", "sercli", "pretrain", "--recipe", "shapes/moco-ser"]


def of_rank(rank, port):
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


@contextmanager
def started(*commands):
    """Processes of (arguments, environment), which are ended whatever happens."""
    processes = [
        subprocess.Popen(arguments, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, start_new_session=True)
        for arguments, given in commands
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            with process:
                for number in (signal.SIGCONT, signal.SIGKILL):
                    try:
                        os.killpg(process.pid, number)
                    except ProcessLookupError:
                        break


def pretrain(run, *, bounds=BOUNDS):
    settings = [word for setting in LONG for word in ("--set", setting)]
    return [*SER_PRETRAIN, "--out", str(run), *settings, "--bounds", bounds]


def wait_for_steps(run, count=5, seconds=240):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (run / "metrics.jsonl").is_file():
            rows = (run / "metrics.jsonl").read_text().splitlines()
            if len(rows) >= count:
                return
        time.sleep(0.1)
    pytest.fail(f"no {count} steps")


def last_line(process, seconds=120):
    _, errors = process.communicate(timeout=seconds)
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@pytest.mark.run
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_says_who_does_not_go_on(tmp_path, number, rank):
    run, port = tmp_path / "run", free_port()
    command = [sys.executable, *pretrain(run)]
    with started(*((command, of_rank(which, port)) for which in (0, 1))) as both:
        wait_for_steps(run)
        os.kill(both[rank].pid, number)
        said = last_line(both[1 - rank])
        assert both[1 - rank].returncode == 3
    assert f"ser: rank {rank} (" in said
    assert f"pid {both[rank].pid}" in said
    assert ("stopped by a signal" if number == signal.SIGSTOP else "is gone") in said
    assert "no checkpoint had been written" in said
    state = json.loads((run / "run.json").read_text())
    assert (state["status"], state["exit_status"]) == ("failed", 3)
    assert f"ser: {state['error']}" == said


@pytest.mark.run
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_two_agents_on_two_addresses(tmp_path, number):
    """torchrun on two nodes: the second node's process is ended, or hangs."""
    run, port = tmp_path / "run", free_port()
    commands = []
    for node in (0, 1):
        agent = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank",
            str(node), "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port",
            str(port), "--local-addr", f"127.0.0.{1 + node}",
        ]  # fmt: skip
        commands.append(([*agent, *pretrain(run)], {**os.environ, "OMP_NUM_THREADS": "1"}))
    with started(*commands) as agents:
        wait_for_steps(run)
        (worker,) = children(agents[1].pid)
        try:
            os.kill(worker, number)
            _, said = agents[0].communicate(timeout=120)
        finally:  # in a session of its own, and its agent ends before it would end it
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    (line,) = [line for line in said.splitlines() if line.startswith("ser: ")]
    assert "ser: rank 1 (" in line
    assert f"pid {worker}" in line
    state = json.loads((run / "run.json").read_text())
    assert (state["status"], state["exit_status"]) == ("failed", 3)
    assert f"ser: {state['error']}" == line


def children(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in found.stdout.split()]


MEET = """
import sys
from sercli.engine import runtime
from sercli.errors import SerError
try:
    with runtime.process_group("cpu"):
        pass
except SerError as error:
    print(f"ser: {error}", file=sys.stderr)
    sys.exit(error.exit_status)
"""


@pytest.mark.run
@pytest.mark.parametrize("rank", [0, 1])
def test_who_has_not_come_is_named(rank):
    given = {**of_rank(rank, free_port()), "SER_BOUNDS": "start=1"}
    with started(([sys.executable, "-c", MEET], given)) as (alone,):
        said = last_line(alone)
        assert alone.returncode == 3
    who = ("rank 1 of 2 has not come", "rank 1 of 2 has not reached rank 0 at 127.0.0.1")[rank]
    assert who in said


# -- in this process ------------------------------------------------------------------------------


def test_the_kernel_says_what_became_of_a_process():
    me = watch.myself(0)
    assert watch.state_of(me) == ""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        other = watch.Report(1, me.host, me.machine, sleeper.pid, started_at(sleeper.pid) or 0)
        assert watch.state_of(other) == ""
        sleeper.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 30
        while watch.state_of(other) != "stopped" and time.monotonic() < until:
            time.sleep(0.01)
        assert watch.state_of(other) == "stopped"
    finally:
        sleeper.kill()
    sleeper.wait()
    assert watch.state_of(other) == "gone"
    of_its_number = dataclasses.replace(me, born=me.born + 1)
    assert watch.state_of(of_its_number) == "gone"


def test_only_errors_of_a_connection_are_taken_for_a_loss(monkeypatch):
    class Broken:
        def why(self, _error):
            return "rank 1 is gone"

    monkeypatch.setattr(watch, "_watch", Broken())
    with pytest.raises(RunFailed, match="rank 1 is gone"), watch.naming_who_is_gone():
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:541] Connection closed")
    with pytest.raises(RuntimeError, match="shapes"), watch.naming_who_is_gone():
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(watch, "_watch", None)
    with pytest.raises(RuntimeError, match="gloo"), watch.naming_who_is_gone():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:541] Connection closed")


def test_the_last_words_do_not_change_how_a_run_has_ended(tmp_path):
    from sercli.runs.run_dir import RunDir

    run = RunDir.create(tmp_path / "run", recipe="seed: 0\n", run={"status": "running"})
    watch.record(run, "rank 1 is gone")
    state = run.read_run()
    assert (state["status"], state["exit_status"]) == ("failed", 3)
    run.update_run(status="preempted", exit_status=75)
    watch.record(run, "rank 1 is gone")
    assert run.read_run()["status"] == "preempted"
    watch.record(RunDir(tmp_path / "not there"), "rank 1 is gone")


def test_stages_are_where_the_main_thread_is():
    stages.enter("step", "waiting for images", 7)
    moves = stages.here.moves
    with stages.inside("save"):
        assert (stages.here.stage, stages.here.doing) == ("save", "")
    assert (stages.here.stage, stages.here.doing, stages.here.step) == (
        "step", "waiting for images", 7,
    )  # fmt: skip
    assert stages.here.moves > moves


def test_a_single_process_takes_no_turns():
    before = stages.here.turn
    distributed.barrier()
    assert distributed.broadcast_object(3) == 3
    assert stages.here.turn == before

"""What a signal does: at once, after what is deferred, or at a boundary; and once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sercli import signals
from sercli.errors import Interrupted, Preempted, RunFailed
from sercli.runs.files import replacing_directory, write_atomic
from sercli.signals import Stopped
from tests.support.signals import handled

PREEMPTING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP]


def kill(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture
def _handled():
    with handled():
        yield


pytestmark = pytest.mark.usefixtures("_handled")


@pytest.mark.parametrize(
    ("number", "kind"), [*((n, Preempted) for n in PREEMPTING), (signal.SIGINT, Interrupted)]
)
def test_outside_of_steps_a_signal_raises_at_once(number, kind):
    with pytest.raises(Stopped) as stopped:
        kill(number)
    assert type(signals.as_stop(stopped.value, "")) is kind


def test_sighup_stays_ignored_where_nohup_ignored_it():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install()
    kill(signal.SIGHUP)
    with pytest.raises(Stopped):
        kill(signal.SIGTERM)


def test_a_second_signal_does_not_break_what_the_first_began():
    with pytest.raises(Stopped):
        kill()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        kill(number)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)]
)
def test_a_stop_that_python_drops_is_raised_again(number, kind):
    class Dying:
        def __del__(self):
            kill(number)
            time.sleep(0)  # where the handler runs

    signals.install()  # again: pytest before 8.4 has a hook of its own for each part of a test
    with pytest.raises(Stopped) as stopped:  # noqa: PT012
        Dying()
        for _ in range(200):
            time.sleep(0.05)
    assert type(signals.as_stop(stopped.value, "")) is kind


def test_what_is_deferred_is_done_first():
    done = []
    with pytest.raises(Stopped), signals.deferred():  # noqa: PT012
        with signals.deferred():
            kill()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_an_error_in_what_is_deferred_comes_first():
    with pytest.raises(RunFailed), signals.deferred():  # noqa: PT012
        kill()
        raise RunFailed("the disk is full")


def test_another_thread_defers_nothing_and_is_not_stopped():
    inside, done = threading.Event(), threading.Event()

    def defer():
        with signals.deferred():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=defer)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(Stopped):
            kill()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_steps_see_a_request(number):
    told = []
    with signals.at_boundaries(told.append) as request:
        kill(number)
        kill(number)  # of a launcher that passes on what its processes have got already
    assert (request.preempted, request.interrupted) == (number == 15, number == 2)
    assert told == [number, number]
    kill()  # after the last step, while the last files are written


def test_a_second_ctrl_c_ends_sooner_but_after_what_is_deferred(monkeypatch):
    clock = iter([0.0, 0.5, 5.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    done = []
    with pytest.raises(Stopped), signals.at_boundaries(), signals.deferred():  # noqa: PT012
        for _ in range(3):
            kill(signal.SIGINT)
            done.append("saved")
    assert done == ["saved"] * 3


def test_one_of_several_processes_does_not_leave_alone(monkeypatch):
    clock = iter([0.0, 5.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    with signals.at_boundaries(alone=False):
        kill(signal.SIGINT)
        kill(signal.SIGINT)


def test_the_first_process_is_stopped_at_once_while_it_prepares():
    with signals.at_boundaries(alone=False):
        kill()
        with pytest.raises(Stopped), signals.at_once():
            pytest.fail("it went on")


def test_an_error_that_a_library_made_of_a_stop_is_one():
    with pytest.raises(Stopped):
        kill()
    assert type(signals.as_stop(ImportError("numpy failed to import"), "")) is Preempted


def test_without_a_signal_an_error_is_no_stop():
    assert signals.as_stop(ImportError("x"), "") is None
    assert type(signals.as_stop(KeyboardInterrupt(), "")) is Interrupted


def test_what_is_settled_stays():
    signals.settle()
    kill()
    assert signals.requested().preempted


def test_a_wait_that_is_not_in_python_ends_by_the_signal_itself():
    with signals.fatal():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signals._handle


def test_a_process_that_starts_hears_of_a_signal_when_it_can_say_so():
    script = (
        "import signal, sys; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)\n"
        "sys.stdin.readline()\n"
        "from sercli import signals\n"
        "try: signals.install()\n"
        "except signals.Stopped: sys.exit(75)"
    )
    with signals.starting_processes():
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert int(process.stdout.readline()) >= 6
    process.send_signal(signal.SIGTERM)
    process.communicate(b"\n")
    assert process.returncode == 75
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_end_of_the_parent_is_sigterm():
    signals.follow(os.getppid())  # which lives
    with pytest.raises(Stopped), signals.at_boundaries() as request:  # noqa: PT012
        signals.follow(2**30)  # which has ended already
        while not request.preempted:
            time.sleep(0.01)
        raise Stopped


# -- files ----------------------------------------------------------------------------------------


def test_a_file_is_written_to_its_end(tmp_path):
    path = tmp_path / "file"

    def write(file):
        file.write(b"half ")
        kill()
        file.write(b"whole")

    with pytest.raises(Stopped):
        write_atomic(path, write)
    assert path.read_bytes() == b"half whole"
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_directory_that_is_not_done_nothing_is_left(tmp_path):
    with pytest.raises(Stopped), replacing_directory(tmp_path / "new", what="a test") as draft:  # noqa: PT012
        (draft / "file").touch()
        kill()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_one_that_came_before_the_command_could_handle_it_ends_it_in_a_line(
    number: signal.Signals, status: int
) -> None:
    """`ser reproduce` starts its jobs with signals held: the first tenths of a second."""
    program = (
        "import os, signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'sercli', 'recipe', 'list'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "ser: stopped by a signal\n")

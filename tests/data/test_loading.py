"""Loader processes: what they read, and what becomes of everything that can fail."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from sercli import cli
from sercli.data import workers as processes
from sercli.data.loading import evaluation_batches, load_batches, load_images, load_rows
from sercli.data.ring import Column, Ring
from sercli.data.shapes.world import ShapesSource
from sercli.data.workers import InProcesses
from sercli.errors import RunFailed, SerError, UserError, exhausted
from tests.support.command_line import run_in_process
from tests.support.numbers import Numbers
from tests.support.paths import ROOT

BATCHES = [[0], [1, 2, 3], [], list(range(4, 4 + 150)), [200, 201]]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_and_whole(workers):
    found = 0
    for keys, batch in zip(
        BATCHES, load_rows(Numbers(), BATCHES, rows=150, workers=workers), strict=True
    ):
        gold = torch.tensor(keys, dtype=torch.float32)
        assert torch.equal(batch.columns["wide"], gold[:, None, None].expand(-1, 4, 4))
        assert batch.columns["narrow"].tolist() == [-key for key in keys]
        assert batch.notes == [f"key {key}" for key in keys]
        found += 1
    assert found == len(BATCHES)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_a_batch_stays_until_the_one_after_the_next_is_asked_for(workers, rows):
    """However far the loaders are ahead: they get time to spoil what they must not."""
    batches = [[number] * rows for number in range(12)]
    before = None
    for number, batch in enumerate(load_rows(Numbers(), batches, rows=rows, workers=workers)):
        time.sleep(0.02 if workers else 0)
        assert (batch.columns["wide"] == number).all()
        if before is not None:
            assert (before == number - 1).all()
        before = batch.columns["wide"]


def test_batches_are_asked_for_as_they_are_needed():
    asked = []

    def endless():
        for number in range(10**6):
            asked.append(number)
            yield [number] * 8

    batches = load_rows(Numbers(), endless(), rows=8, workers=2)
    for _ in range(5):
        next(batches)
    batches.close()
    assert len(asked) < 20


def test_a_batch_larger_than_said_is_refused():
    with pytest.raises(ValueError, match="a batch of 3 in a ring for 2"):
        list(load_rows(Numbers(), [[1, 2, 3]], rows=2, workers=0))


class Items:
    """Whatever a key stands for."""

    def __init__(self, returns):
        self.returns = returns

    def __getitem__(self, key):
        return self.returns(key)


def ragged(key):
    return {"tensor": torch.full((key, 2), float(key)), "mask": torch.arange(key) > 1, "key": key}


@pytest.mark.parametrize("workers", [0, 2])
def test_items_of_any_shape_travel_by_value(workers):
    for keys, items in zip(
        BATCHES, load_batches(Items(ragged), BATCHES, workers=workers), strict=True
    ):
        assert [item["key"] for item in items] == keys
        for item, key in zip(items, keys, strict=True):
            assert torch.equal(item["tensor"], torch.full((key, 2), float(key)))
            assert item["tensor"].dtype == torch.float32
            assert torch.equal(item["mask"], torch.arange(key) > 1)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_a_batch_of_2048_takes_few_descriptors_and_none_of_dev_shm():
    pictures = Items(lambda key: torch.full((3, 8, 8), key % 256, dtype=torch.uint8))
    before, most = descriptors(), 0
    shared = set(os.listdir("/dev/shm"))
    batches = [range(first, first + 2048) for first in (0, 2048, 4096)]
    for images in load_images(
        pictures, batches, size=8, rows=2048, workers=4, device=torch.device("cpu")
    ):
        assert images.shape == (2048, 3, 8, 8)
        most = max(most, descriptors() - before)
        assert set(os.listdir("/dev/shm")) <= shared
    assert most < 24  # two a process, one for the ring, and what Python itself opens
    del images  # it keeps the ring's memory
    assert descriptors() <= before


def fails(error):
    def act(_key):
        raise error

    return Items(act)


class Local(Exception):
    """Takes two arguments and so cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            UserError("a bad thing", "a rule", "a remedy"),
            UserError,
            "a bad thing; a rule; a remedy",
        ),
        (OSError(errno.EMFILE, "Too many open files"), RunFailed, "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), RunFailed, "data.workers"),
        (MemoryError(), RunFailed, "data.workers"),
        (Local("of no", "known kind"), RuntimeError, "of no known kind"),
        (KeyboardInterrupt(), RuntimeError, "KeyboardInterrupt"),
        (SystemExit(7), RuntimeError, "SystemExit"),
    ],
)
def test_an_error_in_a_loader_process_comes_back(error, kind, says):
    with pytest.raises(kind, match=says) as caught:
        list(load_batches(fails(error), [[1], [2], [3]], workers=2))
    if kind is not RuntimeError:
        assert "\n" not in str(caught.value)


def test_what_cannot_be_handed_over_is_an_error_too():
    with pytest.raises(RuntimeError, match=r"pickle"):
        list(load_batches(Items(lambda _key: lambda: None), [[1], [2]], workers=1))


def test_a_loader_process_that_is_killed_is_named():
    def act(_key):
        os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"killed by signal 9 \(SIGKILL\).*data\.workers"):
        list(load_batches(Items(act), [[1], [2]], workers=2))
    assert time.monotonic() - started < 30


def test_a_loader_process_that_stops_answering_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE", 1.0)
    stop = Items(lambda _key: os.kill(os.getpid(), signal.SIGSTOP))
    with pytest.raises(RunFailed, match="has not answered for 1 seconds"):
        list(load_batches(stop, [[1], [2]], workers=1))


class TwoParts(UserError):
    """Cannot be unpickled: it is made from two values and has one argument."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_handed_over_keeps_its_text_and_status():
    with pytest.raises(SerError, match="this and that") as caught:
        list(load_batches(fails(TwoParts("this", "that")), [[1]], workers=1))
    assert caught.value.exit_status == 2


def test_signals_are_the_training_processs_to_handle():
    """SIGTERM to the whole group must leave loaders alive until the run has been saved."""

    def act(_key):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return "alive"

    assert list(load_batches(Items(act), [[1], [2]], workers=2)) == [["alive"], ["alive"]]


@pytest.mark.parametrize("ends", ["exhausted", "left", "failed"])
def test_no_process_is_left_behind(ends):
    pool_pids = []
    original = InProcesses._start

    def noting(self, work):
        original(self, work)
        pool_pids.append(self._processes[-1].pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcesses, "_start", noting)
        dataset = fails(UserError("x")) if ends == "failed" else Items(ragged)
        loaded = load_batches(dataset, [[1], [2], [3]], workers=2)
        if ends == "exhausted":
            list(loaded)
        elif ends == "left":
            next(loaded)
            loaded.close()
        else:
            with pytest.raises(UserError):
                next(loaded)
    assert len(pool_pids) == 2
    for pid in pool_pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


SCRIPT = """
import multiprocessing, os, sys
import torch
sys.path.insert(0, {root!r})
from tests.support.numbers import Numbers
from sercli.data.loading import load_rows
if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    batches = load_rows(Numbers(), [[1, 2], [3]], rows=2, workers=2)
    found = [batch.columns["narrow"].tolist() for batch in batches]
    assert found == [[-1, -2], [-3]], found
    print("right")
"""


@pytest.mark.run
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_other_ways_to_start_processes(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), method=method))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stderr


@pytest.mark.run
@pytest.mark.parametrize("busy", [False, True])
def test_loaders_end_with_a_parent_that_is_killed(tmp_path, busy):
    """Also where they wait for a disk that never answers, as a FIFO nobody writes to."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            import torch
            from sercli.data.workers import InProcesses
            pool = InProcesses(lambda path: open(path).read(), 3)
            for _ in range(3 * BUSY):
                pool.submit("FIFO")
            time.sleep(0.5)
            print(*(process.pid for process in pool._processes), flush=True)
            time.sleep(60)
            """
        )
        .replace("BUSY", str(int(busy)))
        .replace("FIFO", str(fifo))
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_ring_is_one_memory_for_all_who_map_it():
    ring = Ring({"a": Column((2,), "int64"), "b": Column((), "uint8")}, rows=3, slots=2)
    ring.slot(1)["a"][...] = 7
    ring.slot(0)["b"][...] = 9
    assert ring.slot(1)["a"].shape == (3, 2)
    assert (ring.slot(1)["a"] == 7).all()
    assert (ring.slot(0)["a"] == 0).all()
    assert (ring.slot(0)["b"] == 9).all()
    assert (ring.slot(1)["b"] == 0).all()


def test_no_descriptor_left_says_which_limit():
    said = str(exhausted(OSError(errno.EMFILE, "x"), "reading images"))
    assert said.startswith("reading images: this process may open ")
    assert "ulimit -n" in said
    assert exhausted(OSError(errno.ENOENT, "x"), "reading images") is None
    assert exhausted(ValueError("x"), "reading images") is None
    assert exhausted(RuntimeError("x"), "reading images") is None


def test_an_image_is_not_blamed_for_a_lack_of_descriptors(monkeypatch, tmp_path):
    from sercli.data.images.decode import read_rgb

    def no_descriptor(*_given, **_named):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", no_descriptor)
    with pytest.raises(RunFailed, match="ulimit -n"):
        read_rgb(str(tmp_path / "x.png"), called="x.png")


def test_an_end_of_file_is_no_interruption(monkeypatch, capsys):
    """typer takes EOFError for Ctrl-C; from a broken pipe it is a bug like any other."""

    def broken():
        raise EOFError("a pipe closed")

    for command in cli.app.registered_commands:
        if command.name == "knn":
            monkeypatch.setattr(command, "callback", broken)
    with pytest.raises(EOFError, match="a pipe closed"):
        run_in_process(["knn"], monkeypatch, capsys)


def test_evaluation_batches_are_the_sets_images():
    source = ShapesSource("val", image_size=16, num_images=10, seed=0)
    found = [
        torch.cat(
            list(
                evaluation_batches(
                    source,
                    image_size=16,
                    indices=[3, 1, 4, 1, 5, 9, 2],
                    batch_size=batch_size,
                    mean=(0.5, 0.4, 0.3),
                    std=(0.2, 0.2, 0.1),
                    device=torch.device("cpu"),
                    workers=workers,
                )
            )
        )
        for batch_size, workers in ((3, 0), (7, 2), (2, 1))
    ]
    assert found[0].shape == (7, 3, 16, 16)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(found[0][1], found[0][3])

"""Standard output and error that are full, closed or gone: nothing raises, and who asks is told."""

import errno
import io
import os
import subprocess
import sys

import pytest

from sercli import streams
from sercli.cli import _MAKE_FILES, app
from tests.support.command_line import run_in_process
from tests.support.training import SER

FULL = "/dev/full"


def shell(script, *words, unbuffered=""):
    """Exit status and standard error of Python code that may print what it likes after install."""
    code = f"import os, sys\nfrom sercli import streams\nstreams.install()\n{script}"
    # Without the descriptors that a test runner replaced.
    ran = subprocess.run(
        ["sh", "-c", f'"$0" -S -c "$1" {" ".join(words)}', sys.executable, code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUNBUFFERED": unbuffered,
        },
    )
    return ran.returncode, ran.stdout, ran.stderr


MUCH = "for _ in range(9): print('x' * 9999); print('y' * 9999, file=sys.stderr)\n"
TELL = "os.write({}, repr(streams.lost()).encode())"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("where", "number"),
    [(f">{FULL}", errno.ENOSPC), ("</dev/null 1</dev/null", errno.EBADF)],
)
def test_output_that_cannot_be_written_is_lost_quietly(where, number, unbuffered):
    script = MUCH + "print('last', file=sys.stderr); os.write(2, repr(streams.lost()).encode())"
    code, _, errors = shell(script, where, unbuffered=unbuffered)
    assert (code, "last\n" in errors) == (0, True)
    assert errors.endswith(repr(OSError(number, os.strerror(number))))


def test_standard_error_goes_quiet_alike_and_output_does_not():
    code, output, _ = shell(MUCH + TELL.format(1), f"2>{FULL}")
    assert code == 0
    assert output.count("x" * 9999) == 9
    assert output.endswith("None")


def test_a_reader_that_has_had_enough_is_no_loss():
    script = MUCH * 9 + TELL.format(2)
    code, _, errors = shell(script, "| head -c 1 >/dev/null")
    assert code == 0
    assert errors.endswith("None")


def test_closed_streams_are_not_given_to_the_next_file():
    """A checkpoint that happens to be descriptor 2 would be what libraries write warnings to."""
    script = (
        MUCH
        + "print('x', flush=True); f = open(os.devnull); n = f.fileno()\n"
        + "os._exit(10 * n + (streams.lost() is None))"
    )
    code, _, _ = shell(script, ">&-", "2>&-", "<&-")
    assert code == 31


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_does_not_block_is_waited_for(unbuffered):
    script = "os.set_blocking(1, False)\n" + MUCH * 9
    code, output, _ = shell(script, "| (sleep 0.3; cat)", unbuffered=unbuffered)
    assert code == 0
    assert output.count("x" * 9999) == 81


def test_a_stream_that_somebody_replaced_is_left_alone(monkeypatch):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    monkeypatch.setattr(sys, "stderr", mine)
    streams.install()
    assert sys.stdout is sys.stderr is mine


@pytest.mark.parametrize("words", [["recipe", "show", "shapes/moco-ser"], ["--help"]])
def test_a_command_whose_product_is_its_output_fails_where_that_is_full(words):
    code, _, errors = shell(
        f"from sercli import cli; sys.argv[1:] = {words}; cli.main()", f">{FULL}"
    )
    assert (code, len(errors.splitlines())) == (3, 1)
    assert "No space left on device" in errors


class Full(io.RawIOBase):
    """What `streams._Unfailing` is on a full disk."""

    def writable(self):
        return True

    def write(self, data):
        streams._lost = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_training_does_not_end_because_its_output_is_full(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(streams, "_lost", None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full())))
    settings = (*SER, "train.monitor_epochs=0", "train.max_steps=1")
    words = ["pretrain", "--out", tmp_path / "run", *(w for s in settings for w in ("--set", s))]
    status, _ = run_in_process(words, monkeypatch, capsys)
    assert status == 0
    assert streams.lost() is not None
    assert (tmp_path / "run" / "encoder.safetensors").is_file()


def test_the_commands_that_make_files_are_commands():
    assert {command.name for command in app.registered_commands} >= _MAKE_FILES

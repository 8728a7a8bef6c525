"""`ser` as typed: in a process of its own, or in this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sercli import cli
from tests.support.signals import handled


def ser(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sercli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


def run_in_process(arguments, monkeypatch, capsys) -> tuple[int, str]:
    """Exit status and standard error of `ser ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["ser", *map(str, arguments)])
    with handled(lambda: None), pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err

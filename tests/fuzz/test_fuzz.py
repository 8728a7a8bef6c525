"""No file of ours ends in anything but our own errors, whatever it holds (`run.py` says how)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuzz import run
from tests.support.paths import ROOT

FEW = 150
SECONDS = 10


@pytest.mark.parametrize("name", run.targets())
def test_a_few_inputs_are_read_or_refused(name):
    outcome = run.try_inputs(name, count=FEW)
    assert outcome.faults == {}
    assert outcome.accepted
    # Bad lines, and bad runs below a folder, are passed over.
    assert outcome.refused or name in ("metrics_rows", "run_folder")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", run.targets())
def test_ten_seconds_of_inputs(name):
    seed = os.environ.get("SER_FUZZ_SEED", "1")
    command = [sys.executable, "tests/fuzz/run.py", name, "--seed", seed, "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

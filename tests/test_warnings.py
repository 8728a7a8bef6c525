"""Warnings: of our own calls an error in tests, of libraries a line for the user, or nothing."""

import subprocess
import sys

import pytest

from tests.support.processes import run_ranks

OURS = """
import warnings
warnings.warn_explicit("soon gone", {category}, "distributed.py", 7, module="sercli.distributed")
"""
CATEGORIES = ["DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "UserWarning"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_warning_of_a_call_of_ours_fails_a_test(category):
    with pytest.raises(Warning, match="soon gone"):
        exec(OURS.format(category=category))
    child = subprocess.run(
        [sys.executable, "-c", OURS.format(category=category)], capture_output=True, check=False
    )
    assert child.returncode == 1
    assert b"soon gone" in child.stderr


def rank_that_is_warned(_rank):
    exec(OURS.format(category="FutureWarning"))


def test_it_fails_one_with_several_processes():
    with pytest.raises(Exception, match="soon gone"):
        run_ranks(rank_that_is_warned, count=1)


@pytest.mark.parametrize(
    ("category", "shown"),
    [
        (UserWarning, "warning: a long   story (UserWarning, theirs.py:7)\n"),
        (RuntimeWarning, "warning: a long   story (RuntimeWarning, theirs.py:7)\n"),
        (FutureWarning, ""),
        (DeprecationWarning, ""),
    ],
)
def test_a_library_warns_in_one_line_at_most(category, shown):
    code = f"""
import sys, warnings
from sercli import cli

def app(*arguments, **more):
    warnings.warn_explicit("a\\n  long   story", {category.__name__}, "/lib/theirs.py", 7)

cli.app = app
cli.main()
"""
    run = [sys.executable, "-c", code, "knn", "x"]
    child = subprocess.run(run, capture_output=True, text=True, check=True)
    assert child.stderr == shown
    if category is FutureWarning:
        asked = [sys.executable, "-W", "default", *run[1:]]
        child = subprocess.run(asked, capture_output=True, text=True, check=True)
        assert child.stderr == "warning: a long   story (FutureWarning, theirs.py:7)\n"
        child = subprocess.run([*run, "--debug"], capture_output=True, text=True, check=True)
        assert child.stderr.startswith("/lib/theirs.py:7: FutureWarning: a\n")

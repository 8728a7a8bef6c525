"""The storm of signals in small: `tests/support/signal_storm.py`, at moments that are known."""

import signal

import pytest

from tests.support.signal_storm import Blow, faults_of, references

pytestmark = pytest.mark.run

BLOWS = [
    Blow(signal.SIGTERM, "step", nproc=1, workers=2),
    Blow(signal.SIGHUP, "save", nproc=1, again=signal.SIGINT),
    Blow(signal.SIGKILL, "save", nproc=1),
    Blow(signal.SIGUSR1, "step", nproc=2, workers=1),
    Blow(signal.SIGKILL, "step", nproc=2, group=False),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run by the number of processes."""
    return {n: run for n, (run, _) in references(tmp_path_factory.mktemp("whole"), (1, 2)).items()}


@pytest.mark.parametrize("blow", BLOWS, ids=str)
def test_the_rule_holds_and_what_goes_on_is_bit_equal(tmp_path, undisturbed, blow):
    struck, faults, log = faults_of(blow, tmp_path, undisturbed[blow.nproc])
    assert struck, log
    assert not faults, log

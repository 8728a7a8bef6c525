"""TensorBoard's logs of a run that was stopped and goes on."""

import pytest

from sercli.engine.tracking import Tracker
from sercli.runs.run_dir import RunDir


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(e.step, e.value) for e in EventAccumulator(str(run.tensorboard)).Reload().Scalars("x")]


@pytest.mark.parametrize("step", [0, 3, 5])
def test_what_comes_after_the_checkpoint_is_dropped_when_a_run_goes_on(tmp_path, step):
    """A run logs beyond its last checkpoint, is killed, and does those steps again."""
    pytest.importorskip("tensorboard")
    run = RunDir.create(tmp_path / "run", recipe=None, run={"status": "running"})
    for first, last, value in ((0, 5, 1.0), (step, 7, 2.0)):
        tracker = Tracker(run, wanted=True, first_step=first)
        for number in range(first + 1, last + 1):
            tracker.row({"step": number, "x": value})
        tracker.close()
    expected = [(number, 1.0 if number <= step else 2.0) for number in range(1, 8)]
    assert scalars(run) == expected

"""`ser pretrain --profile`: where a step goes, without changing where the run goes."""

import gzip
import json
import os
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from sercli.engine import pretraining
from sercli.engine.profiling import WARMUP, Line, StepProfile, profiled, summary
from sercli.engine.stepper import FIRST_STEPS
from sercli.parts import STEP_PARTS, step_part
from tests.support.training import losses, no_monitor, start, train

STEPS = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with a profile and without, and what the former said."""
    place = tmp_path_factory.mktemp("profiled")
    cpu, before = torch.device("cpu"), dict(os.environ)
    plain, looked_at = start(place / "plain"), start(place / "profiled")
    train(plain)
    pretraining.train(looked_at, device=cpu, make_monitor=no_monitor, profile_steps=STEPS)
    os.environ.pop("KINETO_LOG_LEVEL", None)
    os.environ.update(before)
    return plain, looked_at


def test_a_profile_changes_no_number(runs):
    plain, looked_at = runs
    assert losses(plain) == losses(looked_at)
    assert plain.encoder.read_bytes() == looked_at.encoder.read_bytes()
    assert not plain.trace.exists()


def test_the_trace_has_every_part_of_every_step(runs):
    events = json.loads(gzip.decompress(runs[1].trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    for part in STEP_PARTS:
        assert names.count(f"ser: {part}") == STEPS, part
    assert sum(name.startswith("ProfilerStep") for name in names) == STEPS


def test_parts_cost_nothing_without_a_profile():
    with torch.profiler.profile() as found, step_part("views"):
        torch.ones(1)
    assert "ser: views" not in {event.key for event in found.key_averages()}


def event(key, total, own, count, device=0.0, device_type=DeviceType.CPU):
    return SimpleNamespace(
        key=key, cpu_time_total=1e3 * total, self_cpu_time_total=1e3 * own, count=count,
        self_device_time_total=1e3 * device, device_type=device_type,
    )  # fmt: skip


def test_parts_and_the_rest_are_the_whole_step():
    events = [
        event("ProfilerStep*", 400, 10, 4),
        event("ser: views", 40, 5, 4),
        event("ser: backward", 200, 3, 4),
        event("aten::mm", 120, 120, 8),
        event("aten::linear", 130, 10, 4),
    ]
    found = summary(events, 4)
    assert found.step_ms == 100
    ms = {line.name: line.host_ms for line in found.parts}
    assert (ms["views"], ms["backward"], ms["losses"]) == (10, 50, 0)
    assert sum(ms.values()) == pytest.approx(100)
    assert found.operators == [Line("aten::mm", 30, 0, 2), Line("aten::linear", 2.5, 0, 1)]


def test_operators_of_a_device_come_by_its_time_and_lines_fit():
    events = [
        event("ProfilerStep*", 40, 10, 4),
        event("aten::slow_to_launch", 8, 8, 4, device=1),
        event("aten::" + 40 * "x", 1, 1, 4, device=20),
        event("void at::native::kernel", 0, 0, 4, device=20, device_type=DeviceType.CUDA),
        event("ser: views", 0, 0, 4, device=7, device_type=DeviceType.CUDA),
    ]
    found = summary(events, 4)
    lines = found.lines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-2].split()[-3:] == ["5.00", "50.0", "1"]
    assert "on the device" in "\n".join(lines)
    assert found.busy_ms == 21 / 4
    assert "kernel" not in "\n".join(lines)


def test_a_run_that_is_too_short_says_so(tmp_path):
    said = []
    run = SimpleNamespace(trace=tmp_path / "trace.json.gz")
    with profiled(run, torch.device("cpu"), 3, said.append) as after_step:
        for _ in range(FIRST_STEPS + WARMUP):
            after_step()
    assert said == ["no profile: the run ended before 8 steps were done"]
    assert not run.trace.exists()
    assert isinstance(summary([event("ProfilerStep#1", 1, 1, 1)], 1), StepProfile)

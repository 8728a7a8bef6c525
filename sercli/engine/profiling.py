"""Where a step of pretraining goes: a trace of a few steps in the run directory, and a table."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from sercli.engine.stepper import FIRST_STEPS
from sercli.parts import STEP_PARTS, recorded
from sercli.runs.files import replacing_file
from sercli.runs.run_dir import RunDir
from sercli.visible import counted

WARMUP = 2  # steps that the profiler runs in before it counts
_PREFIX, _WHOLE = "ser: ", "ProfilerStep"
_MOST_OPERATORS = 12
_NAME = 38  # columns


@dataclass(frozen=True)
class Line:
    """One line of the table, milliseconds a step.

    Attributes:
        name: A part of the step, or an operator.
        host_ms: Of the process; of an operator without what it calls.
        device_ms: Of the device; 0 on a CPU.
        calls: A step.
    """

    name: str
    host_ms: float
    device_ms: float
    calls: float


@dataclass(frozen=True)
class StepProfile:
    """What was found.

    Attributes:
        steps: How many were looked at.
        step_ms: Of one, by the host's clock.
        parts: In the order of a step; what is none of them comes last.
        operators: Those that take most, of the device where it is CUDA.
        busy_ms: Of the device, a step; 0 on a CPU.
    """

    steps: int
    step_ms: float
    parts: Sequence[Line]
    operators: Sequence[Line]
    busy_ms: float

    def lines(self) -> list[str]:
        """The table, for people; within 80 columns."""
        device = self.busy_ms > 0
        title = f"where a step of {self.step_ms:.1f} ms goes (mean of {self.steps})"
        found = [f"{title:<{_NAME}} {'ms':>9} {'%':>6}"]
        found += [self._line(line.name, line.host_ms) for line in self.parts]
        what = "operators by time on the device" if device else "operators by their own time"
        if device:  # the process only launches what it computes, and waits for it where it must
            found.append(self._line("the device computes meanwhile", self.busy_ms))
        found += ["", f"{what:<{_NAME}} {'ms':>9} {'%':>6} {'calls':>7}"]
        for line in self.operators:
            milliseconds = line.device_ms if device else line.host_ms
            found.append(f"{self._line(line.name, milliseconds)} {line.calls:7.0f}")
        return found

    def _line(self, name: str, milliseconds: float) -> str:
        short = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
        share = 100 * milliseconds / max(1e-9, self.step_ms)
        return f"{short:<{_NAME}} {milliseconds:9.2f} {share:6.1f}"


@contextmanager
def profiled(
    run: RunDir, device: torch.device, steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Look at a few steps after the first ones; write their trace and say where they go.

    It changes no number of the run, only its speed while it lasts.

    Args:
        run: Takes the trace, for chrome://tracing or https://ui.perfetto.dev.
        device: Where steps run.
        steps: How many are looked at; 0: none, and nothing is done.
        say: Shows a line.

    Yields:
        What is called after every step.
    """
    if not steps:
        yield lambda: None
        return
    found: list[StepProfile] = []
    done = 0
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines are no news to a user

    def ready(made: Any) -> None:
        looked_at = done - FIRST_STEPS - WARMUP
        if looked_at < 1:  # the run ended while the profiler warmed up
            return
        with replacing_file(run.trace) as draft, gzip.open(draft, "wb") as file:
            plain = draft.with_name("trace.json")
            made.export_chrome_trace(str(plain))
            with plain.open("rb") as text:
                shutil.copyfileobj(text, file)
        found.append(summary(made.key_averages(), looked_at))
        for line in (*found[-1].lines(), f"trace: {run.trace}"):
            say(line)

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda" and ProfilerActivity.CUDA in torch.profiler.supported_activities():
        activities.append(ProfilerActivity.CUDA)
    with ExitStack() as stack:
        stack.enter_context(recorded(lambda name: record_function(f"{_PREFIX}{name}")))
        looking = stack.enter_context(
            profile(
                activities=activities,
                schedule=schedule(wait=FIRST_STEPS, warmup=WARMUP, active=steps, repeat=1),
                on_trace_ready=ready,
            )
        )

        def after_step() -> None:
            nonlocal done
            done += 1
            looking.step()

        yield after_step
    if not found:
        least = FIRST_STEPS + WARMUP + steps
        say(f"no profile: the run ended before {counted(least, 'step')} were done")


def summary(events: Any, steps: int) -> StepProfile:
    """From the profiler's averages.

    Args:
        events: `torch.profiler`'s key averages of so many steps. Kernels are there twice: by
            themselves, and as the device's time of the operator that launched them.
        steps: Looked at.
    """
    lines: dict[str, Line] = {}
    own: list[Line] = []
    for event in events:
        if event.device_type.name != "CPU":
            continue
        device_ms, calls = event.self_device_time_total / 1e3 / steps, event.count / steps
        if event.key.startswith((_PREFIX, _WHOLE)):
            name = event.key.partition("#")[0]
            lines[name] = Line(name, event.cpu_time_total / 1e3 / steps, device_ms, calls)
        else:
            own.append(Line(event.key, event.self_cpu_time_total / 1e3 / steps, device_ms, calls))
    whole = lines[_WHOLE].host_ms if _WHOLE in lines else lines[f"{_WHOLE}*"].host_ms
    nothing = Line("", 0.0, 0.0, 0.0)
    parts = [replace(lines.get(f"{_PREFIX}{name}", nothing), name=name) for name in STEP_PARTS]
    rest = whole - sum(line.host_ms for line in parts)
    parts.append(Line("the rest: logging, saving, stops", max(0.0, rest), 0.0, 1.0))
    own.sort(key=lambda line: (line.device_ms, line.host_ms), reverse=True)
    busy = sum(line.device_ms for line in own)
    return StepProfile(steps, whole, parts, own[:_MOST_OPERATORS], busy)

"""Runs a fuzz target: `python tests/fuzz/run.py TARGET… [--inputs N | --seconds S] [--seed N]`.

A target is a file beside this one with

    corpus() -> list[bytes]         what is right, and what once was wrong
    target(data: bytes) -> None     reads it; may raise `SerError` and nothing else

and, if `tests.support.mutations.changed` does not suit, `changed(data, others, random) -> bytes`.
Input i of a seed is always the same: `--only i` runs it alone and `--show` prints it. A fault is
another exception, an input that takes more than 5 s (of computing, or 30 of waiting), more than
1 GB above the start, or the end of the process. The inputs run in a process of their own, which is
ended if it stands still and started again behind the input that it stood at.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # this folder holds `features.py`, `coco.py`…: no names to import
    sys.path[0] = str(HERE.parents[1])

from sercli.errors import SerError  # noqa: E402
from tests.support import fuzzing, mutations  # noqa: E402

SECONDS = 5.0
BYTES = 1 << 30
_SHOWN = 5
_POLL = 0.05
_STARVED = 6  # times as long on the wall is a fault, too: what waits for something computes nothing


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(
        file.stem
        for file in HERE.glob("*.py")
        if file.stem != "run" and not file.stem.startswith(("test_", "_"))
    )


def load(name: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(f"tests.fuzz.{name}")


class Inputs:
    """The inputs of a target: first its corpus, then what is made of it.

    Args:
        module: The target.
        seed: Of all that is random.
    """

    def __init__(self, module: ModuleType, seed: int) -> None:
        self.corpus: list[bytes] = module.corpus()
        self.changed = getattr(module, "changed", mutations.changed)
        self.name, self.seed = module.__name__, seed

    def __getitem__(self, index: int) -> bytes:
        if index < len(self.corpus):
            return self.corpus[index]
        random = Random(f"{self.name} {self.seed} {index}")
        data = random.choice(self.corpus)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            data = self.changed(data, self.corpus, random)
        return data


@dataclass
class Outcome:
    """What a number of inputs came to.

    Attributes:
        accepted, refused: How many.
        faults: Input → what went wrong.
        reasons: How a refusal began → how often.
        slowest: Seconds.
        growth: Bytes above the start.
    """

    accepted: int = 0
    refused: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    growth: int = 0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.faults)


def try_input(module: ModuleType, data: bytes) -> SerError | None:
    """What the target says of one input; anything but a `SerError` passes through.

    A refusal is one line that can be encoded.
    """
    try:
        module.target(data)
    except SerError as error:
        text = str(error)
        assert len(text) < 20_000, f"a message of {len(text)} characters"
        return error
    return None


def try_inputs(name: str, *, count: int, seed: int = 0) -> Outcome:
    """The first inputs of a seed, in this process, without the watch over time and memory."""
    module, outcome = load(name), Outcome()
    inputs = Inputs(module, seed)
    for index in range(count):
        _try(module, inputs, index, outcome)
    return outcome


def _try(module: ModuleType, inputs: Inputs, index: int, outcome: Outcome) -> None:
    start = time.monotonic()
    try:
        error = try_input(module, inputs[index])
    except Exception as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        text = f"{type(fault).__name__}: {fault}".splitlines()[0][:200]
        outcome.faults[index] = f"{text} ({Path(where.filename).name}:{where.lineno})"
        return
    finally:
        outcome.slowest = max(outcome.slowest, time.monotonic() - start)
    if error is None:
        outcome.accepted += 1
    else:
        outcome.refused += 1
        outcome.reasons[type(error).__name__] += 1


def watched(name: str, *, seed: int, count: int | None, seconds: float | None) -> Outcome:
    """Inputs in a process of their own, until so many are tried or so much time is over."""
    module, outcome = load(name), Outcome()
    inputs, end = Inputs(module, seed), time.monotonic() + (seconds or 1e9)
    board = mmap.mmap(-1, 16)  # which input is being tried, and how many bytes it has grown by
    fuzzing.folder()  # of this process, which is here to remove it
    index = 0
    while index < (count or sys.maxsize) and time.monotonic() < end:
        with tempfile.TemporaryFile("w+") as lines:  # a pipe holds no more than 64 KiB
            child = os.fork()
            if child == 0:
                rest = range(index, count or sys.maxsize)
                _child(module, inputs, rest, end, board, os.dup(lines.fileno()))
            stopped = _watch(child, board)
            lines.seek(0)
            done = lines.read()
        index = int.from_bytes(board[:8], "little")
        _merge(outcome, done)
        outcome.growth = max(outcome.growth, int.from_bytes(board[8:16], "little"))
        if stopped is None:
            break
        outcome.faults[index] = stopped
        index += 1
    return outcome


def _child(
    module: ModuleType,
    inputs: Inputs,
    indices: range,
    end: float,
    board: mmap.mmap,
    writer: int,
) -> None:
    """Try inputs one by one; the counts are written when all is done, or after every thousand."""
    status = 1
    try:
        outcome, before = Outcome(), _resident()
        with os.fdopen(writer, "w") as file:
            for index in indices:
                board[:8] = index.to_bytes(8, "little")
                if time.monotonic() >= end:
                    break
                _try(module, inputs, index, outcome)
                growth = max(0, _resident() - before)
                board[8:16] = growth.to_bytes(8, "little")
                if growth > BYTES:
                    outcome.faults[index] = f"{growth >> 20} MiB above the start"
                    before += growth
                file.write(
                    "".join(f"fault\t{i}\t{text}\n" for i, text in outcome.faults.items())
                    + f"counts\t{outcome.accepted}\t{outcome.refused}\t{outcome.slowest}\n"
                )
                file.flush()
                slowest = outcome.slowest
                outcome = Outcome(slowest=slowest)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _merge(outcome: Outcome, lines: str) -> None:
    for line in lines.splitlines():
        kind, *values = line.split("\t")
        if kind == "fault":
            outcome.faults[int(values[0])] = "\t".join(values[1:])
        else:
            outcome.accepted += int(values[0])
            outcome.refused += int(values[1])
            outcome.slowest = max(outcome.slowest, float(values[2]))


def _watch(child: int, board: mmap.mmap) -> str | None:
    """Wait for a child; end it if one input takes too long. Says how it ended, if not well."""
    last, since, cpu = board[:8], time.monotonic(), _cpu_seconds(child)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else f"the process ended with {code}"
        now = time.monotonic()
        if board[:8] != last:
            last, since, cpu = board[:8], now, _cpu_seconds(child)
        elif now - since > _STARVED * SECONDS or _cpu_seconds(child) - cpu > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"more than {SECONDS:g} s"
        time.sleep(_POLL)


def _cpu_seconds(process: int) -> float:
    """What a process has computed: on a busy machine one may wait for seconds to be let on."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no such system: time on the wall decides
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """The command line; exit status 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--inputs", type=int, help="how many")
    parser.add_argument("--seconds", type=float, help="how long (default 10, without --inputs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone, with its traceback")
    parser.add_argument("--show", action="store_true", help="with --only: print the input")
    chosen = parser.parse_args()
    seconds = chosen.seconds or (None if chosen.inputs else 10.0)
    faulty = False
    for name in chosen.targets or targets():
        if chosen.only is not None:
            module = load(name)
            data = Inputs(module, chosen.seed)[chosen.only]
            if chosen.show:
                print(data)
            print(f"{name} {chosen.only}: {try_input(module, data) or 'accepted'}")
            continue
        outcome = watched(name, seed=chosen.seed, count=chosen.inputs, seconds=seconds)
        print(
            f"{name}: {outcome.inputs} inputs, {outcome.accepted} accepted, "
            f"{outcome.refused} refused, {len(outcome.faults)} faults; slowest "
            f"{outcome.slowest:.2f} s, {outcome.growth >> 20} MiB above the start",
            flush=True,
        )
        kinds = Counter(text.rpartition(" (")[2] for text in outcome.faults.values())
        shown: Counter[str] = Counter()
        for index, text in outcome.faults.items():
            kind = text.rpartition(" (")[2]
            shown[kind] += 1
            if shown[kind] <= _SHOWN:
                print(f"  input {index} (1 of {kinds[kind]}): {text}")
        faulty |= bool(outcome.faults)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())

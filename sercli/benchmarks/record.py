"""Where benchmarks are run, and the files that hold what they found."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sercli.benchmarks.table import Table
from sercli.engine.runtime import Runtime, choose_device, describe, runtime_for
from sercli.runs.files import write_json, write_text
from sercli.runs.result import now
from sercli.visible import counted

SCHEMA = 1
Tell = Callable[[str], None]  # shows how far a measurement is


@dataclass(frozen=True)
class Machine:
    """What is measured on.

    Attributes:
        runtime: The device, and the precision of its products.
        threads: CPU threads.
    """

    runtime: Runtime
    threads: int

    @classmethod
    def of(cls, device: str, threads: int) -> Machine:
        """The machine by its options; this process has so many threads from here on.

        Raises:
            UserError: Not a device of this machine.
        """
        chosen = choose_device(device)
        torch.set_num_threads(threads)
        return cls(runtime_for(chosen, "auto"), threads)

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def title(self) -> str:
        """For the title of a table."""
        return f"{self.device}, {counted(self.threads, 'thread')}"


def record(machine: Machine, tables: Sequence[Table]) -> dict[str, Any]:
    """What a benchmark's JSON file holds: its tables, and all that their numbers depend on."""
    about = {**describe(), "threads": machine.threads}
    return {
        "schema": SCHEMA,
        "created": now(),
        "command": shlex.join(["ser", *sys.argv[1:]]),
        "device": device_name(machine.device),
        **about,
        "tables": [table.to_json() for table in tables],
    }


def device_name(device: torch.device) -> str:
    """What the device is called by its maker; of a CPU by the system, where that says it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def write(path: Path, found: dict[str, Any]) -> None:
    """The JSON file, whole or not at all."""
    write_json(path, found)


def write_page(path: Path, found: dict[str, Any], tables: Sequence[Table]) -> None:
    """The same as a page of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    head = (
        f"# Benchmarks\n\n`{found['command']}` on {found['device']}, "
        f"{counted(found['threads'], 'thread')}; {versions}; {found['created']}.\n"
        "A ratio is a median over rounds of one run, in brackets its 95 % interval.\n"
    )
    write_text(path, "\n".join([head, *(table.to_markdown() for table in tables)]))

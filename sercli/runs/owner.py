"""Whose a lease or a temporary file is, and whether that process still lives.

A process is told by its machine, its number there and when it was started: numbers are given
anew. What another machine does cannot be seen from here, nor what another container's numbers mean.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GONE = (b"Z", b"X")  # ended; its parent has not asked for its status yet
_STOPPED = (b"T", b"t")
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_LONGEST_JOB = 100  # characters


@dataclass(frozen=True)
class Owner:
    """A process, as it can be told later and elsewhere.

    Attributes:
        host: Name of its machine.
        boot: Which start of which machine, and which numbering of processes on it (a container has
            its own); empty where the system does not say.
        pid: Its number there.
        started: Clock ticks from the machine's start to the process's; 0 where it is not known.
        job: Of the cluster's queue, as people ask about it; empty without one.
    """

    host: str
    boot: str
    pid: int
    started: int
    job: str = ""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        job = next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), "")
        return cls(socket.gethostname(), boot(), pid, started_at(pid) or 0, job[:_LONGEST_JOB])

    @property
    def machine(self) -> str:
        """Its machine and numbering in eight hex digits, for names of files."""
        return hashlib.sha256((self.boot or self.host).encode()).hexdigest()[:8]

    def lives(self) -> bool | None:
        """Whether it runs; None: that cannot be seen from this process."""
        if self.boot != boot() or (not self.boot and self.host != socket.gethostname()):
            return None
        return lives(self.pid, self.started)

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def lives(pid: int, started: int) -> bool:
    """Whether the process of that number on this machine runs and is the one started then."""
    now = started_at(pid)
    if now is not None:
        return started in (0, now)
    if (_PROC / str(os.getpid())).exists() and (_PROC / str(pid)).exists():
        return False  # ended, and not asked for yet
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:  # another user's, and hidden
        return True
    return not (_PROC / str(os.getpid())).exists()  # a system without /proc


def started_at(pid: int) -> int | None:
    """Clock ticks from the machine's start to the process's; None: it does not run."""
    return _state_and_start(pid)[1]


def is_stopped(pid: int) -> bool:
    """Whether a signal, or a debugger, has stopped the process of that number."""
    return _state_and_start(pid)[0] in _STOPPED


def _state_and_start(pid: int) -> tuple[bytes, int | None]:
    """The kernel's letter for a process that runs, and its start in clock ticks, if it does."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return (b"", None) if fields[0] in _GONE else (fields[0], int(fields[19]))
    except (OSError, IndexError, ValueError):
        return b"", None


@functools.cache
def boot() -> str:
    """Which start of this machine, and which numbering of processes; empty: unknown."""
    try:
        numbering = os.stat(_PROC / "self/ns/pid").st_ino
        return f"{(_PROC / 'sys/kernel/random/boot_id').read_text().strip()}/{numbering}"
    except OSError:
        return ""


def booted_at() -> float | None:
    """When this machine was started, in seconds since 1970; None: unknown."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("btime ")))
    except (OSError, StopIteration, IndexError, ValueError):
        return None

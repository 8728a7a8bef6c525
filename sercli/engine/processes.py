"""Who started this process, and which of several it is: from the environment, without torch."""

from __future__ import annotations

import os

# Set by `ser pretrain --nproc` for its workers. Ctrl-C reaches those twice: by terminal and agent.
UNDER_AGENT = "SER_UNDER_AGENT"


def launched_by() -> str | None:
    """Who started several processes: "torchrun", "slurm", or None for a single one.

    torchrun's variables come first, also where it started one process. A batch script of several
    tasks, too, has SLURM's variables; those of a *step* are set by srun only.
    """
    if {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return "torchrun" if int(os.environ["WORLD_SIZE"]) > 1 else None
    if {"SLURM_PROCID", "SLURM_STEP_ID"} <= set(os.environ):
        return "slurm" if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None
    return None


def is_first_process() -> bool:
    """Whether this is rank 0, also before and after the process group exists."""
    variable = {"torchrun": "RANK", "slurm": "SLURM_PROCID"}
    launcher = launched_by()
    return launcher is None or os.environ[variable[launcher]] == "0"


def under_agent() -> bool:
    """Whether this process is a worker of `ser pretrain --nproc`."""
    return UNDER_AGENT in os.environ

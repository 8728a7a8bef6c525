"""Who started this process, and which of several it is: from the environment, without torch.

Launchers are told apart by what only they set: torchrun by RANK and WORLD_SIZE, srun by the
variables of a *step*, which an allocation (sbatch, salloc) has not. What is half there, or cannot
be, is refused: a process that guesses waits for others that nobody started, or writes into their
directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sercli.errors import UserError

# Set by `ser pretrain --nproc` for its workers. Ctrl-C reaches those twice: by terminal and agent.
UNDER_AGENT = "SER_UNDER_AGENT"

# How many processes launchers started whose other variables ser does not read.
_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun of Open MPI",
    "MV2_COMM_WORLD_SIZE": "mpirun of MVAPICH2",
    "MVP_COMM_WORLD_SIZE": "mpirun of MVAPICH",
    "PMI_SIZE": "mpiexec of MPICH or Intel MPI",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux run",
    "HOROVOD_SIZE": "horovodrun",
}
_FIRST_PORT, _PORTS = 15000, 15000  # below those that systems give out by themselves
# More than anybody starts: each process keeps a list of all, which a slip would let fill memory.
_MOST = 65536
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_ADDRESS = re.compile(r"(?=.*:.*:)[0-9A-Fa-f:.]{2,45}(%[\w.-]{1,32})?")  # IPv6


@dataclass(frozen=True)
class Started:
    """This process as one of several.

    Attributes:
        by: "torchrun" or "slurm".
        rank: Which of all it is.
        world_size: How many there are.
        local_rank: Which of those on this machine it is.
        ranks_here: How many there are on this machine.
        host: Where they meet: that of rank 0.
        port: Likewise.
        derived: Where host and port are from if MASTER_ADDR and MASTER_PORT do not say them.
    """

    by: str
    rank: int
    world_size: int
    local_rank: int
    ranks_here: int
    host: str
    port: int
    derived: str | None = None

    @property
    def job(self) -> str:
        """What only the processes of one start have in common."""
        names = {
            "slurm": ("SLURM_JOB_ID", "SLURM_STEP_ID"),
            "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
        }[self.by]
        return "/".join(os.environ.get(name, "-") for name in names)


def started() -> Started | None:
    """Which of several processes this is; None: it is the only one.

    torchrun's variables come first, also where it started one process. A batch script of several
    tasks, too, has SLURM's variables; those of a *step* are set by srun only.

    Raises:
        UserError: They contradict each other, or are no numbers, or another launcher started
            several processes.
    """
    given = os.environ
    both = {"RANK", "WORLD_SIZE"} & set(given)
    step = _task_of_step(given)
    if len(both) == 2:
        return _by_variables(given)
    if both:
        name = both.pop()
        # Batch scripts export WORLD_SIZE by themselves; srun says the rest.
        if not (step and name == "WORLD_SIZE" and _number(given, name, least=1) == step[1]):
            other = "WORLD_SIZE" if name == "RANK" else "RANK"
            raise UserError(
                f"{name}={given[name]} without {other}",
                "both say which of several processes this is, or neither is set",
                f"unset {name}, or start them by torchrun",
            )
    _refuse_others(given, step)
    if step is None:
        return None
    return _by_slurm(given, *step)


def launched_by() -> str | None:
    """Who started several processes: "torchrun", "slurm", or None for a single one."""
    one = started()
    return None if one is None else one.by


def is_first_process() -> bool:
    """Whether this is rank 0, also before and after the process group exists."""
    one = started()
    return one is None or one.rank == 0


def under_agent() -> bool:
    """Whether this process is a worker of `ser pretrain --nproc`."""
    return UNDER_AGENT in os.environ


def ranks_here() -> int:
    """How many processes there are on this machine."""
    one = started()
    return 1 if one is None else one.ranks_here


# -- by launcher ----------------------------------------------------------------------------------


def _by_variables(given: Mapping[str, str]) -> Started | None:
    world = _number(given, "WORLD_SIZE", least=1, most=_MOST)
    rank = _number(given, "RANK", least=0)
    local = _number(given, "LOCAL_RANK", least=0) if "LOCAL_RANK" in given else 0
    here = _number(given, "LOCAL_WORLD_SIZE", least=1) if "LOCAL_WORLD_SIZE" in given else 1
    if rank >= world:
        raise UserError(
            f"RANK={rank} with WORLD_SIZE={world}",
            f"ranks are numbered from 0 to {world - 1}",
            "unset both, or start the processes by torchrun",
        )
    if world == 1:
        return None
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not given.get(name):
            raise UserError(
                f"RANK={rank} and WORLD_SIZE={world} without {name}",
                f"{world} processes have to find each other",
                f"unset RANK and WORLD_SIZE to run alone, start them by torchrun, or set {name}",
            )
    return Started("torchrun", rank, world, local, here, _host(given), _port(given))


def _task_of_step(given: Mapping[str, str]) -> tuple[int, int] | None:
    """Rank and number of tasks of a step of several, as srun says them."""
    if not {"SLURM_PROCID", "SLURM_STEP_ID"} <= set(given):
        return None
    if "SLURM_STEP_NUM_TASKS" not in given:
        return None
    tasks = _number(given, "SLURM_STEP_NUM_TASKS", least=1, most=_MOST)
    if tasks == 1 or _inherits_step(given, tasks):
        return None
    rank = _number(given, "SLURM_PROCID", least=0)
    if rank >= tasks:
        raise UserError(
            f"SLURM_PROCID={rank} with SLURM_STEP_NUM_TASKS={tasks}",
            f"tasks are numbered from 0 to {tasks - 1}",
            "start them by srun",
        )
    return rank, tasks


def _inherits_step(given: Mapping[str, str], tasks: int) -> bool:
    """Whether this is a batch script that was submitted from within a step of `tasks`.

    Its own variables, which srun would have set to those of the step, are of the batch script: one
    task here, and as many in all as the script was given.
    """
    in_all, here = given.get("SLURM_NTASKS", ""), given.get("SLURM_GTIDS", "")
    if in_all.isdecimal() and int(in_all) != tasks:
        return True
    return bool(here) and len(here.split(",")) != _tasks_here(given, tasks)


def _by_slurm(given: Mapping[str, str], rank: int, tasks: int) -> Started:
    local = _number(given, "SLURM_LOCALID", least=0) if "SLURM_LOCALID" in given else 0
    if given.get("MASTER_ADDR") and given.get("MASTER_PORT"):
        host, port, derived = _host(given), _port(given), None
    else:
        host, why = _first_host(given)
        port = _port(given) if given.get("MASTER_PORT") else _port_of_job(given)
        derived = f"{why}, and the port of the job's number"
    return Started("slurm", rank, tasks, local, _tasks_here(given, tasks), host, port, derived)


def _refuse_others(given: Mapping[str, str], step: tuple[int, int] | None) -> None:
    """Refuse one of several processes of a launcher whose variables are not read.

    mpirun starts its daemons by srun, so its processes have the variables of that step as well;
    srun, in turn, sets PMI_SIZE where it serves MPI programs.
    """
    for name, who in _OTHERS.items():
        value = given.get(name, "")
        if not value.isdecimal() or int(value) < 2:
            continue
        if name == "PMI_SIZE" and step is not None and step[1] == int(value):
            continue
        raise UserError(
            f"{who} started {value} processes ({name}={value})",
            "ser knows those of torchrun and srun, and all of them would write into one directory",
            "start them by torchrun or srun, or export RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
            f"and MASTER_PORT; for one process: unset {name}",
        )


# -- values ---------------------------------------------------------------------------------------


def _number(given: Mapping[str, str], name: str, *, least: int, most: int | None = None) -> int:
    text = given[name]
    known = bool(re.fullmatch(r"[0-9]{1,9}", text)) and int(text) >= least
    if not known or (most is not None and int(text) > most):
        at_most = "" if most is None else f" and at most {most}"
        raise UserError(
            f"{name}={text or '(empty)'}",
            f"it must be a whole number, at least {least}{at_most}",
            f"launchers set it; otherwise unset {name}",
        )
    return int(text)


def _host(given: Mapping[str, str]) -> str:
    """MASTER_ADDR, if it can be a name: what looks it up has tracebacks or minutes for others."""
    host = given["MASTER_ADDR"]
    if not (_HOST.fullmatch(host) or _ADDRESS.fullmatch(host)):
        raise UserError(
            f"MASTER_ADDR={host}",
            "it must be a host's name or address alone, without brackets and port",
            "the port is MASTER_PORT",
        )
    return host


def _port(given: Mapping[str, str]) -> int:
    port = _number(given, "MASTER_PORT", least=1)
    if port >= 2**16:
        raise UserError(f"MASTER_PORT={port}", "ports are numbered from 1 to 65535", "try 29500")
    return port


def _first_host(given: Mapping[str, str]) -> tuple[str, str]:
    """The host of the first task, and how it is known.

    Raises:
        UserError: Nothing says it.
    """
    if given.get("MASTER_ADDR"):
        return _host(given), "MASTER_ADDR"
    nodes = given.get("SLURM_STEP_NUM_NODES") or given.get("SLURM_NNODES")
    if nodes == "1":
        return "127.0.0.1", "one node"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        first = first_of_nodes(given.get(name, ""))
        if first is not None:
            return first, f"the first of {name}"
    raise UserError(
        "srun started several tasks without MASTER_ADDR, MASTER_PORT and SLURM_STEP_NODELIST",
        "the tasks have to find each other",
        "export MASTER_ADDR=$(scontrol show hostnames | head -n 1) MASTER_PORT=29500",
    )


def first_of_nodes(nodes: str) -> str | None:
    """The first host of a list as SLURM writes it, such as `gpu[03-05,9]-ib,login`; None: none."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if name is None:
        return None
    first = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name[0]).strip()
    return first if re.fullmatch(r"[\w.:-]+", first) else None


def _port_of_job(given: Mapping[str, str]) -> int:
    """A port that two steps at the same time are unlikely to share."""
    numbers = [given.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    job, step = (int(text) if text.isdecimal() else 0 for text in numbers)
    return _FIRST_PORT + (job * 31 + step) % _PORTS


def _tasks_here(given: Mapping[str, str], tasks: int) -> int:
    """How many tasks of the step there are on this node, of a list such as `4(x2),3`."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    if not given.get(name):
        name = "SLURM_TASKS_PER_NODE"
    counts = []
    for part in given.get(name, "").split(","):
        written = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part.strip())
        if written is not None:
            counts += [int(written[1])] * int(written[2] or 1)
        elif part.strip():
            raise UserError(
                f"{name}={given[name]}",
                "it must be numbers of tasks, such as 4(x2),3",
                "srun sets it; do not export it",
            )
    node = given.get("SLURM_NODEID", "0")
    place = int(node) if node.isdecimal() else 0
    here = counts[place] if place < len(counts) else 1
    return max(1, min(here, tasks))

"""A grid for a cluster's queue: a SLURM array, a run and its evaluations a task.

Each task is `ser reproduce` of one run, so that what is done is skipped, what was stopped goes on,
and nothing else has to know how. The queue stays the scheduler's.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from sercli.grids.jobs import Plan
from sercli.runs.files import write_text
from sercli.runs.places import refuse_existing

_ARRAY = """\
#!/bin/bash
# A task is one run of the grid and its evaluations: a line of jobs.txt, beside this file.
# Look over the resources; then {submit}
#SBATCH --job-name=ser
#SBATCH --array=1-{tasks}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
command=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {jobs})
srun --ntasks=1 bash -c "$command"
status=$?
# Preempted, or out of time: all is saved, and the task goes on where it stopped.
if [ "$status" -eq 75 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""
_ONE = """\
#!/bin/bash
# {what}
#SBATCH --job-name=ser-{name}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --open-mode=append
srun --ntasks=1 bash -c {command}
"""


def write_array(folder: Path, plan: Plan, *, command: Sequence[str], nproc: int) -> list[Path]:
    """Write the scripts of an array, and the file with its tasks.

    Args:
        folder: New; it takes the files.
        plan: The jobs.
        command: What `ser` is given for all of them; `--only RUN` makes it one run's.
        nproc: Processes of a training.

    Returns:
        The scripts in the order in which they are submitted, and the file of tasks.

    Raises:
        UserError: The folder exists, or cannot be written.
    """
    refuse_existing(folder, "--write")
    folder.mkdir(parents=True)
    ser = ["ser", *command]
    runs = list(dict.fromkeys(job.directory.name for job in plan.jobs if job.run))
    files = dict.fromkeys(job.kind for job in plan.jobs if not job.run)
    jobs = folder / "jobs.txt"
    write_text(jobs, "".join(f"{shlex.join([*ser, '--only', run])}\n" for run in runs))
    first = _write_one(folder, "prepare", "Files that evaluations read.", ser, files)
    last = _write_one(folder, "report", "Tables, page and outcome.", [*ser, "--report-only"])
    scripts = [*([first] if files else []), folder / "array.sh", last]
    if not files:
        first.unlink()
    text = _ARRAY.format(
        jobs=shlex.quote(str(jobs)),
        submit=_submit(scripts),
        tasks=len(runs),
        gpus=nproc,
        cpus=8 * nproc,
    )
    write_text(folder / "array.sh", text)
    return [*scripts, jobs]


def _write_one(
    folder: Path, name: str, what: str, command: Sequence[str], only: Iterable[str] = ()
) -> Path:
    words = [*command, *(word for one in only for word in ("--only", one))]
    path = folder / f"{name}.sh"
    command_line = shlex.quote(shlex.join(words))
    write_text(path, _ONE.format(what=what, name=name, command=command_line))
    return path


def _submit(scripts: Sequence[Path]) -> str:
    """The commands that queue the scripts, each after the one before."""
    parts = []
    for number, script in enumerate(scripts):
        # The report is of what there is, also where a run failed.
        rule = "afterany" if number == len(scripts) - 1 else "afterok"
        after = f" --dependency={rule}:$job" if number else ""
        parts.append(f"job=$(sbatch --parsable{after} {shlex.quote(str(script))})")
    return " && ".join(parts)

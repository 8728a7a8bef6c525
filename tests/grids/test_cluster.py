"""A grid written for SLURM: what a queue would do with it, by stand-ins for its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sercli.errors import UserError
from sercli.grids.cluster import write_array
from sercli.grids.jobs import Plan

COMMAND = ["reproduce", "it's a grid.yaml", "--out", "some where"]


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which commands are these scripts."""
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def run(script: Path, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script)], env={**environment, **more}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_task_is_a_run_as_its_words_were_given(plan: Plan, tmp_path: Path) -> None:
    files = write_array(tmp_path / "slurm's", plan, command=COMMAND, nproc=2)
    assert [file.name for file in files] == ["prepare.sh", "array.sh", "report.sh", "jobs.txt"]
    environment = programs(tmp_path / "bin", srun='shift; exec "$@"', ser='printf "<%s>" "$@"')
    tasks = [
        run(files[1], environment, SLURM_ARRAY_TASK_ID=str(number)).stdout for number in range(1, 5)
    ]
    words = "<reproduce><it's a grid.yaml><--out><some where>"
    assert tasks == [
        f"{words}<--only><{name}>"
        for name in ("none-seed0", "ser-seed0", "none-seed1", "ser-seed1")
    ]
    assert run(files[0], environment).stdout == f"{words}<--only><world>"
    assert run(files[2], environment).stdout == f"{words}<--report-only>"
    text = files[1].read_text()
    assert "#SBATCH --array=1-4\n" in text
    assert "#SBATCH --gpus-per-task=2\n" in text


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (3, False), (75, True)])
def test_a_task_that_was_stopped_is_queued_again(
    plan: Plan, tmp_path: Path, status: int, requeued: bool
) -> None:
    (array, _, _) = write_array(tmp_path / "s", plan.only(["ser"]), command=COMMAND, nproc=1)
    environment = programs(
        tmp_path / "bin",
        srun='shift; exec "$@"',
        ser=f"exit {status}",
        scontrol=f'echo "$@" > {tmp_path}/asked',
    )
    ids = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "77"}
    assert run(array, environment, **ids).returncode == status
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 77_2\n" if requeued else "")


def test_the_head_says_how_they_are_queued(plan: Plan, tmp_path: Path) -> None:
    files = write_array(tmp_path / "slurm's", plan, command=COMMAND, nproc=1)
    submit = next(
        line.partition("then ")[2] for line in files[1].read_text().splitlines() if "then " in line
    )
    environment = programs(tmp_path / "bin", sbatch=f'echo "$@" >> {tmp_path}/queue; echo $RANDOM')
    subprocess.run(["bash", "-c", submit], env=environment, check=True)
    queue = (tmp_path / "queue").read_text().splitlines()
    assert [line.rpartition("/")[2] for line in queue] == ["prepare.sh", "array.sh", "report.sh"]
    assert ["afterok" in line for line in queue] == [False, True, False]
    assert "afterany" in queue[2]


def test_a_folder_that_is_there_is_not_written_over(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--write .* exists"):
        write_array(tmp_path, plan, command=COMMAND, nproc=1)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_scripts_have_no_usual_mistakes(plan: Plan, tmp_path: Path) -> None:
    *scripts, _ = write_array(tmp_path / "s", plan, command=COMMAND, nproc=1)
    subprocess.run(["shellcheck", *map(str, scripts)], check=True)

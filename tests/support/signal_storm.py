"""Signals and kills to `ser pretrain` at random moments, and whether the rule holds.

    python -m tests.support.signal_storm [--seed N] [--signals 30] [--kills 10]

The rule: before the run directory exists, the signal's own status or 75 (130 by SIGINT), and
nothing is left; after, 75 (130), run.json says so, and there is a checkpoint if there was a step.
No process is left. Resumed, the run is bit-equal to one that nobody disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sercli.runs.run_dir import RunDir
from tests.support.paths import ROOT
from tests.support.training import SER, losses

SETTINGS = (*SER, "train.epochs=2", "train.monitor_epochs=1", "train.checkpoint_epochs=0.25")
SOON = 60.0  # seconds, on a busy machine
WORDS = {75: "preempted", 130: "interrupted"}


@dataclass(frozen=True)
class Blow:
    """What is done to a run.

    Attributes:
        number: The signal.
        moment: Seconds after the start; "save": while a checkpoint is written; or "step": after
            the first.
        group: To all processes of the run; False: to the one that was started.
        nproc: `--nproc`.
        workers: Loader processes of each.
        again: A second signal, right behind the first.
    """

    number: int
    moment: float | str
    group: bool = True
    nproc: int = 1
    workers: int = 0
    again: int | None = None


def command(run, *, nproc, workers, resume=False):
    words = [sys.executable, "-m", "sercli", "pretrain", "--nproc", str(nproc)]
    if resume:
        return [*words, "--resume", str(run)]
    settings = (*SETTINGS, f"data.workers={workers}")
    return [*words, "--out", str(run), "--recipe", "shapes/moco-ser",
            *(word for setting in settings for word in ("--set", setting))]  # fmt: skip


def start(run, *, log, nproc=1, workers=0, resume=False):
    """A command in a session of its own."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as file:
        return subprocess.Popen(
            command(run, nproc=nproc, workers=workers, resume=resume),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **variables},
        )


def session(leader):
    """The processes of a session that are no zombies."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry))
    return found


def wait_for(condition, seconds=SOON):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def strike(process, blow, run):
    """Send the signal when its moment has come; whether the command was still there."""
    if blow.moment == "save":
        saving = run / "checkpoints"
        wait_for(lambda: process.poll() is not None or any(saving.glob(".step-*")))
    elif blow.moment == "step":
        wait_for(lambda: process.poll() is not None or (run / "metrics.jsonl").exists())
    else:
        wait_for(lambda: process.poll() is not None, blow.moment)
    if process.poll() is not None:
        return False
    send = os.killpg if blow.group else os.kill
    for number in filter(None, (blow.number, blow.again)):
        try:
            send(process.pid, number)
        except ProcessLookupError:
            break
    return True


def finish(process):
    """The exit status, and what is left of its session a while later, which is then killed."""
    try:
        status = process.wait(4 * SOON)
    except subprocess.TimeoutExpired:
        status = None
    wait_for(lambda: not session(process.pid), SOON / 2)
    left = session(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return status, left


def faults_of_end(blow, status, left, run):
    """What of the rule does not hold where the command has ended."""
    faults = [f"{len(left)} processes are left"] if left else []
    wanted = 130 if signal.SIGINT in (blow.number, blow.again) else 75
    wanted = -signal.SIGKILL if blow.number == signal.SIGKILL else wanted
    drafts = [path.name for path in run.parent.iterdir() if path.name.startswith(f".{run.name}")]
    killed = blow.number == signal.SIGKILL
    if drafts and not killed:
        faults.append(f"{drafts} are left")
    if not run.exists():
        if status not in (wanted, 75, -blow.number, -(blow.again or 1)):
            faults.append(f"status {status} without a directory")
        return faults
    state = json.loads((run / "run.json").read_text())
    if status == 0:
        return faults if state["status"] == "done" else [*faults, f"0 but {state['status']}"]
    steps = RunDir(run).checkpoint_steps()
    rows = list(RunDir(run).read_metrics())
    if killed:
        if blow.nproc > 1 and not blow.group and (rows and state["status"] == "running"):
            faults.append("the workers of a killed parent have not said that they ended")
        return faults
    if status not in (wanted, 75 if blow.again else wanted):
        faults.append(f"status {status}, not {wanted}")
    elif (state["status"], state["exit_status"]) != (WORDS[status], status):
        faults.append(f"status {status}, run.json says {state['status']}, {state['exit_status']}")
    if rows and (not steps or steps[-1] < rows[-1]["step"]):
        faults.append(f"{len(rows)} steps, checkpoints {steps}")
    hidden = [str(path) for path in run.rglob(".*")]
    return [*faults, f"{hidden} are left"] if hidden else faults


def faults_of(blow, folder, reference):
    """Strike a run, let it go on to its end, and say what is not as it should be."""
    run, log = folder / "run", folder / "log"
    process = start(run, log=log, nproc=blow.nproc, workers=blow.workers)
    struck = strike(process, blow, run)
    status, left = finish(process)
    faults = faults_of_end(blow, status, left, run) if struck else []
    if (
        not faults
        and run.exists()
        and json.loads((run / "run.json").read_text())["status"] != "done"
    ):
        process = start(run, log=log, nproc=blow.nproc, resume=True)
        status, left = finish(process)
        if status or left:
            faults.append(f"resumed: status {status}, {len(left)} processes are left")
    if not faults and run.exists():
        if losses(RunDir(run)) != losses(RunDir(reference)):
            faults.append("resumed: other rows")
        if RunDir(run).encoder.read_bytes() != RunDir(reference).encoder.read_bytes():
            faults.append("resumed: another encoder")
    if "Traceback" in log.read_text(errors="replace") and (run.exists() or blow.number == 15):
        faults.append("a traceback")
    return struck, faults, log.read_text(errors="replace")[-3000:]


def references(folder, counts):
    """Runs that nobody disturbs, and how long they take, by the number of processes."""
    found = {}
    for nproc in counts:
        run, began = folder / f"whole-{nproc}", time.monotonic()
        status, left = finish(start(run, log=folder / f"log-{nproc}", nproc=nproc))
        assert (status, left) == (0, []), (folder / f"log-{nproc}").read_text()
        found[nproc] = run, time.monotonic() - began
    return found


def blows(draw, times, *, signals, kills):
    """As many signals and kills, at moments of all kinds."""
    for index in range(signals + kills):
        nproc = 1 + index % 2
        again = None
        if index < signals:
            number = draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
            again = draw.choice([None, None, signal.SIGTERM, signal.SIGINT])
        else:
            number = signal.SIGKILL
        moment = "save" if index % 5 == 4 else draw.uniform(0, times[nproc])
        group = draw.random() < 0.7 if number != signal.SIGKILL else index % 4 < 2
        yield Blow(number, moment, group, nproc, draw.choice([0, 2]), again)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", type=int, default=30)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    draw, failed = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        whole = references(Path(place), (1, 2))
        times = {nproc: seconds for nproc, (_, seconds) in whole.items()}
        print("undisturbed", times, flush=True)
        todo = blows(draw, times, signals=options.signals, kills=options.kills)
        for index, blow in enumerate(todo):
            folder = Path(place) / str(index)
            folder.mkdir()
            struck, faults, log = faults_of(blow, folder, whole[blow.nproc][0])
            print(index, blow, "struck" if struck else "too late", faults or "right", flush=True)
            if faults:
                print(log, flush=True)
                failed += 1
            shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

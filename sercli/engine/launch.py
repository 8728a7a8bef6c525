"""Several processes on this machine, under torchrun's own agent."""

from __future__ import annotations

import os
import sys

from sercli.engine.processes import UNDER_AGENT
from sercli.errors import Interrupted, Preempted, SerError, UserError
from sercli.runs.run_dir import RunDir


def launch(run: RunDir, *, nproc: int, device: str | None, options: tuple[str, ...] = ()) -> None:
    """Train with `nproc` processes on this machine, under torchrun's own agent.

    Args:
        run: The run directory.
        nproc: How many.
        device: As `--device` says.
        options: Of `--resume`, for the processes.

    Raises:
        SerError: As the workers ended, read from run.json.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[UNDER_AGENT] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"ser-{os.getpid()}",
        max_restarts=0,
        start_method="spawn",
    )
    arguments = ["-m", "sercli", "pretrain", "--resume", str(run.path), *options]
    if device is not None:
        arguments += ["--device", device]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except (ChildFailedError, SignalException, KeyboardInterrupt) as error:
        _end_as_refused(error, run)
        raise_for_status(run)
        raise
    raise_for_status(run)


def _end_as_refused(error: BaseException, run: RunDir) -> None:
    """End with status 2 where a worker has refused to go on: it has said why, and changed nothing.

    Raises:
        SystemExit: It has.
    """
    codes = {one.exitcode for one in getattr(error, "failures", {}).values()}
    if UserError.exit_status in codes and run.read_run().get("exit_status") != 2:
        raise SystemExit(UserError.exit_status) from error


def raise_for_status(run: RunDir) -> None:
    """Raise what run.json says a run ended with; nothing if it is done."""
    state = run.read_run()
    if state["status"] == "done":
        return
    message = str(state.get("error") or f"the run ended with status {state['status']}")
    status = state.get("exit_status") or 1
    kinds: dict[int, type[SerError]] = {75: Preempted, 130: Interrupted}
    error = kinds.get(status, SerError)(message)
    if not isinstance(error, Preempted | Interrupted):
        error.exit_status = status
    raise error

"""How a run ended, said in run.json; no torch, as signals come while it is imported, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sercli.engine.processes import is_first_process
from sercli.errors import Interrupted, Preempted, SerError, UserError
from sercli.runs.lease import is_leased
from sercli.runs.run_dir import RunDir
from sercli.signals import as_stop, deferred


def stopped_outside(run: RunDir) -> str:
    """What there is to say of a stop that no step has honoured."""
    return f"stopped outside of steps; continue with: ser pretrain --resume {run.path}"


@contextmanager
def stops_recorded(run: RunDir, *, refusals: bool = True) -> Iterator[None]:
    """Say in run.json how what is inside ended, unless it came to its end.

    Args:
        run: The run directory.
        refusals: Whether a user's error ends the run, too, and does not only refuse to go on.

    Raises:
        Preempted, Interrupted: A signal ended it.
    """
    try:
        yield
    except BaseException as error:
        stop = as_stop(error, stopped_outside(run))
        if refusals or not isinstance(error, UserError):
            with deferred():
                _record(run, stop or error)
        if stop is None or stop is error:
            raise
        raise stop from error


@contextmanager
def early_stops_recorded(run: RunDir) -> Iterator[None]:
    """Likewise of a run that this process does not hold yet: what stops it, and nothing else.

    A run that another process trains, or has brought to its end meanwhile, is left as it is.

    Raises:
        Preempted, Interrupted: A signal ended it.
    """
    try:
        yield
    except BaseException as error:
        stop = as_stop(error, stopped_outside(run))
        if stop is None or stop is error:  # it was said where it was raised
            raise
        with deferred(), suppress(SerError):
            if not is_leased(run) and run.read_run()["status"] != "done":
                _record(run, stop)
        raise stop from error


def _record(run: RunDir, error: BaseException) -> None:
    """Say in run.json how the run ended; under torchrun that is the only signal there is."""
    resumable = isinstance(error, Preempted | Interrupted)
    if resumable and not is_first_process():
        return
    status = "interrupted" if isinstance(error, Interrupted) else "preempted"
    try:
        run.update_run(
            status=status if resumable else "failed",
            exit_status=error.exit_status if isinstance(error, SerError) else 1,
            error=str(error) or type(error).__name__,
        )
    except SerError:
        return  # the disk is full or gone: the error itself is what must be seen

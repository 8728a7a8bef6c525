"""What can go wrong, and the exit status that says so.

A user's mistake is a `UserError`: its text is one line with the value received, the rule and the
remedy. `sercli.cli.main` turns each class below into its exit status; anything else is a bug (1).
"""

from __future__ import annotations

import errno


class SerError(Exception):
    """Base of all errors that end a command with a clear line instead of a traceback."""

    exit_status = 1


class UserError(SerError):
    """Wrong usage or bad input: exit status 2.

    Args:
        received: What was found, with the value.
        rule: What is required instead, or why it cannot be.
        remedy: What to do about it (optional).
    """

    exit_status = 2

    def __init__(self, received: str, rule: str = "", remedy: str = "") -> None:
        super().__init__("; ".join(part for part in (received, rule, remedy) if part))


class RunFailed(SerError):
    """The run itself failed (non-finite loss, disk full, …): exit status 3."""

    exit_status = 3


class Preempted(SerError):
    """A signal arrived (`sercli.signals`); what is done is kept and can resume: status 75."""

    exit_status = 75


class Interrupted(SerError):
    """Ctrl-C arrived; what is done is kept and can resume: status 130."""

    exit_status = 130


def from_os_error(error: OSError, doing: str) -> SerError:
    """Turn an operating-system error met while `doing` something into a clear one.

    A full disk or quota fails the run (status 3); everything else (missing, read-only, not
    permitted) is the user's to mend (status 2).
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"{doing}: {reason}; free space and resume, nothing written was lost")
    return UserError(f"{doing}: {reason}", remedy="check the path and its permissions")


FEWER_LOADERS = "fewer loader processes (--workers N, of pretraining --set data.workers=N)"


def exhausted(error: BaseException, doing: str) -> RunFailed | None:
    """What a process has run out of, if that is what an error met while `doing` something says.

    Descriptors, processes or memory: the error names the limit and the remedy, and no image is to
    blame for it.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        limit = f"this process may open {_limit('RLIMIT_NOFILE')} files"
        return RunFailed(f"{doing}: {limit}; raise the limit (ulimit -n 4096)")
    if number == errno.ENFILE:
        return RunFailed(f"{doing}: this machine has no descriptor left; close other programs")
    if number == errno.EAGAIN:
        limit = f"this user may have {_limit('RLIMIT_NPROC')} processes"
        return RunFailed(f"{doing}: {limit}; use {FEWER_LOADERS} or raise ulimit -u")
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return RunFailed(f"{doing}: memory is short; use a smaller batch or {FEWER_LOADERS}")
    return None


def _limit(name: str) -> str:
    try:
        import resource

        return str(resource.getrlimit(getattr(resource, name))[0])
    except (ImportError, AttributeError):
        return "no more"

"""What can go wrong, and the exit status that says so.

A user's mistake is a `UserError`: its text is one line with the value received, the rule and the
remedy. `sercli.cli.main` turns each class below into its exit status; anything else is a bug (1).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence


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


_NO_PATH = {
    errno.ENAMETOOLONG: "a name in it, or all of it, is longer than the file system takes",
    errno.ELOOP: "its links lead in a circle",
    errno.EACCES: "it may not be read or written by this user",
    errno.EPERM: "it may not be read or written by this user",
    errno.EROFS: "it lies in a file system that is read-only",
    errno.ENOTDIR: "a part of it is a file",
    errno.EISDIR: "it is a directory",
}
_SHOWN_OF_PATH = 80  # characters; a longer one loses its middle


def about_path(error: Exception, arguments: Sequence[str]) -> SerError | None:
    """What is wrong with a path, where that is what an error says that no caller looked for.

    Args:
        error: Of the file system, or of Python where it cannot ask the file system.
        arguments: Of the command line: what is missing is the user's to mend only there.

    Returns:
        None where it is no path's fault.
    """
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UserError("a path holds the character NUL", "no file system takes it", "remove it")
    if not isinstance(error, OSError) or error.filename is None:
        return None
    path = os.fsdecode(error.filename) if not isinstance(error.filename, int) else ""
    rule = _NO_PATH.get(error.errno or 0)
    if rule is not None:
        return UserError(shortened(path), rule, "name another")
    if path and any(_leads_to(path, argument) for argument in arguments):
        return from_os_error(error, shortened(path))
    return None


def _leads_to(path: str, argument: str) -> bool:
    """Whether a path is, or lies below, what an argument (`PATH`, `--option=PATH`) names."""
    named = os.path.abspath(argument.rpartition("=")[2] or ".")
    return os.path.abspath(path) == named or os.path.abspath(path).startswith(f"{named}{os.sep}")


def shortened(path: str) -> str:
    """A path as a message shows it: a long one loses its middle."""
    half = _SHOWN_OF_PATH // 2
    return path if len(path) <= _SHOWN_OF_PATH else f"{path[:half]}…{path[-half:]}"


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
    if number == errno.ENOMEM or lacks_memory(error):
        return RunFailed(f"{doing}: memory is short; use a smaller batch or {FEWER_LOADERS}")
    return None


def lacks_memory(error: BaseException) -> bool:
    """Python's, torch's on a GPU, or torch's on a CPU: of the last only the text tells."""
    of_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )
    return isinstance(error, MemoryError) or of_torch


def _limit(name: str) -> str:
    try:
        import resource

        return str(resource.getrlimit(getattr(resource, name))[0])
    except (ImportError, AttributeError):
        return "no more"

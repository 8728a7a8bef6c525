"""One writer for a run directory: a lock where the file system has one, and a lease beside it.

`lease.json` says which process trains the run; it is touched every ten seconds and removed at the
end. On one machine the lock, and the process's number and start, decide at once. Another machine's
process cannot be seen, and its lock not on every file system: its lease has to stand still while
we watch it for a minute, unless the user says that the process is gone (`--take-over`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sercli.errors import RunFailed, UserError, from_os_error
from sercli.runs.files import temporary
from sercli.runs.owner import Owner, booted_at
from sercli.runs.reading import require_regular
from sercli.runs.run_dir import RunDir

BEAT_SECONDS = 10.0
WATCH_SECONDS = 60.0
_LOOK_SECONDS = 5.0
_LENGTH = 1024  # bytes of the file: what is written over it is as long, and never half there
_ABOUT_TO_BE_WRITTEN = 2.0  # seconds that a process takes, at most, from its lock to its lease
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}

Say = Callable[[str], None]
Lock = Callable[[int, int], None]


class _Record(BaseModel):
    """lease.json, whoever wrote it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    host: str = Field(max_length=256)
    boot: str = Field(max_length=256)
    pid: int = Field(ge=0, lt=2**63)
    started: int = Field(ge=0)
    job: str = Field("", max_length=256)
    beat: int = 0


@dataclass(frozen=True)
class Time:
    """What passes time and tells it."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Lease:
    """A run directory that this process alone writes, until it lets go of it."""

    def __init__(self, path: Path, descriptor: int, owner: Owner) -> None:
        self.path, self.owner = path, owner
        self._descriptor, self._pid = descriptor, os.getpid()
        self._beats, self._ended = 0, threading.Event()
        self._write()
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._keep, daemon=True, name="ser-lease")
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Touch it. What prevents that is found by whoever asks whether it is still held."""
        if self.held():
            self._beats += 1
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        text = json.dumps({**asdict(self.owner), "beat": self._beats})
        os.pwrite(self._descriptor, text.encode().ljust(_LENGTH), 0)

    def held(self) -> bool:
        """Whether it is still this process's: not taken over, and not removed."""
        return _is_at(self.path, self._descriptor)

    def require_held(self) -> None:
        """Refuse to write on, where another process has taken the run over.

        Raises:
            RunFailed: It has.
        """
        if self.held() or (not self.path.exists() and self._restored()):
            return
        raise RunFailed(
            f"{self.path.parent} was taken over by {_read(self.path) or 'another process'}; "
            "this one stops here, and writes no more"
        )

    def _restored(self) -> bool:
        """Whether a lease that somebody has removed could be written anew."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
        except OSError:
            return False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.dup2(descriptor, self._descriptor, inheritable=False)  # the beat goes there, too
        os.close(descriptor)
        self._write()
        return True

    def release(self) -> None:
        """Let go of it, and remove the file."""
        if self._ended.is_set() or os.getpid() != self._pid:
            return
        self._ended.set()
        if self.held():
            with suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)

    def _forget(self) -> None:
        """In a forked process: a copy of the descriptor would hold the lock on."""
        if not self._ended.is_set():
            self._ended.set()
            with suppress(OSError):
                os.close(self._descriptor)


@contextmanager
def leased(
    run: RunDir,
    *,
    take_over: bool = False,
    say: Say = lambda _text: None,
    passing: Time | None = None,
    lock: Lock | None = None,
) -> Iterator[Lease]:
    """Inside, this process alone writes the run directory.

    Args:
        run: An existing run directory.
        take_over: The user says that the process of another machine is gone.
        say: Shows a line: that another machine's lease is watched.
        passing: Time; None: the real one.
        lock: Locks a descriptor without waiting, as `fcntl.flock` does; None: that.

    Raises:
        UserError: Another process writes it, or it cannot be written.
    """
    claim = _Claim(run, take_over=take_over, say=say, passing=passing or Time(), lock=lock)
    lease = claim.make()
    try:
        yield lease
    finally:
        lease.release()


def refuse_if_leased(run: RunDir) -> None:
    """Refuse at once what a process of this machine certainly writes; see `leased` for the rest.

    Raises:
        UserError: One does.
    """
    holder = _read(run.lease)
    if holder is not None and holder.lives():
        raise _taken(run, holder)


@dataclass(frozen=True)
class Holder:
    """Who a lease says writes a run.

    Attributes:
        owner: The process.
        lives: Whether it runs; None: of another machine, it cannot be seen from here.
        silent: Seconds since it touched the lease, by this machine's clock.
    """

    owner: Owner
    lives: bool | None
    silent: float

    @property
    def writes(self) -> bool:
        """Whether it writes, as far as is known at once: `leased` watches for a minute."""
        return self.silent < WATCH_SECONDS if self.lives is None else self.lives


def holder_of(run: RunDir) -> Holder | None:
    """Who a run's lease says writes it; None: there is no lease, or nobody can read it."""
    owner, seen = _read(run.lease), _look(run.lease)
    if owner is None or seen is None:
        return None
    return Holder(owner, owner.lives(), max(0.0, time.time() - seen[1] / 1e9))


def is_leased(run: RunDir) -> bool:
    """Whether another process writes it, or could: one of another machine cannot be seen."""
    holder = _read(run.lease)
    return holder is not None and holder.lives() is not False


def _taken(run: RunDir, holder: Owner | None, why: str = "") -> UserError:
    who = "another process" if holder is None else str(holder)
    return UserError(
        f"{run.path} is being trained by {who}{why}",
        "one process at a time writes a run directory",
        "wait for its end, or end it (it saves first) and repeat this command",
    )


class _Claim:
    """How a run directory becomes this process's."""

    def __init__(
        self, run: RunDir, *, take_over: bool, say: Say, passing: Time, lock: Lock | None
    ) -> None:
        self.run, self.path, self.take_over, self.say = run, run.lease, take_over, say
        self.passing, self.lock, self.owner = passing, lock or fcntl.flock, Owner.here()

    def make(self) -> Lease:
        """Take it.

        Raises:
            UserError: Another process has it.
        """
        try:
            return self._make()
        except OSError as error:
            raise from_os_error(error, f"cannot write {self.path}") from error

    def _make(self) -> Lease:
        since = self.passing.clock()
        if self.path.exists():
            require_regular(self.path)  # a pipe takes a lease, and never gives it back
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                locked = self._locked(descriptor)
                if not _is_at(self.path, descriptor):
                    os.close(descriptor)  # its holder has just removed it
                    continue
                holder = _read(self.path)
                if holder is not None and self._goes_on(holder):
                    raise _taken(self.run, _read(self.path) or holder)
                if locked:
                    return self._held(Lease(self.path, descriptor, self.owner))
            except BaseException:
                with suppress(OSError):
                    os.close(descriptor)
                raise
            # There are no locks here, or somebody has it: another machine's process that is gone,
            # or one that has not written its lease yet.
            os.close(descriptor)
            if locked is None or (holder is not None and holder.lives() is None):
                return self._replace(holder)
            if self.passing.clock() - since > _ABOUT_TO_BE_WRITTEN:
                raise _taken(self.run, None)
            self.passing.sleep(0.05)

    def _locked(self, descriptor: int) -> bool | None:
        """Whether the lock is ours now; None: this file system has none."""
        try:
            self.lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        return True

    def _goes_on(self, holder: Owner) -> bool:
        """Whether the process of a lease still writes, as far as can be found out."""
        lives = holder.lives()
        if lives is not None:
            return lives
        began = booted_at()
        written = self.path.stat().st_mtime
        if holder.host == self.owner.host and began is not None and written < began:
            return False  # this machine was started anew since
        return not self.take_over and self._moves(holder)

    def _moves(self, holder: Owner) -> bool:
        """Whether a lease is touched while we watch it."""
        self.say(
            f"{self.run.path} was last trained by {holder}, which cannot be seen from here: its "
            f"lease is watched for {WATCH_SECONDS:.0f} s (--take-over, if it is gone for sure)"
        )
        seen, since = _look(self.path), self.passing.clock()
        while self.passing.clock() - since < WATCH_SECONDS:
            self.passing.sleep(_LOOK_SECONDS)
            now = _look(self.path)
            if now is None:  # it was released
                return False
            if now != seen:
                return True
        return False

    def _replace(self, holder: Owner | None) -> Lease:
        """Take it with a file of our own, where no lock tells who was first: the last one has it.

        Raises:
            UserError: Another process took it meanwhile.
        """
        if _read(self.path) != holder:
            raise _taken(self.run, _read(self.path))
        descriptor, beside = temporary(self.path)
        try:
            with suppress(OSError):
                self.lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lease = Lease(self.path, descriptor, self.owner)
            os.replace(beside, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        # Who has read the file before it was replaced replaces it, too, within this time.
        self.passing.sleep(_ABOUT_TO_BE_WRITTEN)
        return self._held(lease)

    def _held(self, lease: Lease) -> Lease:
        """A lease that is certainly ours.

        Raises:
            UserError: Another process has replaced it.
        """
        if lease.held():
            return lease
        lease.release()
        raise _taken(self.run, _read(self.path))


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name, as far as the disk answers."""
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EBADF)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _look(path: Path) -> tuple[Any, ...] | None:
    """What changes when a lease is touched; opened, so that a network disk asks its server."""
    try:
        require_regular(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return file.read(_LENGTH), status.st_mtime_ns, status.st_ino
    except (OSError, UserError):
        return None


def _read(path: Path) -> Owner | None:
    """Whose a lease is; None: there is none, or nobody can read it."""
    try:
        require_regular(path)
        with open(path, "rb") as file:
            record = _Record.model_validate_json(file.read(_LENGTH))
    except (OSError, UserError, ValidationError):
        return None
    return Owner(record.host, record.boot, record.pid, record.started, record.job)

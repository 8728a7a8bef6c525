"""Files written beside and renamed: a reader never sees half of one.

What is written beside has a name that says whose it is: what killed processes left is removed by
the next that writes there, and a living one's is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sercli.errors import UserError, from_os_error
from sercli.runs.owner import Owner, lives
from sercli.runs.places import require_place
from sercli.runs.reading import LARGEST_JSON, MIB, parse_json, read_bytes, require_regular, what_is
from sercli.signals import deferred

_LONGEST_NAME = 255  # bytes, of what file systems allow
_RANDOM = 8  # characters that `tempfile` adds
_TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)\.\w{8}")
_PROBE_BYTES = 1 << 16  # more than a result takes
_FORGOTTEN = 24 * 3600.0  # seconds; a process of another machine has written long before


def _temporary_prefix(name: str) -> str:
    """What a temporary file or directory for `name` is called, up to random characters."""
    here = Owner.here()
    whose = f".{here.machine}-{here.pid}-{here.started}."
    # The end of a character that is cut, and bytes that are no text, are left out.
    kept = os.fsencode(name)[: _LONGEST_NAME - len(whose) - _RANDOM - 1].decode(errors="ignore")
    return f".{kept}{whose}"


def temporary(path: Path) -> tuple[int, str]:
    """An empty file beside `path` to be renamed to it: its descriptor and its name.

    Raises:
        OSError: It cannot be made.
    """
    return tempfile.mkstemp(prefix=_temporary_prefix(path.name), dir=path.parent)


def is_left_behind(path: Path) -> bool:
    """Whether it is a temporary file or directory of ours whose process has ended.

    That of another machine's process counts once nothing in it was written for a day.
    """
    told = _TEMPORARY.fullmatch(path.name)
    if told is None:
        return False
    if told["machine"] == Owner.here().machine:
        return not lives(int(told["pid"]), int(told["started"]))
    return time.time() - _last_written(path) > _FORGOTTEN


def _last_written(path: Path) -> float:
    """When anything of a file or directory was last written, in seconds since 1970."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    times = []
    for one in (path, *inside):
        with suppress(OSError):
            times.append(one.lstat().st_mtime)
    return max(times, default=time.time())


def sweep(directory: Path) -> None:
    """Remove from a directory what killed processes left; what cannot be removed stays."""
    with suppress(OSError), os.scandir(directory) as entries:
        hidden = [Path(entry.path) for entry in entries if entry.name.startswith(".")]
        for path in filter(is_left_behind, hidden):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def require_writable(directory: Path) -> None:
    """Write something into a directory, or into the one that it would be made in, and remove it.

    Permissions do not tell: some users may write anywhere, and some disks are read-only or full.

    Raises:
        UserError: It cannot be written, or is a file.
        RunFailed: The disk is full.
    """
    place = directory.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{place} is a file", "a directory is needed there", "move it away")
    try:
        prefix = _temporary_prefix("probe")
        with tempfile.NamedTemporaryFile(prefix=prefix, dir=place) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise from_os_error(error, f"cannot write into {place}") from error
    sweep(place)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _target(path: Path) -> Path:
    """Where a file is written: what a link leads to, so that the link stays.

    Raises:
        UserError: There is a device, pipe or socket, which a rename would replace by a file.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return path
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return path.resolve() if path.is_symlink() else path
    raise UserError(
        f"cannot write {path}: it is {what_is(mode)}",
        "files are written beside their place and renamed",
        "name a file, or leave the option out to use standard output",
    )


@deferred()
def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, flush it to disk, then rename it into place.

    Args:
        path: The final name; missing parent directories are made.
        write: Called with the open binary file.

    Raises:
        UserError: The place cannot be written, or is a device.
        RunFailed: The disk is full. The temporary file is removed and an older `path` is intact.
    """
    path = _target(path)
    beside: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, beside = temporary(path)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
        beside = None
        sweep(path.parent)
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error
    finally:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text (UTF-8)."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """`write_atomic` for JSON; NaN and infinities are refused, undefined values are null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def replacing_directory(path: Path, *, what: str, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name if the block succeeds.

    Args:
        path: Its name.
        what: What makes it, for messages.
        replace: Whether a directory that is there goes then.

    Raises:
        UserError: `path` exists already, or its parent cannot be written.
    """
    require_place(path, f"{what}:")
    if replace and path.is_symlink():
        path = path.resolve()  # so that the link stays
    if path.exists() and not (replace and path.is_dir()):
        raise UserError(
            f"{path} exists", f"{what} needs a new directory", "name another or remove it"
        )
    draft: Path | None = None
    try:
        with deferred():
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            draft = Path(tempfile.mkdtemp(prefix=_temporary_prefix(path.name), dir=path.parent))
        yield draft
        with deferred():
            draft.chmod(0o777 & ~_umask())
            if path.exists():
                _exchange(path, draft)
            else:
                draft.rename(path)
    except OSError as error:
        raise from_os_error(error, f"cannot make {path}") from error
    finally:
        if draft is not None:
            with deferred():
                shutil.rmtree(draft, ignore_errors=True)


def _exchange(path: Path, draft: Path) -> None:
    """Let one directory take the name of another, which goes.

    No call renames over a directory that holds something. Between the two names there is none for
    a moment; what a kill leaves then is the new one, whole, under its temporary name.
    """
    aside = Path(tempfile.mkdtemp(prefix=_temporary_prefix(path.name), dir=path.parent))
    path.rename(aside)
    try:
        draft.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A name for a draft that becomes the file `path` if the block succeeds, and goes otherwise.

    For a file that is looked at before it is kept. The draft lies in a temporary directory, and so
    has a suffix of `path`'s without being taken for a file of its own.

    Raises:
        UserError: The place cannot be written, or is a device.
        RunFailed: The disk is full.
    """
    path = _target(path)
    draft: Path | None = None
    try:
        with deferred():
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            draft = Path(tempfile.mkdtemp(prefix=_temporary_prefix(path.name), dir=path.parent))
        file = draft / f"draft{path.suffix}"
        yield file
        os.replace(file, path)
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error
    finally:
        if draft is not None:
            with deferred():
                shutil.rmtree(draft, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `sercli.runs.reading` says what is looked at.

    Raises:
        UserError: Missing, unreadable, too large, or not a JSON object.
    """
    return json_object(read_bytes(path, limit=LARGEST_JSON), str(path))


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """What is read of a file as a JSON object.

    Args:
        data: Its content.
        name: What it is called, for messages.

    Raises:
        UserError: It is none.
    """
    value = parse_json(data, name)
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a {type(value).__name__}", "a JSON object is needed")
    return value


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(path: Path) -> Path:
    """The SHA-256 that stands beside a file, in the format of `sha256sum -c`."""
    return path.with_name(f"{path.name}.sha256")


def verifies(path: Path) -> bool:
    """Whether a file and its SHA-256 are there, and its bytes are those that were written."""
    try:
        require_regular(path)
        told = read_bytes(hash_of(path), limit=MIB).decode().split()
        return told[:1] == [file_sha256(path)]
    except (UserError, OSError, UnicodeDecodeError):
        return False

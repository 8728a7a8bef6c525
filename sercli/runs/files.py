"""Files written beside and renamed: a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sercli.errors import UserError, from_os_error
from sercli.runs.places import require_place
from sercli.runs.reading import LARGEST_JSON, parse_json, read_bytes
from sercli.signals import deferred


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@deferred()
def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, flush it to disk, then rename it into place.

    Args:
        path: The final name; missing parent directories are made.
        write: Called with the open binary file.

    Raises:
        UserError: The place cannot be written.
        RunFailed: The disk is full. The temporary file is removed and an older `path` is intact.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise from_os_error(error, f"cannot write {path}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text (UTF-8)."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """`write_atomic` for JSON; NaN and infinities are refused, undefined values are null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def replacing_directory(path: Path, *, what: str) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name if the block succeeds.

    Raises:
        UserError: `path` exists already, or its parent cannot be written.
    """
    require_place(path, f"{what}:")
    if path.exists():
        raise UserError(
            f"{path} exists", f"{what} needs a new directory", "name another or remove it"
        )
    draft: Path | None = None
    try:
        with deferred():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield draft
        with deferred():
            draft.chmod(0o777 & ~_umask())
            draft.rename(path)
    except OSError as error:
        raise from_os_error(error, f"cannot make {path}") from error
    finally:
        if draft is not None:
            with deferred():
                shutil.rmtree(draft, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `sercli.runs.reading` says what is looked at.

    Raises:
        UserError: Missing, unreadable, too large, or not a JSON object.
    """
    value = parse_json(read_bytes(path, limit=LARGEST_JSON), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}", "a JSON object is needed")
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
        return hash_of(path).read_text().split()[0] == file_sha256(path)
    except (OSError, IndexError, UnicodeDecodeError):
        return False

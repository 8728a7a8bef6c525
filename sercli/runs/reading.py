"""Files that are looked at before they are believed: what every typed reader begins with.

Whoever wrote it, a file that is read here is regular and not too large, its JSON is no deeper than
a person could follow and holds finite numbers only, and an archive is no larger unpacked than its
reader expects. What is in it is then checked by a model of pydantic's (`stored`). All that is
wrong is a `UserError` of one line. Importing this imports no pydantic, `stored` does.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from sercli.errors import UserError, from_os_error

MIB = 1 << 20
LARGEST_JSON = 16 * MIB  # run.json and results: some KB, a set of a thousand classes half a MB
DEEPEST = 64
Scalar = str | int | float | bool | None
_BLOCK = 1 << 16  # bytes that are read at once from a file's end
FARTHEST = 8 * MIB  # from there: some 20,000 rows
_DIGITS = 320  # of a number within the range of float64

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
# Opening a FIFO without it waits for a writer; of regular files it changes nothing.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxdict = _short.maxlist = _short.maxtuple = 3
_short.maxlevel = 2


def shown(value: object) -> str:
    """A value as a message shows it: `repr`, cut short."""
    return _short.repr(value)


def what_is(mode: int) -> str:
    """What a file is that is not regular, by its mode: "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


class NotRegular(Exception):
    """A file is something else than bytes on a disk; its text is what."""


@contextmanager
def open_regular(path: str | bytes | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, without waiting for whoever writes into a pipe.

    Raises:
        NotRegular: It is a FIFO, a device, a directory.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegular(f"it is {what_is(mode)}, no regular file")
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def require_regular(path: Path) -> None:
    """Refuse what is no regular file: opening a FIFO or a device may never end.

    Raises:
        UserError: It is none, or it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except ValueError as error:  # a null character
        raise UserError(f"cannot read {shown(str(path))} ({error})") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {what_is(mode)}", "a regular file is needed")


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UserError: Missing, unreadable, no regular file, or larger.
    """
    require_regular(path)
    try:
        with open_regular(path) as file:
            # Memory is set aside for what is asked for: for what there is, not for the limit.
            length = min(os.fstat(file.fileno()).st_size, limit)
            data = file.read(length + 1)
            if len(data) > length:  # it grew, or is of /proc, whose files have no size
                data += file.read(limit + 1 - len(data))
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except NotRegular as error:  # since it was looked at
        raise UserError(f"{path}: {error}") from error
    if len(data) > limit:
        raise UserError(
            f"{path} is larger than {limit // MIB} MiB", "no file of this kind is so large"
        )
    return data


# -- JSON -----------------------------------------------------------------------------------------


def parse_json(data: bytes | str, name: str) -> Any:
    """What JSON says, if it says it plainly.

    Args:
        data: UTF-8.
        name: What it is called, for messages.

    Raises:
        UserError: No JSON, a key that stands twice, NaN, infinities and numbers beyond float64,
            half a character, or more than `DEEPEST` levels.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(
            text, parse_constant=_no_constant, parse_int=_integer, object_pairs_hook=_once
        )
        _look_through(value, plain=text.isascii() and "\\u" not in text)
    except RecursionError as error:
        raise UserError(
            f"{name} is nested too deeply", f"{DEEPEST} levels of JSON are read"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{name} is not valid JSON ({str(error)[:200]})", "finite numbers and text are needed"
        ) from error
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return found


def _look_through(tree: Any, *, plain: bool) -> None:
    """Containers level by level: of a thousand numbers most of the time goes into asking.

    Args:
        tree: What was read.
        plain: All of its text is ASCII.
    """
    level, depth = [tree], 1
    while level:
        if depth > DEEPEST:
            raise RecursionError
        inner: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is float:
                if not isfinite(value):
                    raise ValueError("a number beyond the range of float64")
            elif kind is dict:
                if not plain:
                    _require_characters("".join(value))
                # A result's thousand numbers: one that is not finite makes their sum so.
                if set(map(type, value.values())) != {float} or not isfinite(sum(value.values())):
                    inner += value.values()
            elif kind is list:
                inner += value
            elif kind is str:
                if not plain:
                    _require_characters(value)
            elif kind is int and not is_finite(value):
                raise ValueError("a number beyond the range of float64")
        level, depth = inner, depth + 1


def _require_characters(text: str) -> None:
    if not text.isascii():
        # Half of a character is a UnicodeEncodeError, which is a ValueError; a byte of a file name
        # that is no UTF-8 stands as one, and is what we wrote.
        text.encode(errors="surrogateescape")


def is_finite(value: object) -> bool:
    """Whether a value is not a number that float64 cannot hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


# -- Lines of JSON --------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[dict[str, Scalar]]:
    """The rows of a file with a JSON object of plain values in every line, one after another.

    A kill, a full disk or a power cut may leave anything between them: what is no such object is
    passed over.

    Raises:
        UserError: The file cannot be read.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            while line := file.readline(MIB):
                row = _row(line)
                if row is not None:
                    yield row
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error


def rows_from_end(path: Path, *, holding: str = "") -> Iterator[dict[str, Scalar]]:
    """`rows`, the last first: of a long file no more is read than is asked for.

    Args:
        path: The file.
        holding: Only rows with this text in them; others are not taken apart.

    Raises:
        UserError: The file cannot be read.
    """
    require_regular(path)
    sought = holding.encode()
    try:
        with open(path, "rb") as file:
            for line in _lines_from_end(file):
                row = _row(line) if sought in line else None
                if row is not None:
                    yield row
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error


def _lines_from_end(file: BinaryIO) -> Iterator[bytes]:
    """Lines of the last `FARTHEST` bytes, the last first; one longer than `MIB` is left out."""
    end, later = file.seek(0, os.SEEK_END), b""
    least = max(0, end - FARTHEST)
    while end > least:
        start = max(0, end - _BLOCK)
        file.seek(start)
        first, *whole = (file.read(end - start) + later).split(b"\n")
        yield from reversed(whole)
        end, later = start, first if len(first) <= MIB else b""
    yield later


def _row(line: bytes) -> dict[str, Scalar] | None:
    try:
        row = parse_json(line, "a row")
    except UserError:
        return None
    if not isinstance(row, dict):
        return None
    return None if any(isinstance(value, dict | list) for value in row.values()) else row

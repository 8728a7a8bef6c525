"""Lists of images that are kept from one command to the next, as bytes with a hash of their own.

They lie in `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`, never in the data directory,
which may be read-only. Without a place that can be written, every command makes its lists anew.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.errors import SerError
from sercli.runs.files import write_atomic
from sercli.runs.reading import open_regular

_LENGTH_OF_HASH = hashlib.sha256().digest_size
# What changed this recently may change again within one tick of the file system's clock, so that
# its time would not tell; a list of it is not stored. (FAT's tick, the coarsest, is 2 s.)
_SETTLED_NS = 2_000_000_000
# What somebody else's bytes may raise while they are taken apart.
NOT_OURS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def cache_directory() -> Path | None:
    """Where lists are kept: `$SER_CACHE`, `$XDG_CACHE_HOME/ser` or `~/.cache/ser`.

    None where there is no such place: a container's user may have no home, and no entry in passwd.
    """
    if chosen := os.environ.get("SER_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored then, its specification says
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base) / "ser"


def place_of(key: bytes, *, kind: str) -> Path | None:
    """Where the list of what `key` stands for is kept; None: nowhere."""
    directory = cache_directory()
    name = hashlib.sha256(key).hexdigest()[:32]
    return None if directory is None else directory / kind / f"{name}.list"


def are_settled(stamps: NDArray[np.int64], started_ns: int) -> bool:
    """Whether another change of what was listed would show in its stamps.

    Args:
        stamps: int64 [N, 5], rows of `listing.Stamp`.
        started_ns: When listing began, nanoseconds since 1970.
    """
    return bool(np.all(np.abs(started_ns - stamps[:, :2]) >= _SETTLED_NS))


def store(path: Path, content: bytes) -> None:
    """Keep a list; an unwritable or full cache only costs making it again."""
    with suppress(SerError):
        write_atomic(path, lambda file: file.write(content))


def stored(path: Path) -> bytes | None:
    """What is kept there, if anything can be read; whether it is whole, `unpack` tells."""
    try:
        with open_regular(path) as file:
            return file.read()
    except Exception:
        return None  # whatever it is, it is made again


@contextmanager
def by_one(path: Path | None) -> Iterator[None]:
    """Within it a list is made: other processes that would make the same wait, and find it kept.

    Where nothing is kept, or files cannot be locked, each makes its own.
    """
    with ExitStack() as stack:
        with suppress(OSError, ImportError):
            # A spawned process that runs its parent's script again would wait for that parent,
            # which waits for it.
            starting = getattr(multiprocessing.current_process(), "_inheriting", False)
            if path is not None and not starting:
                import fcntl

                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.with_suffix(".lock")
                file = stack.enter_context(open(lock, "wb"))
                # Whoever waits for what is removed has it after this, and finds the list.
                stack.callback(lock.unlink, missing_ok=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- As bytes -------------------------------------------------------------------------------------


def pack(magic: bytes, facts: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> bytes:
    """Facts, as JSON, and arrays of a type that their reader knows.

    A hash of what follows, int64 lengths of the parts, the parts.
    """
    parts = [json.dumps(facts).encode(), *(array.tobytes() for array in arrays)]
    body = b"".join([np.array([len(part) for part in parts], "<i8").tobytes(), *parts])
    return b"".join([magic, hashlib.sha256(body).digest(), body])


def unpack(magic: bytes, content: bytes, arrays: int) -> tuple[Any, list[memoryview]]:
    """The facts and the bytes of each array that `pack` was given.

    Raises:
        ValueError: It is of another version, damaged, or made by hand.
    """
    start = len(magic) + _LENGTH_OF_HASH
    body = memoryview(content)[start:]
    told = content[len(magic) : start]
    if not content.startswith(magic) or told != hashlib.sha256(body).digest():
        raise ValueError("of another version, or damaged")
    lengths = np.frombuffer(body, "<i8", arrays + 1).tolist()
    position = 8 * len(lengths)
    if min(lengths) < 0 or sum(lengths) + position != len(body):
        raise ValueError("the parts do not add up")
    ends = np.cumsum([position, *lengths]).tolist()
    facts, *parts = (body[one:other] for one, other in pairwise(ends))
    return json.loads(bytes(facts)), parts


# -- Many names -----------------------------------------------------------------------------------


def join(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The names one after another (uint8), and where each starts (int64 [len + 1])."""
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
    return np.frombuffer(b"".join(names), np.uint8), offsets


def split(names: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[bytes, ...]:
    """What `join` was given."""
    joined = names.tobytes()
    return tuple(joined[start:stop] for start, stop in pairwise(offsets.tolist()))


def are_names(names: NDArray[np.uint8], offsets: NDArray[np.int64], count: int) -> bool:
    """Whether these are what `join` makes of so many names, none of them empty."""
    return bool(
        len(offsets) == count + 1
        and offsets[0] == 0
        and np.all(np.diff(offsets) > 0)
        and offsets[-1] == len(names)
    )

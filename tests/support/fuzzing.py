"""Where a fuzz target puts its input, if what it tries reads files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """A folder of this run, in memory where there is such a place; removed at its end.

    The process that tries inputs shares it with the one that watches it, which outlives it.
    """
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="ser-fuzz-", dir=parent))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def put(name: str, data: bytes) -> Path:
    """A file of this content in `folder()`."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

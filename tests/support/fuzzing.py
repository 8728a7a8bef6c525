"""Where a fuzz target puts its input, if what it tries reads files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def _folder(process: int) -> Path:
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"ser-fuzz-{process}-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def folder() -> Path:
    """A folder of this process, in memory where there is such a place; removed at its end."""
    return _folder(os.getpid())


def put(name: str, data: bytes) -> Path:
    """A file of this content in `folder()`."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

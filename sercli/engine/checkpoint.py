"""Training checkpoints: written atomically with a hash, verified before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import IO, Any, BinaryIO, cast

import torch

from sercli import distributed
from sercli.encoders.files import load_torch_file
from sercli.errors import from_os_error
from sercli.runs.files import write_atomic, write_text
from sercli.runs.run_dir import KEPT_CHECKPOINTS, RunDir


class _HashingWriter:
    """Passes bytes on and hashes them; keeps the OSError that torch.save would hide."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save(run: RunDir, step: int, state: dict[str, Any], *, kept: Collection[int] = ()) -> None:
    """Write the checkpoint of `step` and drop all but the last ones that verify.

    Those of the steps `kept` are never dropped.

    Raises:
        RunFailed: The disk is full; the older checkpoints are intact.
        UserError: The directory cannot be written.
    """
    digests: list[str] = []

    def write(file: BinaryIO) -> None:
        writer = _HashingWriter(file)
        try:
            torch.save(state, cast(IO[bytes], writer))
        except Exception:
            if writer.error is not None:
                raise writer.error from None
            raise
        digests.append(writer.sha256.hexdigest())

    path, hash_file = run.checkpoint(step), run.checkpoint_hash(step)
    hash_file.unlink(missing_ok=True)
    write_atomic(path, write)
    write_text(hash_file, f"{digests[0]}  {path.name}\n")
    _drop_older(run, kept)


def load_latest(run: RunDir, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The last checkpoint that verifies, or None; damaged ones are named and passed over.

    Rank 0 looks for it: all ranks go on from the same.
    """
    step = distributed.broadcast_object(_last_that_verifies(run, say))
    return None if step is None else load_torch_file(run.checkpoint(step))


def _last_that_verifies(run: RunDir, say: Callable[[str], None]) -> int | None:
    if distributed.rank():
        return None
    for step in reversed(run.checkpoint_steps()):
        if run.checkpoint_verifies(step):
            return step
        say(f"{run.checkpoint(step)} is damaged or incomplete, and is passed over")
    return None


def _drop_older(run: RunDir, kept: Collection[int]) -> None:
    """Remove checkpoints older than the last ones, as soon as those have their hashes."""
    steps = run.checkpoint_steps()
    if not all(run.checkpoint_hash(step).is_file() for step in steps[-KEPT_CHECKPOINTS:]):
        return
    for step in steps[:-KEPT_CHECKPOINTS]:
        if step in kept:
            continue
        try:
            run.checkpoint(step).unlink()
            run.checkpoint_hash(step).unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, f"cannot remove {run.checkpoint(step)}") from error

"""Standard output and error, which never end a command: what cannot be written is left out.

A log on a full disk, a reader that has gone (`| head`), a terminal that was closed: each write
would raise, anywhere in a training of days. The streams of `ser` go quiet instead, and whoever
wants to know asks `lost` at the end. What their encoding lacks is spelled in ASCII.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from sercli.visible import READABLE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_lost: OSError | None = None  # the first failure of standard output


class _Unfailing(io.RawIOBase):
    """A descriptor to which writing always succeeds; after the first failure nothing is written.

    Args:
        descriptor: Open; it is never closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._quiet = descriptor, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        """Write all of it: under `python -u` no buffer above would come back with the rest."""
        view = memoryview(data).cast("B")
        left = view
        while left and not self._quiet:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # of a pipe that somebody else made so
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._quiet = True
                if self._descriptor == 1:
                    global _lost
                    _lost = error
        return view.nbytes


def install() -> None:
    """Make the standard streams unfailing; called first of all, in a process that is `ser`'s own.

    Streams that somebody has replaced (a test, a notebook) are left alone.
    """
    for descriptor in (0, 1, 2):
        if not _is_open(descriptor):
            # The lowest that is free: otherwise the next file to be opened, a checkpoint, say,
            # would be what libraries write their warnings to.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _unfailing(sys.stdout, 1, line_buffering=False)
    sys.stderr = _unfailing(sys.stderr, 2, line_buffering=True)


def _unfailing(stream: TextIO | None, descriptor: int, *, line_buffering: bool) -> TextIO:
    if stream is None:  # it was closed when Python started
        return io.TextIOWrapper(
            io.BufferedWriter(_Unfailing(descriptor)),
            encoding="utf-8",
            errors=READABLE,
            line_buffering=line_buffering,
        )
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # without a buffer under `python -u`
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.FileIO):
        return stream
    unfailing: Any = _Unfailing(descriptor)
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(unfailing) if isinstance(buffer, io.BufferedWriter) else unfailing,
        encoding=stream.encoding,
        errors=READABLE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost() -> OSError | None:
    """Why standard output was not written to its end; None if it was, or its reader had enough."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    return None if _lost is None or _lost.errno == errno.EPIPE else _lost


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True

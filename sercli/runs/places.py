"""What users name as files and folders, refused at the door where it can be neither."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sercli.errors import UserError, from_os_error, shortened

# `Path` makes s3:/bucket of s3://bucket. One letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def joined(places: Sequence[str]) -> str:
    """Several places as one text, a JSON list; one is itself, as it was given."""
    return places[0] if len(places) == 1 else json.dumps(list(places), ensure_ascii=False)


def parted(text: str) -> list[str]:
    """What `joined` was given: a folder that is called as such a list is `./[…`."""
    if text.startswith('["'):
        try:
            places = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if len(places) > 1 and all(isinstance(one, str) for one in places):
            return [str(one) for one in places]
    return [text]


def require_place(given: str | Path, what: str) -> None:
    """Refuse what is no path at all: a URL, nothing, or a name that no file system takes.

    Args:
        given: As it was given; nothing needs to be there.
        what: What it was given as, for the message: "data", "--out".

    Raises:
        UserError: It is no path, or where it leads may not be looked at.
    """
    path = str(given)
    url = _URL.match(path)
    if url is not None and not os.path.exists(f"{url[1]}:"):
        written = path if "://" in path else path.replace(":/", "://", 1)
        raise UserError(
            f"{what} {shortened(written)}",
            "URLs are not read or written",
            "download it, or mount it, and name the path",
        )
    if not path:
        raise UserError(f"{what} is empty", "a path is needed")
    if "\0" in path:
        raise UserError(
            f"{what} {shortened(path.encode('unicode_escape').decode())}", "no path holds a NUL"
        )
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise from_os_error(error, f"{what} {shortened(path)}") from error


def refuse_existing(out: Path | None, what: str = "--out") -> None:
    """Refuse a place of what is to be made, if there is something.

    Args:
        out: The place; None: none was given.
        what: What it was given as.

    Raises:
        UserError: There is.
    """
    if out is None:
        return
    require_place(out, what)
    if out.exists():
        remedy = ", or --resume it" if what == "--out" else ""
        raise UserError(
            f"{what} {out} exists", "a new run needs a new directory", f"give another{remedy}"
        )


def next_free(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`… : the first that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate

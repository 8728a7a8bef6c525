"""What single values of an annotation file may be, and how one is shown in a message."""

from __future__ import annotations

import math
import reprlib
from typing import Any

LARGEST = 2**63 - 1  # ids become int64
_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes that file systems take

_SHOWN = 80  # characters of a value in a message

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 2, 6, 4
_repr.maxstring = _repr.maxlong = _repr.maxother = 60


def shown(value: Any) -> str:
    """A value on one line of bounded length, however long or deep it is."""
    text = _repr.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def is_whole(value: Any, *, least: int = 0) -> bool:
    """Whether it is an integer of JSON in `least`…2^63−1: no 11.0, no true, no "11"."""
    return type(value) is int and least <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Whether it is a finite number; integers of 63 bits, so that it is one in every library."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and -LARGEST <= value <= LARGEST


def is_text(value: Any) -> bool:
    """Whether it is text that a file can hold: JSON can also spell halves of characters."""
    if type(value) is not str:
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def is_path_inside(value: Any) -> bool:
    """Whether it is the path of a file that can lie below some folder."""
    if not is_text(value) or not value or "\0" in value or value.startswith("/"):
        return False
    parts = [len(part.encode()) for part in value.split("/")]
    short = max(parts) <= _LONGEST_NAME and sum(parts) + len(parts) <= _LONGEST_PATH
    return short and ".." not in value.split("/")


def is_box(box: Any) -> bool:
    """Whether it is x, y, width and height, of no negative extent."""
    return (
        type(box) is list
        and len(box) == 4
        and all(map(is_number, box))
        and min(box[2], box[3]) >= 0
    )

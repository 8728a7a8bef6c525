"""Lists of classes, as those of ImageNet-100 are published: a name a line."""

from __future__ import annotations

import re
from pathlib import Path

from sercli.errors import UserError, from_os_error
from sercli.runs.places import require_place
from sercli.runs.reading import shown

_LARGEST = 4 << 20  # bytes
# Some lists explain ImageNet's numbers: "n01440764 tench, Tinca tinca".
_EXPLAINED = re.compile(r"(n\d{8})[\s,:].*")
_COMMENT = re.compile(r"(?:^|\s)#.*")


def read_class_list(file: Path) -> tuple[str, ...]:
    """The class names in a text file, in its order; `#` begins a comment.

    Raises:
        UserError: It is missing, no regular file, no text, empty, or names a class twice.
    """
    require_place(file, "a list of classes:")
    if not file.is_file():
        raise UserError(
            f"no list of classes at {file}", "a text file with a class name a line is needed"
        )
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text", "a class name a line is needed") from error
    if len(content) > _LARGEST or "\0" in text:
        raise UserError(f"{file} is no list of classes", "a class name a line is needed")
    lines = (_COMMENT.sub("", line).strip() for line in text.splitlines())
    names = [_EXPLAINED.sub(r"\1", line) for line in lines if line]
    return once_each(names, where=str(file))


def once_each(names: list[str], *, where: str) -> tuple[str, ...]:
    """The names, at least one, none of them twice.

    Raises:
        UserError: They are not such.
    """
    if not names:
        raise UserError(f"{where} names no class", "at least one is needed")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{where} names {shown(name)} twice", "a class may stand once")
        seen.add(name)
    return tuple(names)

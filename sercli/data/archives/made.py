"""What `ser data shard` notes beside the shards that it makes, and how it names images in them.

In a tar that others read, an image is called KEY.suffix, and a key has no dot. Names that are of
this form stay as they are; of others what is in the way is spelled as in a URL (`a.b.jpg` →
`a%2Eb.jpg`), and a name behind which another suffix was put has a % before it (`a.png` →
`a%2Epng%.jpg`). The record beside the shards says that names in them are so spelled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from sercli.data.images.listing import added_as, has_suffix
from sercli.errors import UserError
from sercli.runs.files import hash_of, verifies
from sercli.runs.reading import LARGEST_JSON, parse_json, read_bytes

RECORD = "shards.json"
VERSION = 1
_IN_FOLDER = re.compile(rb"[%:\\\x00]")
_IN_KEY = re.compile(rb"[%:\\\x00.]")
_NOT_MADE = "`ser data shard` writes it beside the shards that it makes"


@dataclass(frozen=True)
class Record:
    """What is noted of a set of shards.

    Attributes:
        form: "wds" or "arrow".
        labelled: Whether its images have labels.
        files: Split → its shards, paths below the folder of the record, in their order.
        said: All of it, as JSON has it.
    """

    form: str
    labelled: bool
    files: dict[str, tuple[str, ...]]
    said: dict[str, Any]


def read_record(folder: str | Path) -> Record | None:
    """What is noted of the shards in a folder; None: they were not made by `ser data shard`.

    Raises:
        UserError: It cannot be read, or is of another version.
    """
    path = Path(folder) / RECORD
    if not os.path.lexists(path):
        return None
    told = parse_json(read_bytes(path, limit=LARGEST_JSON), str(path))
    try:
        if told["version"] != VERSION:
            raise UserError(f"{path} is of version {told['version']!r}", _NOT_MADE)
        files = {
            str(split): tuple(map(str, one["shards"])) for split, one in told["splits"].items()
        }
        if not all(_leads_down(name) for names in files.values() for name in names):
            raise ValueError("a path that leads out")
        return Record(str(told["format"]), bool(told["labels"]), files, told)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no record of shards", _NOT_MADE) from error


def _leads_down(name: str) -> bool:
    return not {"", ".", ".."} & {*name.split("/")} and "\0" not in name


def require_finished(folder: str | Path, record: Record) -> None:
    """Refuse shards of which some are still to be made.

    Raises:
        UserError: They are.
    """
    names = [name for shards in record.files.values() for name in shards]
    lacking = [name for name in names if not is_finished(Path(folder) / name)]
    if lacking:
        raise UserError(
            f"{folder} lacks {len(lacking):,} of {len(names):,} shards ({lacking[0]} for one)",
            f"{RECORD} says which there are",
            "repeat `ser data shard` to go on, or fetch what is missing",
        )


def require_whole(folder: str | Path) -> None:
    """`require_finished`, where a folder holds shards of `ser data shard`.

    Raises:
        UserError: Some are still to be made.
    """
    record = read_record(folder)
    if record is not None:
        require_finished(folder, record)


def checksum_faults(files: Sequence[str]) -> list[str]:
    """A line for each file that is not as the checksum beside it says."""
    wrong = [file for file in files if hash_of(Path(file)).exists() and not verifies(Path(file))]
    return [
        f"{file} is not as {hash_of(Path(file)).name} beside it says; copy or make it again"
        for file in wrong
    ]


def is_finished(shard: Path) -> bool:
    """Whether a shard and its checksum, which is written after it, are there."""
    return shard.is_file() and hash_of(shard).is_file()


# -- Names in archives ----------------------------------------------------------------------------


def member_of(name: bytes, *, suffix: bytes = b"", apart: bool = False) -> bytes:
    """What an image is called in a tar; `name_of` gives back its name.

    Args:
        name: Its name within the set, slashes part folders.
        suffix: Of the kind of file that its bytes are, where its name has none or another.
        apart: Whether another image has the same key.
    """
    *folders, base = name.split(b"/")
    stem, _, own = base.rpartition(b".")
    if suffix or apart or not has_suffix(base):
        key = _IN_KEY.sub(_spelled, base) + b"%"
    else:
        key = _IN_KEY.sub(_spelled, stem)
    last = key + b"." + (suffix or own)
    return b"/".join([*map(_folder, folders), last if added_as(last) is None else _first(last)])


def name_of(member: bytes) -> bytes:
    """The name within the set of what is called so in a tar."""
    if b"%" not in member:
        return member
    *folders, last = member.split(b"/")
    key, _, suffix = last.rpartition(b".")
    base = (
        unquote_to_bytes(key[:-1]) if key.endswith(b"%") else unquote_to_bytes(key) + b"." + suffix
    )
    return b"/".join([*(b"" if one == b"%" else unquote_to_bytes(one) for one in folders), base])


def key_of_member(name: bytes) -> bytes:
    """The key that a name would have in a tar if no other had it."""
    return member_of(name).rpartition(b".")[0]


def _folder(part: bytes) -> bytes:
    if not part:
        return b"%"
    spelled = _IN_FOLDER.sub(_spelled, part)
    return spelled if added_as(spelled) is None else _first(spelled)


def _first(part: bytes) -> bytes:
    """With its first character spelled: it is no name that systems add any more."""
    return b"%%%02X" % part[0] + part[1:]


def _spelled(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]

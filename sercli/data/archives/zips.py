"""The structure of a zip: `zipfile` reads the directory at its end, and no image is read.

Only members that are stored as they are can be read where they lie.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections import Counter
from typing import IO

from sercli.data.archives.contents import Collector, Contents, Part
from sercli.data.images.listing import printable
from sercli.errors import shortened
from sercli.visible import counted

_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of the name and of what follows it
_END, _DISKS = b"PK\x05\x06", slice(4, 8)  # of the directory: numbers of this disk and its first
_LONGEST_END = 22 + 0xFFFF
_ENCRYPTED, _UNIX, _UTF8 = 0x1, 3, 0x800
_METHODS = {8: "deflated", 9: "deflated", 12: "bzip2", 14: "LZMA", 93: "zstd"}
_REMEDY = "unpack it, or pack it with zip -0 -r"
# What zipfile raises for a directory that is damaged.
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError,
            EOFError, LookupError, MemoryError)  # fmt: skip
SPLIT = f"it is a part of a split zip; all parts must be one file; {_REMEDY}"


def list_zip(part: Part, file: IO[bytes], length: int) -> Contents:
    """What is in a zip.

    Args:
        part: Which it is.
        file: Opened.
        length: Its bytes.
    """
    descriptor = file.fileno()
    collector = Collector(part, lambda size, offset: os.pread(descriptor, size, offset))
    compressed: Counter[str] = Counter()
    example = ""
    if _is_split(descriptor, length):
        collector.fault(SPLIT)
        return collector.done()
    try:
        with zipfile.ZipFile(file) as archive:
            members, directory = archive.infolist(), archive.start_dir
            archive.NameToInfo.clear()
    except _DAMAGED as error:
        collector.fault(_what_is_wrong(descriptor, length, error))
        return collector.done()
    members.reverse()
    while members:  # emptied on the way, as each takes half a KB
        member = members.pop()
        if member.is_dir():
            continue
        name = _name(member)
        how = _how_packed(member)
        if how is not None:
            compressed[how] += 1
            example = shortened(printable(name))
        elif member.create_system == _UNIX and stat.S_ISLNK(member.external_attr >> 16):
            collector.wrong_member(
                name, "is a symbolic link; links in archives are not followed; pack without -y"
            )
        elif (offset := _start_of(descriptor, member, directory)) is None:
            collector.wrong_member(
                name, "lies beyond its archive, or at no header; it is damaged; download it again"
            )
        else:
            collector.add(name, offset=offset, size=member.file_size)
    for how, number in compressed.items():
        collector.fault(
            f"{counted(number, 'member')} {how} ({example}); members are read where they lie, as "
            f"they are; {_REMEDY}"
        )
    return collector.done()


def _name(member: zipfile.ZipInfo) -> bytes:
    """As it stands in the file: what is not said to be UTF-8, `zipfile` reads as code page 437."""
    encoding = "utf-8" if member.flag_bits & _UTF8 else "cp437"
    return member.orig_filename.encode(encoding, "surrogateescape")


def _how_packed(member: zipfile.ZipInfo) -> str | None:
    """How a member is packed; None: as it is."""
    if member.flag_bits & _ENCRYPTED:
        return "encrypted"
    if member.compress_type != zipfile.ZIP_STORED:
        return _METHODS.get(member.compress_type, "compressed")
    return None if member.file_size == member.compress_size else "of two sizes"


def _start_of(descriptor: int, member: zipfile.ZipInfo, directory: int) -> int | None:
    """Where a member's bytes begin; None: not where the directory says, or not all are there."""
    if member.header_offset < 0:
        return None
    header = os.pread(descriptor, _LOCAL.size, member.header_offset)
    if len(header) < _LOCAL.size:
        return None
    signature, name, more = _LOCAL.unpack(header)
    start = member.header_offset + _LOCAL.size + int(name) + int(more)
    whole = signature == b"PK\x03\x04" and start + member.file_size <= directory
    return start if whole else None


def _is_split(descriptor: int, length: int) -> bool:
    """Whether the end of the directory says that it lies on another disk than the first."""
    end = _end_of_directory(descriptor, length)
    return bool(end[_DISKS].strip(b"\0")) and end[_DISKS] != b"\xff" * 4  # told elsewhere then


def _end_of_directory(descriptor: int, length: int) -> bytes:
    """What stands at the end of a zip; empty where it does not."""
    tail = os.pread(descriptor, _LONGEST_END, max(0, length - _LONGEST_END))
    place = tail.rfind(_END)
    return b"" if place < 0 else tail[place:]


def _what_is_wrong(descriptor: int, length: int, error: Exception) -> str:
    if not _end_of_directory(descriptor, length):
        return "it has no directory at its end; it is truncated; copy or download it again"
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    return f"it is a damaged zip ({reason}); copy or download it again"

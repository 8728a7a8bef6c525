"""What lists that are kept share: when they may be, and their bytes."""

import hashlib

import numpy as np
import pytest

from sercli.data.images import kept

SECOND = 1_000_000_000
NOW = 10**18


@pytest.mark.parametrize(
    ("mtime", "ctime", "settled"),
    [
        (NOW - 3 * SECOND, NOW - 3 * SECOND, True),
        (NOW - SECOND, NOW - 3 * SECOND, False),
        (NOW - 3 * SECOND, NOW - SECOND, False),  # a time that was set back
        (NOW + SECOND, NOW - 3 * SECOND, False),  # a server whose clock goes ahead a little
        (NOW + 9 * SECOND, NOW + 9 * SECOND, True),  # or far ahead
        (NOW - 2 * SECOND, NOW - 2 * SECOND, True),
    ],
)
def test_a_list_is_kept_once_another_change_would_show(mtime, ctime, settled):
    old = [NOW - 100 * SECOND] * 2 + [1, NOW, NOW]  # size, device and inode are no times
    stamps = np.array([old, [mtime, ctime, 1, 1, 1]])
    assert kept.are_settled(stamps, NOW) == settled


def test_names_are_joined_and_none_is_empty():
    names = (b"a", b"bc/d", b"\xff")
    joined, offsets = kept.join(names)
    assert kept.split(joined, offsets) == names
    assert kept.are_names(joined, offsets, 3)
    assert not kept.are_names(joined, offsets, 2)
    assert not kept.are_names(joined[1:], offsets, 3)
    assert not kept.are_names(joined, offsets + 1, 3)
    assert not kept.are_names(*kept.join((b"a", b"", b"c")), 3)


def test_parts_that_do_not_add_up_are_none_of_ours():
    arrays = [np.arange(3, dtype="<i8"), np.arange(2, dtype="<i4")]
    content = kept.pack(b"magic", {"x": 1}, arrays)
    told, parts = kept.unpack(b"magic", content, 2)
    assert (told, [bytes(part) for part in parts]) == ({"x": 1}, [one.tobytes() for one in arrays])
    for magic, number in ((b"other", 2), (b"magic", 1), (b"magic", 3)):
        with pytest.raises((ValueError, IndexError)):
            kept.unpack(magic, content, number)


def test_negative_lengths_are_none_of_ours_though_they_add_up():
    lengths = np.array([2, -2, 8], "<i8").tobytes()
    body = lengths + b"{}" + bytes(6)
    content = b"magic" + hashlib.sha256(body).digest() + body
    with pytest.raises(ValueError, match="the parts do not add up"):
        kept.unpack(b"magic", content, 2)

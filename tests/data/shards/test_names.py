"""Names of images in tars: of WebDataset's form, and their own again when they are read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sercli.data.archives.contents import _added, _leads_out, key_of
from sercli.data.archives.made import key_of_member, member_of, name_of
from sercli.data.images.listing import has_suffix

# As WebDataset tells keys: up to the first dot of the last part.
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
parts = st.text(st.sampled_from("aB0.%~/\\ :\n@é") | st.characters(codec="utf-8"), max_size=9)
names = st.tuples(parts, st.sampled_from(["", ".jpg", ".JPEG", ".tar", ".png"])).map("".join)


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("n01440764/n01440764_10026.JPEG", "n01440764/n01440764_10026.JPEG"),
        ("a b/ü.jpg", "a b/ü.jpg"),
        ("a.b/c.jpg", "a.b/c.jpg"),
        ("a/b.c.jpg", "a/b%2Ec.jpg"),
        ("a/100%.jpg", "a/100%25.jpg"),
        (".hidden/x.jpg", "%2Ehidden/x.jpg"),
        ("../x.jpg", "%2E./x.jpg"),
        ("/x.jpg", "%/x.jpg"),
        ("C:/x.jpg", "C%3A/x.jpg"),
        ("Thumbs.db/x.jpg", "%54humbs.db/x.jpg"),
    ],
)
def test_names_stay_as_they_are_where_tars_can_have_them(name, member):
    assert member_of(name.encode()) == member.encode()
    assert name_of(member.encode()) == name.encode()


def test_another_suffix_stands_behind_a_name_that_stays():
    assert member_of(b"a/x.png", suffix=b"jpg") == b"a/x%2Epng%.jpg"
    assert name_of(b"a/x%2Epng%.jpg") == b"a/x.png"
    assert member_of(b"train/00003-000000017", suffix=b"jpg") == b"train/00003-000000017%.jpg"


def test_images_of_one_key_get_keys_of_their_own():
    both = [b"a/x.png", b"a/x.jpg"]
    assert len({key_of_member(name) for name in both}) == 1
    members = [member_of(name, apart=True) for name in both]
    assert len({key_of(member) for member in members}) == 2
    assert [name_of(member) for member in members] == both


@given(names.filter(bool), st.booleans())
def test_every_name_comes_back_and_no_member_leads_out(name, apart):
    data = name.encode()
    suffix = b"" if has_suffix(data.rpartition(b"/")[2]) else b"jpg"
    member = member_of(data, suffix=suffix, apart=apart)
    assert name_of(member) == data
    assert _leads_out(member) is None
    assert _added(member) is None
    assert b"//" not in member
    found = KEY.match(member.decode())
    assert found is not None
    assert has_suffix(b"x." + found[2].encode())
    assert key_of(member) == found[1].encode()


@given(st.lists(names.filter(bool), unique=True, max_size=8))
def test_names_that_differ_have_members_that_differ(several):
    encoded = [name.encode() for name in several]
    assert len({member_of(name, suffix=b"jpg") for name in encoded}) == len(encoded)

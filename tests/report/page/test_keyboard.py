"""The page by keyboard alone, in a browser: where one is shows, and tables sort."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chromium import Tab, chromium, opened

pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium"),
]

AT = "document.activeElement"
SEEN = f"""(() => {{
  const box = {AT}.getBoundingClientRect(), style = getComputedStyle({AT});
  return box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight
    && style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2;
}})()"""
HEAD = f"{AT}.closest('th')"
FIRST = f"[...{HEAD}.closest('table').tBodies[0].rows].map(row => row.cells[0].textContent.trim())"


@pytest.fixture(scope="module")
def tab(written: Path) -> Iterator[Tab]:
    program = chromium()
    assert program is not None
    with opened(program, written) as tab:
        yield tab


def test_a_skip_link_comes_first_and_leads_to_the_results(tab: Tab) -> None:
    tab.press("Tab")
    assert tab.value(f"{AT}.className") == "skip"
    assert tab.value(SEEN)
    tab.press("Enter")
    assert tab.value("location.hash") == "#content"
    tab.press("Tab")
    assert tab.value(f"document.getElementById('content').contains({AT})")


def test_headings_sort_by_enter_and_space_and_say_so(tab: Tab) -> None:
    for _ in range(100):
        if tab.value(f"{AT}.tagName") == "BUTTON":
            break
        tab.press("Tab")
        assert tab.value(SEEN), tab.value(f"{AT}.outerHTML")
    before = tab.value(FIRST)
    assert len(before) > 2
    assert tab.value(f"{HEAD}.getAttribute('aria-sort')") is None
    orders = []
    for key in (" ", "Enter", "Enter"):
        tab.press(key)
        orders.append((tab.value(f"{HEAD}.getAttribute('aria-sort')"), tab.value(FIRST)))
    assert [told for told, _ in orders] == ["ascending", "descending", None]
    ascending, descending, after = (rows for _, rows in orders)
    assert ascending == sorted(before, key=_natural) == descending[::-1]
    assert after == before
    assert tab.value(SEEN)  # and one is still there


def _natural(text: str) -> list[tuple[int, str]]:
    """Layer 3 before layer 12."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]

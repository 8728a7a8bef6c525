"""Markdown pages, taken apart: code blocks, code spans, prose and tables."""

import functools
import re

CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@functools.cache
def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def prose(page):
    """The text without its code blocks."""
    return CODE_BLOCK.sub("", text_of(page))


def spans(page):
    """What stands between backticks, outside code blocks."""
    return codes(prose(page))


def codes(text):
    return re.findall(r"`([^`\n]+)`", text)


def below(page, heading):
    """What stands below a heading, up to the next one."""
    _, found, rest = f"\n{text_of(page)}".partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(page, heading):
    """The rows of the first table below a heading, without the head: lists of cells."""
    lines = re.search(r"(?:^\|.*\n)+", below(page, heading), re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
